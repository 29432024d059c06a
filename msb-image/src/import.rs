//! `msb image import`: a root file system becomes an image of one layer.

use anyhow::{Context, Result, ensure};
use libmsb::cli::error::Failure;
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::Home;
use serde_json::json;

use crate::arguments::Import;
use crate::disk::{self, merge};
use crate::document::{Platform, manifest_for};
use crate::input::Input;
use crate::layer::convert::{Converted, convert};
use crate::load::{Loaded, check_pins, put_documents, put_references, report};
use crate::store::{self, NewLayer};
use crate::stream::digest_of;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SHELL: &str = "/bin/sh";

pub(crate) fn run(home: &Home, args: Import) -> Result<()> {
    let reference: Reference = args.name.parse()?;
    let label = || format!("cannot import '{reference}'");
    let imported = import(home, &args, &reference).with_context(label)?;
    report("Imported", &imported, args.output)
}

fn import(home: &Home, args: &Import, reference: &Reference) -> Result<Vec<Loaded>> {
    let input = Input::open(args.input.as_deref(), !args.output.quiet)?;
    let (store, _lock) = store::open_for_adding(home)?;
    let converted = convert(input.reader(), NewLayer::create(&store)?)?;
    check_whole(&converted)?;
    let layer = converted.summary;
    let merged = merge::merge(&[layer.diff_id], |_| converted.files.index().to_owned())?;
    check_is_root(&merged.tree)?;
    let config = config(
        &layer.diff_id,
        merge::is_executable(&merged.tree, SHELL.as_bytes()),
    )?;
    let config_digest = digest_of(&config);
    let manifest = manifest_for(&config_digest, config.len() as u64, &[layer])?;
    let digest = digest_of(&manifest);
    check_pins(std::slice::from_ref(reference), &digest)?;
    if store::layer(&store, &layer.diff_id).is_none() {
        converted.files.commit(&store, &layer.diff_id)?;
    }
    put_documents(&store, &config, &manifest)?;
    if !disk::is_there(&store, &digest) {
        disk::write(&store, &digest, &merged)?;
    }
    put_references(
        &store,
        std::slice::from_ref(reference),
        &digest,
        &config_digest,
        &[layer],
    )
}

/// No digest tells here whether the tar is whole: so it must have its end mark.
fn check_whole(converted: &Converted) -> Result<()> {
    ensure!(converted.entries > 0, "the archive is empty");
    ensure!(
        converted.end_mark,
        "the archive is truncated: its end mark is missing"
    );
    Ok(())
}

/// An archive of images is a tar too.
fn check_is_root(tree: &disk::tree::Tree) -> Result<()> {
    let has = |name: &str| tree.lookup(disk::tree::ROOT, name.as_bytes()).is_some();
    let is_archive = has("manifest.json") || (has("oci-layout") && has("index.json"));
    if is_archive && !["bin", "usr", "etc"].into_iter().any(has) {
        return Err(
            Failure::failed("it is an archive of images, not a root file system")
                .hint("to load it, use: msb image load")
                .into(),
        );
    }
    Ok(())
}

/// The same tree gives the same image: no time is noted, unless SOURCE_DATE_EPOCH says which.
fn config(diff_id: &Digest, has_shell: bool) -> Result<Vec<u8>> {
    let platform = Platform::host();
    let mut process = json!({ "Env": [PATH] });
    if has_shell {
        process["Cmd"] = json!([SHELL]);
    }
    let mut config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": process,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    if let Some(epoch) = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
    {
        let moment = jiff::Timestamp::from_second(epoch).context("SOURCE_DATE_EPOCH")?;
        config["created"] = json!(moment.to_string());
    }
    Ok(serde_json::to_vec(&config)?)
}
