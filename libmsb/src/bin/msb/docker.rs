//! Commands that users of docker and microsandbox type and that have another name here, or none.

use std::ffi::OsString;

/// Another name of a command: its program's command, and the arguments that precede those typed.
const SYNONYMS: [(&str, &str, &[&str]); 6] = [
    ("info", "doctor", &[]),
    ("login", "registry", &["login"]),
    ("logout", "registry", &["logout"]),
    ("tag", "image", &["tag"]),
    ("unpause", "resume", &[]),
    ("volumes", "volume", &["list"]),
];

/// Commands that do not exist, each with what to use instead, or why there is nothing.
const MISSING: [(&str, &str); 39] = [
    (
        "build",
        "msb builds no images; load what docker or podman built: docker save IMAGE | msb load",
    ),
    (
        "buildx",
        "msb builds no images; load what docker or podman built: docker save IMAGE | msb load",
    ),
    (
        "builder",
        "msb builds no images; load what docker or podman built: docker save IMAGE | msb load",
    ),
    ("checkpoint", "use 'msb pause NAME', which keeps a sandbox in memory"),
    (
        "commit",
        "msb makes no image of a sandbox; copy files out of it with 'msb cp NAME:/PATH DIR'",
    ),
    (
        "compose",
        "msb reads no compose files; start each sandbox with 'msb run -d --name NAME IMAGE'",
    ),
    ("container", "use the command without it, as in 'msb ls'"),
    ("containers", "use 'msb ls'"),
    ("context", "msb has no daemon to choose; $MSB_HOME selects the state directory"),
    ("del", "use 'msb rm NAME'"),
    ("delete", "use 'msb rm NAME'"),
    ("df", "use 'msb image df'"),
    ("diff", "msb does not list the files that a sandbox changed"),
    ("enter", "use 'msb exec -it NAME sh'"),
    ("export", "use 'msb cp NAME:/PATH DIR' for files, or 'msb image save IMAGE' for an image"),
    ("history", "use 'msb image inspect IMAGE'"),
    ("import", "use 'msb image import NAME'"),
    ("manifest", "use 'msb image inspect IMAGE'"),
    (
        "network",
        "each sandbox has a network of its own; set it with 'msb run --net', see 'msb help net'",
    ),
    (
        "networks",
        "each sandbox has a network of its own; set it with 'msb run --net', see 'msb help net'",
    ),
    ("node", "msb works on one host; see 'msb info'"),
    ("plugin", "msb has no plugins; a program 'msb-NAME' in PATH is the command 'msb NAME'"),
    ("port", "use 'msb ps NAME', which lists the published ports"),
    (
        "prune",
        "use 'msb image prune' for images, or 'msb ls -q --stopped | msb rm -' for sandboxes",
    ),
    ("push", "msb uploads no images; copy one with: msb image save IMAGE | ssh HOST msb load"),
    ("rename", "a sandbox keeps its name; create another one with 'msb create --name NAME IMAGE'"),
    ("search", "msb does not search registries; pull an image by its name: 'msb pull IMAGE'"),
    ("secret", "pass a value in an environment variable: 'msb run -e NAME IMAGE'"),
    ("service", "msb works on one host; start a sandbox with 'msb run -d --name NAME IMAGE'"),
    ("sh", "use 'msb exec -it NAME sh'"),
    ("shell", "use 'msb exec -it NAME sh'"),
    ("stack", "msb works on one host; start each sandbox with 'msb run -d --name NAME IMAGE'"),
    ("swarm", "msb works on one host; see 'msb info'"),
    ("system", "use 'msb image df', 'msb image prune', 'msb info' or 'msb events'"),
    ("top", "use 'msb exec NAME ps'"),
    (
        "trust",
        "msb verifies no signatures; an image can be pulled by digest: 'msb pull NAME@sha256:...'",
    ),
    ("update", "use 'msb modify NAME'"),
    ("vm", "use 'msb ls'"),
    ("vms", "use 'msb ls'"),
];

/// Answers for a command with its subcommand.
const MISSING_PAIRS: [(&str, &str, &str); 6] = [
    ("container", "prune", "use 'msb ls -q --stopped | msb rm -'"),
    ("network", "inspect", "use 'msb inspect NAME', which shows the network of a sandbox"),
    ("system", "df", "use 'msb image df'"),
    ("system", "events", "use 'msb events'"),
    ("system", "info", "use 'msb info'"),
    ("system", "prune", "use 'msb image prune'"),
];

/// Shells that have a completion script.
const SCRIPTS: [(&str, &str); 3] = [
    ("bash", include_str!("../../../completions/msb.bash")),
    ("fish", include_str!("../../../completions/msb.fish")),
    ("zsh", include_str!("../../../completions/_msb")),
];

/// Returns the command of this name and its arguments, for a command that has another name here.
pub(crate) fn translate(
    word: &str,
    rest: &[OsString],
) -> Option<Result<(&'static str, Vec<OsString>), String>> {
    if word == "kill" {
        return Some(kill(rest));
    }
    if word == "stats" {
        return Some(Ok(("metrics", stats(rest))));
    }
    let (_, command, args) = SYNONYMS.iter().find(|(name, ..)| *name == word)?;
    let args = args.iter().map(OsString::from).chain(rest.iter().cloned());
    Some(Ok((*command, args.collect())))
}

