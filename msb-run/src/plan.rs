//! From what was typed and what the image says to what the sandbox should be.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use libmsb::cli::args::{EnvVar, SandboxName};
use libmsb::cli::error::Failure;
use libmsb::machine::EngineChoice;
use libmsb::net::NetSpec;
use libmsb::state::images::Config;
use libmsb::state::mounts::Mount;
use libmsb::state::spec::{BootMode, MainBounds, MetricsSpec, RootSource, SPEC_VERSION, Spec};
use msb_wire::guest::{INIT_PATHS, InitRequest};
use msb_wire::text::Text;

use crate::guest::GuestChoices;

/// Size of the writable disk when nobody says another, in MiB; the reference's default. It is sparse.
const UPPER_MIB: u64 = 4096;

/// Longest host name, in bytes: `__NEW_UTS_LEN` of Linux.
const HOSTNAME_BYTES_MAX: usize = 64;

/// What was typed, checked.
#[derive(Debug)]
pub(crate) struct Choices {
    /// `--cpus`.
    pub(crate) cpus: u32,
    /// `--memory`, in MiB.
    pub(crate) memory_mib: u32,
    /// `--engine`.
    pub(crate) engine: EngineChoice,
    /// `--env`.
    pub(crate) env: Vec<EnvVar>,
    /// `--workdir`.
    pub(crate) workdir: Option<OsString>,
    /// `--user`.
    pub(crate) user: Option<OsString>,
    /// `--cold`, `--from-memory`.
    pub(crate) boot: Option<BootMode>,
    /// `--hostname`.
    pub(crate) hostname: Option<String>,
    /// `--entrypoint`.
    pub(crate) entrypoint: Option<OsString>,
    /// `--label`.
    pub(crate) labels: BTreeMap<String, String>,
    /// `--volume`, `--mount-disk`, `--tmpfs`.
    pub(crate) mounts: Vec<Mount>,
    /// `--idle-timeout`.
    pub(crate) idle_timeout: Option<Duration>,
    /// `--max-duration`.
    pub(crate) max_duration: Option<Duration>,
    /// `--metrics-sample-interval`, `--disable-metrics-sample`.
    pub(crate) metrics: MetricsSpec,
    /// The whole main command, in place of all that the image says; the sandbox outlives it.
    pub(crate) stored_command: Vec<OsString>,
    /// `--net` and its like.
    pub(crate) net: NetSpec,
    /// That of the guest, 32 hexadecimal digits.
    pub(crate) machine_id: String,
    /// `--rlimit` and `--timeout` of a detached main command.
    pub(crate) main: MainBounds,
    /// What is said of the guest.
    pub(crate) guest: GuestChoices,
    /// What stands after `--`.
    pub(crate) command: Vec<OsString>,
}

/// What the sandbox should be.
pub(crate) fn spec(
    name: &SandboxName,
    ephemeral: bool,
    (root, config): (RootSource, &Config),
    choices: Choices,
) -> Result<Spec, Failure> {
    refuse_upper(&root, &choices.guest)?;
    let upper_mib = root.image().map(|_| UPPER_MIB);
    let image_env = config.env().clone().unwrap_or_default();
    let mut labels: BTreeMap<String, String> = config
        .labels()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    labels.extend(choices.labels);
    let lasting = choices.command.is_empty();
    let mut guest = choices.guest.spec;
    let mut command = if lasting && !choices.stored_command.is_empty() {
        choices.stored_command.into_iter().map(Text::from).collect()
    } else {
        command(
            choices.entrypoint,
            choices.command,
            config.entrypoint().clone().unwrap_or_default(),
            config.cmd().clone().unwrap_or_default(),
        )
    };
    if let Some(init) = &mut guest.init {
        take_init(init, &mut command);
    }
    Ok(Spec {
        version: SPEC_VERSION,
        name: name.to_string(),
        root,
        ephemeral,
        created_at: jiff::Timestamp::now(),
        labels,
        cpus: choices.cpus,
        memory_mib: choices.memory_mib,
        engine: choices.engine,
        boot: choices.boot,
        upper_mib: choices.guest.upper_mib.or(upper_mib).unwrap_or(0),
        hostname: hostname(choices.hostname, name)?,
        env: merge_env(
            image_env.into_iter().map(Text::from).collect(),
            &choices.env,
        ),
        workdir: choices
            .workdir
            .map(Text::from)
            .or_else(|| given(config.working_dir())),
        user: choices
            .user
            .map(Text::from)
            .or_else(|| given(config.user())),
        command,
        lasting,
        mounts: choices.mounts,
        idle_timeout_ms: choices.idle_timeout.map(milliseconds),
        max_duration_ms: choices.max_duration.map(milliseconds),
        metrics: choices.metrics,
        net: choices.net,
        machine_id: Some(choices.machine_id),
        main: choices.main,
        guest,
        other: serde_json::Map::new(),
    })
}

