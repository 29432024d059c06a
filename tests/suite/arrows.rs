//! Dependencies between packages, and their number.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use crate::support::stage;

/// Packages of the workspace, and which of the others each may use.
const ARROWS: [(&str, &[&str]); 21] = [
    ("msb-wire", &[]),
    ("libmsb", &["msb-wire"]),
    ("msb-agent", &["msb-wire"]),
    ("msb-image", &["libmsb"]),
    ("msb-metrics", &["libmsb", "msb-wire"]),
    ("msb-net", &["libmsb"]),
    ("msb-intercept", &["libmsb"]),
    ("msb-run", &["libmsb", "msb-wire"]),
    ("msb-oci", &["libmsb"]),
    ("msb-vmm", &["libmsb", "msb-wire"]),
    ("msb-ssh", &["libmsb", "msb-wire"]),
    ("msb-tests", &[]),
    ("msb-test-hello", &[]),
    ("msb-test-fuzz", &[]),
    ("msb-wire-fuzz", &["msb-wire", "msb-test-fuzz"]),
    ("msb-agent-fuzz", &["msb-agent", "msb-test-fuzz"]),
    ("msb-image-fuzz", &["msb-image", "msb-test-fuzz"]),
    ("msb-metrics-fuzz", &["msb-metrics", "msb-test-fuzz"]),
    ("msb-intercept-fuzz", &["libmsb", "msb-intercept", "msb-test-fuzz"]),
    ("msb-net-fuzz", &["libmsb", "msb-net", "msb-test-fuzz"]),
    ("msb-ssh-fuzz", &["msb-ssh", "msb-test-fuzz"]),
];

/// Crates that libmsb must not bring to every tool: TLS, HTTP, an async runtime, a hypervisor.
const NOT_IN_LIBMSB: [&str; 8] =
    ["rustls", "openssl", "hyper", "ureq", "tokio", "async-std", "smol", "libkrun"];

/// Most crates of others that each program may bring, each an entry of Cargo.lock, and their
/// purpose. Raise one with a reason.
const CRATES_MAX: [(&str, usize, &str); 11] = [
    ("msb-wire", 20, "serde, and system calls by rustix"),
    ("msb-agent", 20, "what msb-wire has: it is in every guest"),
    (
        "libmsb",
        68,
        "the command line and its completions (a third), time zones, JSON, Landlock and seccomp",
    ),
    ("msb-net", 76, "what libmsb has, names of DNS, and TLS only as far as to read a greeting"),
    (
        "msb-intercept",
        152,
        "what libmsb has, TLS, HTTP with a runtime, certificates; a dozen are named and never built",
    ),
    (
        "msb-run",
        118,
        "what libmsb has, image specifications, digests, tar, zstd, patterns of logs, base64",
    ),
    (
        "msb-image",
        138,
        "what libmsb has, TLS and HTTP without a runtime (some 40), gzip and zstd, image specifications",
    ),
    ("msb-metrics", 174, "what libmsb has, gRPC and its runtime (some 60), TLS"),
    (
        "msb-vmm",
        198,
        "libkrun's machine (some 120), a quarter of them for other systems than Linux",
    ),
    ("msb-oci", 96, "what libmsb has, and the types of container configurations"),
    ("msb-ssh", 240, "SSH, its ciphers and key exchanges, and an asynchronous runtime (some 160)"),
];

/// Packages that are there in several versions, and who brings the older one.
const DUPLICATES: [(&str, &str); 23] = [
    ("base64", "tonic, until ureq's version"),
    ("bitflags", "libkrun and vmm-sys-util"),
    ("generic-array", "itself: 0.14.9 is a shell around the newer one"),
    ("getrandom", "ring, and rand 0.9 of libkrun"),
    ("itertools", "criterion, for benchmarks only"),
    ("memoffset", "nix 0.24 of fuse-backend-rs"),
    ("miniz_oxide", "imago of libkrun"),
    ("mio", "fuse-backend-rs"),
    ("nix", "libkrun and fuse-backend-rs"),
    ("r-efi", "getrandom, for UEFI only"),
    ("rand", "libkrun"),
    ("rand_core", "rand 0.9 of libkrun"),
    ("syn", "half of the derive macros; at build time only"),
    ("vmm-sys-util", "libkrun and kvm-ioctls"),
    ("windows-sys", "ring and mio, for Windows only"),
    ("windows-targets", "windows-sys of mio, for Windows only"),
    ("windows_aarch64_gnullvm", "the same"),
    ("windows_aarch64_msvc", "the same"),
    ("windows_i686_gnu", "the same"),
    ("windows_i686_msvc", "the same"),
    ("windows_x86_64_gnu", "the same"),
    ("windows_x86_64_gnullvm", "the same"),
    ("windows_x86_64_msvc", "the same"),
];

