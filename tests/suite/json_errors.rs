//! Errors with `MSB_ERRORS=json`: one object for each, of every program.

use serde_json::Value;

use crate::support::{Guests, Home, Outcome};

/// A host name that no name server is asked for: its label has 64 bytes.
const NO_HOST: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.test";

/// Line, exit code, name of the tool, and error code. There is the image busybox:test, a volume
/// `data`, and no sandbox.
const LINES: [(&str, i32, &str, &str); 61] = [
    ("msb nosuch", 2, "msb", "Usage"),
    ("msb --bad", 2, "msb", "Usage"),
    ("msb build .", 2, "msb", "Usage"),
    ("msb kill -s HUP x", 2, "msb", "Usage"),
    ("msb completion tcsh", 2, "msb", "Usage"),
    ("msb help --bad", 2, "msb", "Usage"),
    ("msb run", 125, "msb run", "Usage"),
    ("msb run --bad busybox:test", 125, "msb run", "Usage"),
    ("msb run --cpus 0 busybox:test", 125, "msb run", "InvalidConfig"),
    ("msb run --pull missing x", 125, "msb run", "InvalidConfig"),
    ("msb run --label sandbox.name=x busybox:test", 125, "msb run", "InvalidConfig"),
    ("msb run --pull never nosuch", 125, "msb run", "ImageNotFound"),
    ("msb run 0123456789ab", 125, "msb run", "ImageNotFound"),
    ("msb run NOSUCH/x", 125, "msb run", "InvalidConfig"),
    ("msb run ./nosuch", 125, "msb run", "Failed"),
    ("msb create", 2, "msb create", "Usage"),
    ("msb create --name a/b busybox:test", 2, "msb create", "InvalidConfig"),
    ("msb create --pull never nosuch", 3, "msb create", "ImageNotFound"),
    ("msb exec x true", 125, "msb exec", "SandboxNotFound"),
    ("msb exec", 125, "msb exec", "Usage"),
    ("msb attach x job", 125, "msb attach", "SandboxNotFound"),
    ("msb cp x:/a .", 3, "msb cp", "SandboxNotFound"),
    ("msb cp a b", 2, "msb cp", "InvalidConfig"),
    ("msb start x", 3, "msb start", "SandboxNotFound"),
    ("msb stop x", 3, "msb stop", "SandboxNotFound"),
    ("msb stop", 2, "msb stop", "Usage"),
    ("msb restart x", 3, "msb restart", "SandboxNotFound"),
    ("msb rm x", 3, "msb rm", "SandboxNotFound"),
    ("msb kill x", 3, "msb kill", "SandboxNotFound"),
    ("msb pause x", 3, "msb pause", "SandboxNotFound"),
    ("msb resume x", 3, "msb resume", "SandboxNotFound"),
    ("msb ping x", 3, "msb ping", "SandboxNotFound"),
    ("msb wait x", 3, "msb wait", "SandboxNotFound"),
    ("msb jobs x", 3, "msb jobs", "SandboxNotFound"),
    ("msb signal x job", 3, "msb signal", "SandboxNotFound"),
    ("msb inspect x", 3, "msb inspect", "SandboxNotFound"),
    ("msb inspect -f {{.Name}} x", 2, "msb inspect", "InvalidConfig"),
    ("msb logs x", 3, "msb logs", "SandboxNotFound"),
    ("msb logs --since never x", 2, "msb logs", "InvalidConfig"),
    ("msb modify x", 3, "msb modify", "SandboxNotFound"),
    ("msb ps x", 3, "msb ps", "SandboxNotFound"),
    ("msb ls --filter size=3", 2, "msb ls", "InvalidConfig"),
    ("msb events --since never", 2, "msb events", "InvalidConfig"),
    ("msb doctor --bad", 2, "msb doctor", "Usage"),
    ("msb volume", 2, "msb volume", "Usage"),
    ("msb volume create data", 4, "msb volume", "VolumeAlreadyExists"),
    ("msb volume rm nosuch", 3, "msb volume", "VolumeNotFound"),
    ("msb volume inspect nosuch", 3, "msb volume", "VolumeNotFound"),
    ("msb image", 2, "msb image", "Usage"),
    ("msb image inspect nosuch", 3, "msb image", "ImageNotFound"),
    ("msb image tag nosuch x", 3, "msb image", "ImageNotFound"),
    ("msb image save nosuch -o file", 3, "msb image", "ImageNotFound"),
    ("msb rmi nosuch", 3, "msb rmi", "ImageNotFound"),
    ("msb image prune", 2, "msb image", "InvalidConfig"),
    ("msb load -i nosuch", 1, "msb load", "Failed"),
    ("msb logout", 3, "msb logout", "NotFound"),
    ("msb ssh x", 3, "msb ssh", "SandboxNotFound"),
    ("msb ssh serve x --stdio", 3, "msb ssh", "SandboxNotFound"),
    ("msb metrics x", 3, "msb metrics", "SandboxNotFound"),
    ("msb net explain", 2, "msb net", "Usage"),
    ("(exec -a msb-supervisor msb-run)", 2, "msb-supervisor", "Usage"),
];

