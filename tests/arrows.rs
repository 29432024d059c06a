//! What may depend on what, and how much there may be of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::support::stage;

/// Packages of the workspace, and which of the others each may use.
const ARROWS: [(&str, &[&str]); 11] = [
    ("msb-wire", &[]),
    ("libmsb", &["msb-wire"]),
    ("msb-agent", &["msb-wire"]),
    ("msb-image", &["libmsb"]),
    ("msb-metrics", &["libmsb", "msb-wire"]),
    ("msb-net", &["libmsb"]),
    ("msb-run", &["libmsb", "msb-wire"]),
    ("msb-vmm", &["libmsb", "msb-wire"]),
    ("msb-ssh", &["libmsb", "msb-wire"]),
    ("msb-tests", &[]),
    ("msb-test-hello", &[]),
];

/// What libmsb may never bring to every tool: TLS, HTTP, an async runtime, a hypervisor.
const NOT_IN_LIBMSB: [&str; 8] = [
    "rustls",
    "openssl",
    "hyper",
    "ureq",
    "tokio",
    "async-std",
    "smol",
    "libkrun",
];

/// What each program may bring from others at most, each a name in Cargo.lock and somebody to trust; and what for. Raise
/// one with a reason.
const CRATES_MAX: [(&str, usize, &str); 9] = [
    ("msb-wire", 20, "serde, and system calls by rustix"),
    ("msb-agent", 20, "what msb-wire has: it is in every guest"),
    (
        "libmsb",
        68,
        "the command line and its completions (a third), time zones, JSON, Landlock and seccomp",
    ),
    (
        "msb-net",
        76,
        "what libmsb has, names of DNS, and TLS only as far as to read a greeting",
    ),
    (
        "msb-run",
        112,
        "what libmsb has, image specifications, digests, tar, patterns of logs, base64",
    ),
    (
        "msb-image",
        138,
        "what libmsb has, TLS and HTTP without a runtime (some 40), gzip and zstd, image specifications",
    ),
    (
        "msb-metrics",
        174,
        "what libmsb has, gRPC and its runtime (some 60), TLS",
    ),
    (
        "msb-vmm",
        198,
        "libkrun's machine (some 120), a quarter of them for other systems than Linux",
    ),
    (
        "msb-ssh",
        240,
        "SSH, its ciphers and key exchanges, and an asynchronous runtime (some 160)",
    ),
];

/// Packages that are there in several versions, and who brings the older one.
const DUPLICATES: [(&str, &str); 22] = [
    ("base64", "tonic, until ureq's version"),
    ("bitflags", "libkrun and vmm-sys-util"),
    (
        "generic-array",
        "itself: 0.14.9 is a shell around the newer one",
    ),
    ("getrandom", "ring, and rand 0.9 of libkrun"),
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

fn metadata() -> serde_json::Value {
    serde_json::from_slice(&fs::read(stage("metadata.json")).unwrap()).unwrap()
}

/// Names of the packages that a package names as dependencies, for its programs (not its tests).
fn direct(package: &serde_json::Value) -> BTreeSet<String> {
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    let used = dependencies.filter(|dependency| dependency["kind"].as_str() != Some("dev"));
    used.map(|dependency| dependency["name"].as_str().unwrap().to_owned())
        .collect()
}

fn packages() -> BTreeMap<String, serde_json::Value> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            (
                package["name"].as_str().unwrap().to_owned(),
                package.clone(),
            )
        })
        .collect()
}

#[test]
fn packages_use_each_other_only_along_the_arrows() {
    let packages = packages();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into();
    let ours: BTreeSet<&str> = allowed.keys().copied().collect();
    let members = metadata()["workspace_members"].as_array().unwrap().len();
    assert_eq!(
        members,
        ours.len(),
        "a package of the workspace has no row in ARROWS"
    );
    for (name, allowed) in allowed {
        for used in direct(&packages[name]) {
            assert!(
                !ours.contains(used.as_str()) || allowed.contains(&used.as_str()),
                "{name} uses {used}"
            );
        }
    }
}

/// Everything that a package brings along, but for its tests and for tests/fuzz.
fn all(name: &str) -> BTreeSet<String> {
    let metadata = metadata();
    let names: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            (
                package["id"].as_str().unwrap(),
                package["name"].as_str().unwrap(),
            )
        })
        .collect();
    let nodes: BTreeMap<&str, &serde_json::Value> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), node))
        .collect();
    let start = names
        .iter()
        .find(|(_, package)| **package == name)
        .map(|(id, _)| *id)
        .unwrap();
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
        let is_for_tests = name.starts_with("msb-test");
        assert!(
            is_for_tests || ceilings.contains(name),
            "{name} has no row in CRATES_MAX"
        );
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
    let allowed: BTreeSet<&str> = list
        .lines()
        .map(|line| line.trim().trim_matches([',', '"']))
        .collect();
    assert!(allowed.contains("MIT"), "{allowed:?}");
    for (name, package) in packages() {
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(is_allowed(licence, &allowed), "{name}: {licence:?}");
        if let Some(source) = package["source"].as_str() {
            let is_registry = source.starts_with("registry+");
            assert!(
                is_registry && source.ends_with("/crates.io-index"),
                "{name}: {source}"
            );
        }
    }
}

/// Whether one choice of an expression of SPDX is allowed. Parentheses are always around choices, in all that there are.
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
    let ours = packages
        .find(|package| package["name"] == "libmsb")
        .unwrap();
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