/// Circles of imports between files of a package, and the reason of each: files, and directories
/// whose files may be in it. `tests/imports` draws all imports. A circle that is ended loses its
/// row.
const CIRCLES: [(&str, &[&str], &str); 17] = [
    (
        "libmsb",
        &["cli/error.rs", "cli/exit.rs", "cli/output.rs", "cli/verbosity.rs"],
        "an error is printed in the chosen form, and the form is an argument that can be wrong",
    ),
    (
        "libmsb",
        &["logs/mod.rs", "logs/rotated.rs"],
        "entries are read from the files of a rotation, whose names hold times of entries",
    ),
    (
        "libmsb",
        &["net/mod.rs", "net/policy.rs", "net/ports.rs", "net/rule.rs"],
        "a specification, its policy, ports and rules are one document",
    ),
    (
        "libmsb",
        &["sdk/builder.rs", "sdk/sandbox.rs"],
        "a builder makes a sandbox, and a sandbox gives its builder",
    ),
    (
        "libmsb",
        &["state/mounts.rs", "state/sandboxes.rs", "state/spec.rs", "state/volumes.rs"],
        "a specification has mounts of volumes, which sandboxes use",
    ),
    ("msb-agent", &["serve/"], "the agent's state is shut down in a file of its own"),
    ("msb-image", &["archive/"], "an archive is read by one of two readers, which share its types"),
    ("msb-image", &["disk/"], "a merged image has types of its directory"),
    ("msb-image", &["layer/"], "extended headers and sparse files are parts of the tar format"),
    ("msb-image", &["registry/"], "a client asks for tokens, and a token is asked for by a client"),
    ("msb-image", &["verbs/save/"], "an image is saved by parts that share types"),
    (
        "msb-run",
        &["boot_state/"],
        "the header of a state holds the guest that was saved, which is read from the header",
    ),
    ("msb-run", &["doctor/"], "checks share the type of a finding"),
    ("msb-run", &["engine/"], "an engine is one of two, with one plan"),
    ("msb-run", &["supervisor/relay/"], "the input of jobs is routed by the relay"),
    (
        "msb-wire",
        &["memory.rs", "sandbox.rs"],
        "a request to save memory is one of a sandbox's, and fails for the reasons of a pause",
    ),
    (
        "msb-vmm",
        &["isolate.rs", "main.rs", "share/", "stderr_log.rs"],
        "the plan of a VM stands in main.rs",
    ),
];

fn metadata() -> serde_json::Value {
    serde_json::from_slice(&fs::read(stage("metadata.json")).unwrap()).unwrap()
}

/// Names of the packages that a package names as dependencies, for its programs (not its tests).
fn direct(package: &serde_json::Value) -> BTreeSet<String> {
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    let used = dependencies.filter(|dependency| dependency["kind"].as_str() != Some("dev"));
    used.map(|dependency| dependency["name"].as_str().unwrap().to_owned()).collect()
}

fn packages() -> BTreeMap<String, serde_json::Value> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| (package["name"].as_str().unwrap().to_owned(), package.clone()))
        .collect()
}

#[test]
fn packages_use_each_other_only_along_the_arrows() {
    let packages = packages();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into();
    let ours: BTreeSet<&str> = allowed.keys().copied().collect();
    let members = metadata()["workspace_members"].as_array().unwrap().len();
    assert_eq!(members, ours.len(), "a package of the workspace has no row in ARROWS");
    for (name, allowed) in allowed {
        for used in direct(&packages[name]) {
            assert!(
                !ours.contains(used.as_str()) || allowed.contains(&used.as_str()),
                "{name} uses {used}"
            );
        }
    }
}

/// Returns the dependencies of a package, without those of its tests and of tests/fuzz.
fn all(name: &str) -> BTreeSet<String> {
    let metadata = metadata();
    let names: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
        .collect();
    let nodes: BTreeMap<&str, &serde_json::Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), node))
        .collect();
    let start = names.iter().find(|(_, package)| **package == name).map(|(id, _)| *id).unwrap();
    let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(id) = open.pop() {
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let only_for_tests = dependency["dep_kinds"]
                .as_array()
                .unwrap()
                .iter()
                .all(|kind| kind["kind"] == "dev" || kind["target"] == "cfg(fuzzing)");
            let id = dependency["pkg"].as_str().unwrap();
            if !only_for_tests && seen.insert(names[id].to_owned()) {
                open.push(id);
            }
        }
    }
    seen
}

#[test]
fn libmsb_brings_neither_network_nor_runtime_to_the_tools() {
    let brought = all("libmsb");
    for name in NOT_IN_LIBMSB {
        assert!(
            !brought
                .iter()
                .any(|brought| brought == name || brought.starts_with(&format!("{name}-"))),
            "{name}"
        );
    }
}

