//! `msb image import`: creates an image of one layer from the tar of a root file system.

use std::collections::BTreeMap;
use std::ffi::OsString;

use anyhow::{Context, Result, ensure};
use libmsb::cli::args::{parse_env, parse_label};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use libmsb::state::Home;
use serde_json::json;

use crate::args::Import;
use crate::budget::Budget;
use crate::disk::{self, merge};
use crate::document::{ImageConfig, Platform, manifest_for};
use crate::input::ArchiveInput;
use crate::layer::convert::{ConvertedLayer, convert_within};
use crate::report::{StoredImage, report};
use crate::store::find;
use crate::store::layers::NewLayer;
use crate::store::open::open_for_adding;
use crate::store::put::{check_pins, put_documents, put_references};
use crate::stream::digest_of;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SHELL: &str = "/bin/sh";

pub(crate) fn run(home: &Home, args: Import) -> Result<()> {
    let reference: Reference = args.name.parse()?;
    let label = || format!("cannot import '{reference}'");
    let choices = ImageSettings::of(&args)?;
    let imported = import(home, &args, &reference, choices).with_context(label)?;
    report(&imported, args.output)
}

fn import(
    home: &Home,
    args: &Import,
    reference: &Reference,
    choices: ImageSettings,
) -> Result<Vec<StoredImage>> {
    let input = ArchiveInput::open(args.input.as_deref(), !args.output.quiet)?;
    let (store, _lock) = open_for_adding(home)?;
    let budget = Budget::of(&store);
    let converted =
        convert_within(budget.reader(input.reader()), NewLayer::create(&store)?, &budget)?;
    check_whole(&converted)?;
    let layer = converted.summary;
    let merged = merge::merge(&[layer.diff_id], |_| converted.files.index().to_owned())?;
    check_is_root(&merged.tree)?;
    let has_shell = merge::is_executable(&merged.tree, SHELL.as_bytes());
    let config = config(&layer.diff_id, &choices, has_shell)?;
    ImageConfig::parse(&config)?;
    let config_digest = digest_of(&config);
    let manifest = manifest_for(&config_digest, config.len() as u64, &[layer])?;
    let digest = digest_of(&manifest);
    check_pins(std::slice::from_ref(reference), &digest)?;
    if find::layer(&store, &layer.diff_id).is_none() {
        converted.files.commit(&store, &layer.diff_id)?;
    }
    put_documents(&store, &config, &manifest)?;
    if !disk::exists(&store, &digest) {
        disk::write(&store, &digest, &merged)?;
    }
    put_references(&store, std::slice::from_ref(reference), &digest, &config_digest, &[layer])
}

/// Checks that the tar has its end mark. No digest shows here whether it was truncated.
fn check_whole(converted: &ConvertedLayer) -> Result<()> {
    ensure!(converted.entries > 0, "the archive is empty");
    ensure!(converted.end_mark, "the archive is truncated: its end mark is missing");
    Ok(())
}

/// Checks that the tar is not an image archive, which is a tar too.
fn check_is_root(tree: &disk::tree::FileTree) -> Result<()> {
    let has = |name: &str| tree.lookup(disk::tree::ROOT, name.as_bytes()).is_some();
    let is_archive = has("manifest.json") || (has("oci-layout") && has("index.json"));
    if is_archive && !["bin", "usr", "etc"].into_iter().any(has) {
        return Err(Failure::failed("this is an image archive, not a root file system")
            .hint("load it: msb image load")
            .into());
    }
    Ok(())
}

/// Process settings of the new image.
#[derive(Debug)]
struct ImageSettings {
    env: Vec<String>,
    cmd: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    workdir: Option<String>,
    user: Option<String>,
    labels: BTreeMap<String, String>,
}

impl ImageSettings {
    fn of(args: &Import) -> Result<ImageSettings> {
        let labels = args.labels.iter().map(|label| parse_label(label));
        let workdir = args.workdir.clone();
        if let Some(path) = workdir.as_ref().filter(|path| !path.starts_with('/')) {
            return Err(
                Failure::usage(format!("the directory '{path}' does not start with '/'")).into()
            );
        }
        Ok(ImageSettings {
            env: env(&args.env)?,
            cmd: words("--cmd", &args.cmd)?,
            entrypoint: words("--entrypoint", &args.entrypoint)?,
            workdir,
            user: args.user.clone(),
            labels: labels.collect::<Result<_, _>>()?,
        })
    }
}

/// Parses environment variables in order; the last one of a name wins. PATH always exists.
fn env(texts: &[OsString]) -> Result<Vec<String>> {
    let mut variables: Vec<String> = vec![PATH.to_owned()];
    for text in texts {
        let assignment = parse_env(text)?.to_assignment();
        let assignment = assignment.into_string().map_err(|text| {
            let shown = escape(text.as_encoded_bytes()).into_owned();
            Failure::usage(format!("'{shown}' is not valid UTF-8"))
        })?;
        let name = |variable: &str| variable.split('=').next().map(str::to_owned);
        match variables.iter_mut().find(|there| name(there) == name(&assignment)) {
            Some(there) => *there = assignment,
            None => variables.push(assignment),
        }
    }
    Ok(variables)
}

/// Parses an argument list: repeated options, or one JSON array.
fn words(option: &str, texts: &[String]) -> Result<Option<Vec<String>>> {
    let words = match texts {
        [] => return Ok(None),
        [text] if text.starts_with('[') => serde_json::from_str(text).map_err(|_| {
            Failure::usage(format!("'{}' is not a JSON array of strings", escape(text)))
                .hint(format!("use {option} '[\"one\", \"two\"]', or {option} one {option} two"))
        })?,
        texts => texts.to_vec(),
    };
    Ok(Some(words))
}

/// Builds the configuration. The same tree gives the same image: without SOURCE_DATE_EPOCH it has
/// no creation time.
fn config(diff_id: &Digest, choices: &ImageSettings, has_shell: bool) -> Result<Vec<u8>> {
    let platform = Platform::host();
    let mut process = json!({ "Env": choices.env });
    let mut set = |name: &str, value: Option<serde_json::Value>| {
        if let Some(value) = value {
            process[name] = value;
        }
    };
    // An image with an entrypoint needs no shell as its command.
    let shell = (has_shell && choices.entrypoint.is_none()).then(|| json!([SHELL]));
    set("Cmd", choices.cmd.as_ref().map(|words| json!(words)).or(shell));
    set("Entrypoint", choices.entrypoint.as_ref().map(|words| json!(words)));
    set("WorkingDir", choices.workdir.as_ref().map(|path| json!(path)));
    set("User", choices.user.as_ref().map(|user| json!(user)));
    set("Labels", (!choices.labels.is_empty()).then(|| json!(choices.labels)));
    let mut config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": process,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    if let Some(epoch) =
        std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok())
    {
        let moment = jiff::Timestamp::from_second(epoch).context("SOURCE_DATE_EPOCH")?;
        config["created"] = json!(moment.to_string());
    }
    Ok(serde_json::to_vec(&config)?)
}
