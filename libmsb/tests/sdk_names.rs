//! The public names of the SDK beside those of microsandbox 0.5.5.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use syn::{Fields, ImplItem, Item, Type, Visibility};

/// The table `sdk-fixtures/names-rust.json`.
#[derive(Deserialize)]
struct Names {
    /// Members of each type of the reference, and of its modules.
    members: BTreeMap<String, Vec<String>>,
    /// Members that have another name or form here.
    differs: BTreeMap<String, Difference>,
    /// Members that msb does not have, with the reason.
    refused: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Difference {
    /// The type, or `TYPE::MEMBER`, that does the same.
    ours: String,
    reason: String,
}

/// Returns the public members of the types in the sources of the SDK, as `TYPE::MEMBER`, and the
/// types and functions by their names.
fn public_names() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files: Vec<_> =
        std::fs::read_dir(root.join("sdk")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.push(root.join("cli/error.rs"));
    let mut names = BTreeSet::new();
    for file in files {
        let parsed = syn::parse_file(&std::fs::read_to_string(&file).unwrap()).unwrap();
        for item in parsed.items {
            collect(&item, &mut names);
        }
    }
    names
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn collect(item: &Item, names: &mut BTreeSet<String>) {
    match item {
        Item::Struct(item) if is_public(&item.vis) => {
            names.insert(item.ident.to_string());
            if let Fields::Named(fields) = &item.fields {
                for field in fields.named.iter().filter(|field| is_public(&field.vis)) {
                    names.insert(format!("{}::{}", item.ident, field.ident.as_ref().unwrap()));
                }
            }
        }
        Item::Enum(item) if is_public(&item.vis) => {
            for variant in &item.variants {
                names.insert(format!("{}::{}", item.ident, variant.ident));
            }
        }
        Item::Fn(item) if is_public(&item.vis) => {
            names.insert(item.sig.ident.to_string());
        }
        Item::Impl(item) if item.trait_.is_none() => {
            let Type::Path(owner) = &*item.self_ty else { return };
            let owner = &owner.path.segments.last().unwrap().ident;
            for member in &item.items {
                if let ImplItem::Fn(function) = member
                    && is_public(&function.vis)
                {
                    names.insert(format!("{owner}::{}", function.sig.ident));
                }
            }
        }
        _ => {}
    }
}

/// Returns the types of this SDK that have the members of a type of the reference.
fn owners(upstream: &str) -> Vec<&str> {
    match upstream {
        // A sandbox dereferences to its handle.
        "Sandbox" => vec!["Sandbox", "SandboxHandle"],
        "FsMetadata" => vec!["FileStat"],
        "VolumeHandle" => vec!["Volume"],
        "MicrosandboxError" => vec!["Code"],
        other => vec![other],
    }
}

#[test]
fn every_name_of_the_reference_is_here_or_differs_or_is_refused() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk-fixtures/names-rust.json");
    let names: Names = serde_json::from_slice(&std::fs::read(fixture).unwrap()).unwrap();
    let ours = public_names();
    let mut every = BTreeSet::new();
    let (mut works, mut missing) = (0, Vec::new());
    for (owner, members) in &names.members {
        for member in members {
            let name = format!("{owner}.{member}");
            if !names.differs.contains_key(&name) && !names.refused.contains_key(&name) {
                let is_here = match owner.as_str() {
                    "functions" => ours.contains(member),
                    _ => owners(owner).iter().any(|one| ours.contains(&format!("{one}::{member}"))),
                };
                if is_here { works += 1 } else { missing.push(name.clone()) }
            }
            every.insert(name);
        }
    }
    for (name, difference) in &names.differs {
        assert!(every.contains(name), "{name} differs, but is no name of the reference");
        assert!(ours.contains(&difference.ours), "{name}: there is no {}", difference.ours);
        assert!(!difference.reason.is_empty(), "{name} has no reason");
    }
    for (name, reason) in &names.refused {
        assert!(every.contains(name), "{name} is refused, but is no name of the reference");
        assert!(!names.differs.contains_key(name) && !reason.is_empty(), "{name}");
    }
    let (differ, refused) = (names.differs.len(), names.refused.len());
    println!("{} names: {works} work, {differ} differ, {refused} are refused", every.len());
    assert_eq!(missing, Vec::<String>::new());
}
