//! The Go SDK: its own tests, run as a user of the programs runs them. The newest toolchain and the
//! race detector are in tests/go-check.

use std::fs;

use crate::support::{Home, stage};

/// Runs a command of Go in the SDK's directory, offline and without a C compiler.
fn go(home: &Home, command: &str) -> String {
    let sdk = stage("source/libmsb/go");
    let outcome = home.shell(&format!(
        "cd '{}' && GOFLAGS=-mod=mod GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0 \
         GOCACHE=\"$HOME/go-cache\" GOPATH=\"$HOME/go\" MSB_TEST_IMAGE=busybox:test {command}",
        sdk.display()
    ));
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert_eq!(outcome.code, 0, "{text}{}", String::from_utf8_lossy(&outcome.stderr));
    text
}

#[test]
fn the_go_sdk_is_vetted_and_its_tests_pass_with_real_sandboxes() {
    let home = Home::with_busybox();
    assert_eq!(go(&home, "gofmt -l ."), "");
    go(&home, "go vet -tags sandbox .");
    let text = go(&home, "go test -count=1 -timeout 10m -tags sandbox -v .");
    for line in text.lines().filter(|line| line.contains("names: ") || line.starts_with("ok")) {
        println!("go: {}", line.trim());
    }
    assert!(text.contains("--- PASS: TestOneSandbox") && !text.contains("--- SKIP"), "{text}");
}

#[test]
fn the_go_sdk_uses_the_standard_library_only_and_its_files_are_small() {
    let sdk = stage("source/libmsb/go");
    let module = fs::read_to_string(sdk.join("go.mod")).unwrap();
    assert!(!module.contains("require"), "{module}");
    assert!(!sdk.join("go.sum").exists());
    let mut count = 0;
    for entry in fs::read_dir(&sdk).unwrap().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        assert!(text.lines().count() <= 700, "{}", entry.path().display());
        assert!(!text.contains("import \"C\""), "{}", entry.path().display());
        count += 1;
    }
    assert!(count > 20, "{count}");
}