/// Returns the errors that a program printed. Every line of standard error is an object.
#[track_caller]
fn errors(outcome: &Outcome) -> Vec<Value> {
    let text = String::from_utf8(outcome.stderr.clone()).unwrap();
    let lines = text.lines().map(serde_json::from_str::<Value>);
    let objects: Vec<Value> = lines.collect::<Result<_, _>>().unwrap_or_else(|error| {
        panic!("{error}: {outcome:?}");
    });
    assert!(objects.iter().all(|object| object["tool"].is_string()), "{outcome:?}");
    objects.into_iter().filter(|object| object.get("error").is_some()).collect()
}

fn home_with_volume() -> Home {
    let home = Home::with_busybox();
    home.run(["volume", "create", "-q", "data"]).done();
    home
}

fn in_json(home: &Home, line: &str) -> Outcome {
    home.shell(&format!("export MSB_ERRORS=json; {line} </dev/null"))
}

#[test]
fn every_error_is_one_object_with_code_and_tool() {
    let home = home_with_volume();
    let mut wrong = Vec::new();
    for (line, code, tool, error_code) in LINES {
        let outcome = in_json(&home, line);
        let errors = errors(&outcome);
        let found = (outcome.code, errors.len(), &errors[0]["tool"], &errors[0]["code"]);
        if found != (code, 1, &tool.into(), &error_code.into()) {
            wrong.push(format!("{line}: {outcome:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_failed_pull_is_one_object_with_a_hint_also_below_run() {
    let home = Home::new();
    for (line, code) in [("msb pull", 1), ("msb run", 125), ("msb create", 1)] {
        let outcome = in_json(&home, &format!("{line} {NO_HOST}/image"));
        let [error] = &errors(&outcome)[..] else { panic!("{outcome:?}") };
        assert_eq!((outcome.code, &error["code"]), (code, &"PullFailed".into()), "{outcome:?}");
        assert!(error["error"].as_str().unwrap().ends_with("no such host"), "{outcome:?}");
        assert!(error["hint"].as_str().unwrap().contains("msb image load"), "{outcome:?}");
    }
}

#[test]
fn the_hint_stands_in_the_object_of_its_error() {
    let home = Home::new();
    let outcome = in_json(&home, "msb stop x y");
    let errors = errors(&outcome);
    assert_eq!((outcome.code, errors.len()), (1, 2), "{outcome:?}");
    for error in errors {
        assert_eq!(error["hint"], "`msb ls` lists them");
    }
    let typo = in_json(&home, "msb rnu");
    let object: Value = serde_json::from_slice(&typo.stderr).unwrap();
    assert_eq!(object["hint"], "did you mean 'msb run'?");
}

#[test]
fn a_command_that_does_not_start_has_its_reason_and_one_that_is_late_its_code() {
    let home = Guests::shared();
    for (line, code, error_code, kind) in [
        ("msb exec x no-such", 127, "ExecFailed", "not_found".into()),
        ("msb exec x /etc/passwd", 126, "ExecFailed", "permission_denied".into()),
        ("msb exec -u nobody-here x true", 125, "ExecFailed", "user_not_found".into()),
        ("msb exec -d x no-such", 127, "ExecFailed", "not_found".into()),
        ("msb exec --timeout 1ms x sleep 1000", 124, "ExecTimeout", Value::Null),
    ] {
        let outcome = in_json(&home, line);
        let [error] = &errors(&outcome)[..] else { panic!("{outcome:?}") };
        assert_eq!(
            (outcome.code, &error["code"], &error["kind"]),
            (code, &error_code.into(), &kind),
            "{outcome:?}"
        );
    }
}

#[test]
fn an_unknown_form_of_errors_is_refused() {
    let home = Home::new();
    for (line, tool) in [("msb ls", "msb"), ("msb-ls", "msb ls"), ("msb-image list", "msb image")] {
        home.shell(&format!("MSB_ERRORS=xml {line}")).is(
            2,
            "",
            &format!(
                "{tool}: error: the variable MSB_ERRORS has the unknown value 'xml'\n\
                 {tool}: hint: use MSB_ERRORS=json or MSB_ERRORS=text\n"
            ),
        );
    }
    home.shell("MSB_ERRORS=text msb ls").is(0, "", "no sandboxes\n");
    home.shell("MSB_ERRORS= msb nosuch").is(
        2,
        "",
        "msb: error: there is no command 'nosuch'\nmsb: hint: 'msb help' lists the commands\n",
    );
}