/// A root that is no image is written to itself, and to nothing above it.
fn refuse_upper(root: &RootSource, guest: &GuestChoices) -> Result<(), Failure> {
    let is_said = guest.upper_mib.is_some() || !guest.spec.root_disk.is_managed();
    if root.image().is_some() || !is_said {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "what the guest writes goes to '{}' itself, and to no other disk",
        libmsb::cli::escape::escape(root.name().as_bytes())
    ))
    .hint("leave out --root-disk and --oci-upper-size, which are for images"))
}

/// An image that is made to boot names its init as its command: then that is what starts it, and there is no other.
fn take_init(init: &mut InitRequest, command: &mut Vec<Text>) {
    let names_init = command.first().is_some_and(|program| {
        init.path.as_ref() == Some(program)
            || INIT_PATHS
                .iter()
                .any(|path| path.as_bytes() == program.as_bytes())
    });
    if !names_init {
        return;
    }
    let mut words = std::mem::take(command).into_iter();
    let program = words.next();
    if init.path.is_none() {
        init.path = program;
    }
    if init.args.is_empty() {
        init.args = words.collect();
    }
}

/// As the specification has times.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Docker writes an empty string where nothing was said.
fn given(value: &Option<String>) -> Option<Text> {
    value
        .clone()
        .filter(|value| !value.is_empty())
        .map(Text::from)
}