#[test]
fn each_program_has_a_ceiling_of_crates() {
    let ceilings: BTreeSet<&str> = CRATES_MAX.iter().map(|(name, ..)| *name).collect();
    for (name, _) in ARROWS {
        let is_for_tests = name.starts_with("msb-test") || name.ends_with("-fuzz");
        assert!(is_for_tests || ceilings.contains(name), "{name} has no row in CRATES_MAX");
    }
    for (name, most, what_for) in CRATES_MAX {
        let brought = all(name);
        eprintln!("{name}: {} of {most}", brought.len());
        assert!(
            brought.len() <= most,
            "{name} brings {} crates, at most {most} are allowed ({what_for}): {brought:?}",
            brought.len()
        );
    }
}

#[test]
fn packages_in_several_versions_are_known() {
    let lock = fs::read_to_string(stage("source/Cargo.lock")).unwrap();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in lock.lines().filter_map(|line| line.strip_prefix("name = ")) {
        *counts.entry(name.trim_matches('"')).or_default() += 1;
    }
    counts.retain(|_, count| *count > 1);
    let found: BTreeSet<&str> = counts.into_keys().collect();
    let known: BTreeSet<&str> = DUPLICATES.iter().map(|(name, _)| *name).collect();
    assert_eq!(found, known);
}

#[test]
fn every_package_is_of_crates_io_and_has_a_licence_that_is_allowed() {
    let deny = fs::read_to_string(stage("source/.deny.toml")).unwrap();
    let (_, list) = deny.split_once("\nallow = [\n").unwrap();
    let (list, _) = list.split_once("\n]").unwrap();
    let allowed: BTreeSet<&str> =
        list.lines().map(|line| line.trim().trim_matches([',', '"'])).collect();
    assert!(allowed.contains("MIT"), "{allowed:?}");
    let mut sources = BTreeSet::new();
    for (name, package) in packages() {
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(is_allowed(licence, &allowed), "{name}: {licence:?}");
        if let Some(source) = package["source"].as_str() {
            assert!(
                source.starts_with("registry+https://github.com/rust-lang/"),
                "{name}: {source}"
            );
            sources.insert(source.to_owned());
        }
    }
    assert_eq!(sources.len(), 1, "crates of more than one registry: {sources:?}");
}

/// Returns whether one choice of an SPDX expression is allowed. Parentheses are always around
/// choices, in all that there are.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    // The older form of a choice.
    let expression = expression.replace('/', " OR ").replace(" AND ", "&");
    let part = |part: &str| {
        let choices = part.trim().trim_matches(['(', ')']);
        let mut choices = choices.split(" OR ").map(str::trim);
        choices.any(|choice| allowed.contains(choice))
    };
    expression.split('&').all(part)
}

#[test]
fn the_oldest_compiler_is_named_once_more_for_clippy() {
    let metadata = metadata();
    let clippy = fs::read_to_string(stage("source/.clippy.toml")).unwrap();
    let mut packages = metadata["packages"].as_array().unwrap().iter();
    let ours = packages.find(|package| package["name"] == "libmsb").unwrap();
    let msrv = format!("msrv = {}\n", ours["rust_version"]);
    assert!(clippy.contains(&msrv), "not {msrv:?} in {clippy}");
}

#[test]
fn the_guests_programs_need_no_library() {
    let programs = [stage("prefix/lib/msb/msb-agent"), stage("msb-test-guest")];
    for program in programs {
        let bytes = fs::read(&program).unwrap();
        assert!(
            !bytes.windows(14).any(|window| window == b"/ld-linux-x86-"),
            "{} asks for a loader",
            program.display()
        );
    }
}

#[test]
fn files_import_each_other_in_circles_only_for_a_reason() {
    let output =
        Command::new("python3").arg(stage("source/tests/imports")).arg("--circles").output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let mut ended: BTreeSet<_> = CIRCLES.iter().collect();
    for circle in printed.lines() {
        let (package, files) = circle.split_once(' ').unwrap();
        let is_listed = |file: &str, listed: &[&str]| {
            listed
                .iter()
                .any(|entry| *entry == file || entry.ends_with('/') && file.starts_with(entry))
        };
        let mut rows = CIRCLES.iter();
        let row = rows.find(|(name, listed, _)| {
            *name == package && files.split(' ').all(|file| is_listed(file, listed))
        });
        ended.remove(row.unwrap_or_else(|| panic!("a new circle in {package}: {files}")));
    }
    assert!(ended.is_empty(), "circles that are no more; remove their rows: {ended:?}");
}