/// Returns the arguments of `metrics` for `stats`, which updates its output unless `--no-stream` is
/// given.
fn stats(rest: &[OsString]) -> Vec<OsString> {
    let is_once = rest.iter().any(|arg| arg == "--no-stream");
    let watch = (!is_once).then(|| OsString::from("--watch"));
    // Without names, both show the running sandboxes.
    let dropped = ["--no-stream", "--no-trunc", "-a", "--all"];
    let kept = rest.iter().filter(|arg| !dropped.iter().any(|dropped| *arg == dropped));
    watch.into_iter().chain(kept.cloned()).collect()
}

/// Returns the arguments of `stop` for `kill`: the machine is killed, or with the signal TERM the
/// guest shuts down.
fn kill(rest: &[OsString]) -> Result<(&'static str, Vec<OsString>), String> {
    let mut signal = "KILL".to_owned();
    let mut args = Vec::new();
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if text == "-s" || text == "--signal" {
            let value = words.next().ok_or_else(|| format!("'{text}' needs a signal"))?;
            signal = value.to_string_lossy().into_owned();
        } else if let Some(value) = text.strip_prefix("--signal=") {
            signal = value.to_owned();
        } else if let Some(value) = text.strip_prefix("-s").filter(|value| !value.is_empty()) {
            signal = value.to_owned();
        } else {
            args.push(word.clone());
        }
    }
    let upper = signal.to_ascii_uppercase();
    match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "KILL" | "9" => args.insert(0, "--force".into()),
        "TERM" | "15" => {}
        _ => {
            return Err(format!(
                "the signal '{signal}' cannot be sent to a sandbox, only KILL and TERM; \
                 'msb signal -s {signal} NAME JOB' sends it to a job"
            ));
        }
    }
    Ok(("stop", args))
}

/// Returns the answer to a command that does not exist: the command of msb that does the same, or
/// the reason why there is none.
pub(crate) fn missing(word: &str, rest: &[OsString]) -> Option<&'static str> {
    let second = rest.first();
    let pair = MISSING_PAIRS
        .iter()
        .find(|(first, then, _)| *first == word && second.is_some_and(|second| second == then));
    if let Some((.., answer)) = pair {
        return Some(answer);
    }
    MISSING.iter().find(|(name, _)| *name == word).map(|(_, answer)| *answer)
}

/// Returns the completion script of a shell.
pub(crate) fn script(shell: &OsString) -> Option<&'static str> {
    SCRIPTS.iter().find(|(name, _)| shell == name).map(|(_, script)| *script)
}

/// Returns the shells that have a completion script.
pub(crate) fn shells() -> impl Iterator<Item = &'static str> {
    SCRIPTS.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table;

    fn args(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn line_of(word: &str, rest: &str) -> Result<String, String> {
        let (command, args) = translate(word, &args(rest)).unwrap()?;
        let args = args.join(std::ffi::OsStr::new(" ")).into_string().unwrap();
        Ok(format!("{command} {args}").trim_end().to_owned())
    }

    #[test]
    fn a_command_of_docker_becomes_one_of_msb() {
        assert_eq!(line_of("info", "").unwrap(), "doctor");
        assert_eq!(line_of("tag", "a b").unwrap(), "image tag a b");
        assert_eq!(line_of("stats", "x").unwrap(), "metrics --watch x");
        assert_eq!(line_of("stats", "--no-stream -a").unwrap(), "metrics");
        assert_eq!(line_of("kill", "x y").unwrap(), "stop --force x y");
        assert_eq!(line_of("kill", "-s SIGKILL x").unwrap(), "stop --force x");
        assert_eq!(line_of("kill", "--signal=term x").unwrap(), "stop x");
        assert_eq!(line_of("kill", "-s15 x").unwrap(), "stop x");
        assert!(line_of("kill", "-s HUP x").unwrap_err().contains("'HUP'"));
        assert!(line_of("kill", "x -s").unwrap_err().contains("needs a signal"));
        assert!(translate("run", &[]).is_none());
    }

    #[test]
    fn no_command_that_exists_is_listed_as_missing_and_no_name_is_listed_twice() {
        let missing = MISSING.iter().map(|(name, _)| *name);
        let synonyms = SYNONYMS.iter().map(|(name, ..)| *name);
        let mut names: Vec<&str> = missing.chain(synonyms).collect();
        assert!(names.iter().all(|name| table::find(name).is_none()), "{names:?}");
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn every_command_in_an_answer_exists() {
        let answers = MISSING.iter().map(|(_, answer)| *answer);
        let answers = answers.chain(MISSING_PAIRS.iter().map(|(.., answer)| *answer));
        for answer in answers {
            for command in answer.split("'msb ").skip(1) {
                let command = command.split([' ', '\'']).next().unwrap();
                let known = table::find(command).is_some()
                    || SYNONYMS.iter().any(|(name, ..)| *name == command)
                    || command == "NAME";
                assert!(known, "{answer}");
            }
        }
    }

    #[test]
    fn a_subcommand_has_an_answer_of_its_own() {
        assert_eq!(missing("system", &args("df")), Some("use 'msb image df'"));
        assert!(missing("system", &args("ls")).unwrap().contains("msb info"));
        assert_eq!(missing("frobnicate", &[]), None);
    }
}
