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

/// Packages in Cargo.lock. Each one is somebody to trust; raise it with a reason. libkrun brings 90, a quarter of them for
/// other systems than Linux, and all of them to msb-vmm alone; TLS and HTTP bring 20 to msb-image; SSH's ciphers and an
/// async runtime some 110 to msb-ssh; gRPC some 40 to msb-metrics; the file server of shares 10 to msb-vmm, and 9 that name
/// other systems.
const CRATES_MAX: usize = 400;

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
fn the_agent_brings_little_into_the_guest() {
    let brought = all("msb-agent");
    assert!(brought.len() <= 20, "{}: {brought:?}", brought.len());
}

#[test]
fn the_number_of_crates_has_a_ceiling() {
    let lock = fs::read_to_string(stage("source/Cargo.lock")).unwrap();
    let count = lock.matches("[[package]]").count();
    assert!(
        count <= CRATES_MAX,
        "{count} packages in Cargo.lock, at most {CRATES_MAX} are allowed"
    );
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