/// A name that is too long for a host is cut; one that the user chose is refused.
pub(crate) fn hostname(chosen: Option<String>, name: &SandboxName) -> Result<String, Failure> {
    let Some(chosen) = chosen else {
        return Ok(name.as_str().chars().take(HOSTNAME_BYTES_MAX).collect());
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if chosen.is_empty() || chosen.len() > HOSTNAME_BYTES_MAX || !chosen.chars().all(plain) {
        return Err(Failure::usage(format!(
            "'{}' cannot be a host name",
            libmsb::cli::escape::escape(&chosen)
        ))
        .hint(format!(
            "letters, digits, '-' and '.', at most {HOSTNAME_BYTES_MAX}"
        )));
    }
    Ok(chosen)
}

/// Takes variables away.
pub(crate) fn remove_env(env: &mut Vec<Text>, names: &[OsString]) {
    env.retain(|assignment| {
        let bytes = assignment.as_bytes();
        let name = bytes.split(|byte| *byte == b'=').next();
        !names.iter().any(|gone| Some(gone.as_bytes()) == name)
    });
}

/// The variables that are there, then the user's; by name, the later one counts.
pub(crate) fn merge_env(there: Vec<Text>, user: &[EnvVar]) -> Vec<Text> {
    let mut merged: Vec<(Vec<u8>, Text)> = Vec::new();
    let mut places = std::collections::HashMap::new();
    let user = user
        .iter()
        .map(|variable| Text::from(variable.to_assignment()));
    for assignment in there.into_iter().chain(user) {
        let bytes = assignment.as_bytes();
        let Some(end) = bytes
            .iter()
            .position(|byte| *byte == b'=')
            .filter(|end| *end > 0)
        else {
            continue;
        };
        let name = bytes[..end].to_vec();
        match places.get(&name) {
            Some(place) => merged[*place] = (name, assignment),
            None => {
                places.insert(name.clone(), merged.len());
                merged.push((name, assignment));
            }
        }
    }
    merged
        .into_iter()
        .map(|(_, assignment)| assignment)
        .collect()
}

/// The rule of docker: what is typed takes the place of the image's arguments; a typed entrypoint takes the place of the
/// image's, and the image's arguments, which were meant for that, go too.
fn command(
    entrypoint: Option<OsString>,
    typed: Vec<OsString>,
    image_entrypoint: Vec<String>,
    image_cmd: Vec<String>,
) -> Vec<Text> {
    let typed: Vec<Text> = typed.into_iter().map(Text::from).collect();
    let texts = |strings: Vec<String>| strings.into_iter().map(Text::from).collect::<Vec<_>>();
    let (mut command, default) = match entrypoint {
        Some(program) if program.is_empty() => (Vec::new(), Vec::new()),
        Some(program) => (vec![Text::from(program)], Vec::new()),
        None => (texts(image_entrypoint), texts(image_cmd)),
    };
    command.extend(if typed.is_empty() { default } else { typed });
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(
        entrypoint: Option<&str>,
        typed: &[&str],
        image_entrypoint: &[&str],
        image_cmd: &[&str],
    ) -> Vec<String> {
        let strings = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        let typed = typed.iter().map(OsString::from).collect();
        let command = command(
            entrypoint.map(OsString::from),
            typed,
            strings(image_entrypoint),
            strings(image_cmd),
        );
        command.iter().map(Text::to_lossy).collect()
    }

    #[test]
    fn what_is_typed_replaces_the_images_arguments_and_not_its_entrypoint() {
        assert_eq!(resolved(None, &[], &["e"], &["c"]), ["e", "c"]);
        assert_eq!(resolved(None, &["x", "y"], &["e"], &["c"]), ["e", "x", "y"]);
        assert_eq!(resolved(None, &[], &[], &["c"]), ["c"]);
    }

    #[test]
    fn a_typed_entrypoint_drops_all_that_the_image_says() {
        assert_eq!(resolved(Some("t"), &[], &["e"], &["c"]), ["t"]);
        assert_eq!(resolved(Some("t"), &["x"], &["e"], &["c"]), ["t", "x"]);
        assert_eq!(resolved(Some(""), &["x"], &["e"], &["c"]), ["x"]);
    }

    #[test]
    fn an_image_that_is_made_to_boot_says_how_and_has_no_other_command() {
        let taken = |path: Option<&str>, words: &[&str]| {
            let mut command: Vec<Text> = words.iter().map(|word| Text::from(*word)).collect();
            let mut init = InitRequest {
                path: path.map(Text::from),
                ..InitRequest::default()
            };
            take_init(&mut init, &mut command);
            (
                init.path.map(|path| path.to_lossy()),
                init.args.len(),
                command.len(),
            )
        };
        let init = Some("/sbin/init".to_owned());
        assert_eq!(taken(None, &["/sbin/init", "--x"]), (init.clone(), 1, 0));
        assert_eq!(
            taken(Some("/sbin/init"), &["/lib/systemd/systemd"]),
            (init, 0, 0)
        );
        let own = Some("/own".to_owned());
        assert_eq!(taken(Some("/own"), &["/own"]), (own.clone(), 0, 0));
        assert_eq!(taken(Some("/own"), &["bash", "-l"]), (own, 0, 2));
        assert_eq!(taken(None, &[]), (None, 0, 0));
    }

    #[test]
    fn the_users_variables_take_the_place_of_the_images() {
        let image = ["A=1", "B=2", "broken", "=x"].map(Text::from).to_vec();
        let user = [
            EnvVar {
                name: "A".into(),
                value: "9".into(),
            },
            EnvVar {
                name: "C".into(),
                value: "".into(),
            },
        ];
        let merged: Vec<String> = merge_env(image, &user).iter().map(Text::to_lossy).collect();
        assert_eq!(merged, ["A=9", "B=2", "C="]);
    }

    #[test]
    fn a_long_name_makes_a_host_name_that_linux_takes() {
        let name: SandboxName = "x".repeat(128).parse().unwrap();
        assert_eq!(hostname(None, &name).unwrap().len(), HOSTNAME_BYTES_MAX);
        assert!(hostname(Some("a b".into()), &name).is_err());
    }
}
