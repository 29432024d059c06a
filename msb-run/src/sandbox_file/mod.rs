//! Sandbox files: the input of `--file`, one sandbox each, in JSON or YAML.
//!
//! The form is that of the field `config` in the output of `msb inspect`, with optional fields. A
//! file is a layer between the typed options, which override it, and the defaults of `config.json`.
//! Unknown fields are errors, since an ignored one could make the sandbox less restricted. Errors
//! contain no values but those of paths and words, since variables may be secrets.

/// Comparison with a sandbox that exists.
mod differences;
/// The schema, and the check against it.
pub(crate) mod schema;
/// YAML.
mod yaml;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use libmsb::cli::args::{EnvVar, SandboxName, parse_env, parse_new_label};
use libmsb::cli::error::{Failure, message};
use libmsb::cli::escape::escape;
use libmsb::machine::{DiskImageFormat, EngineChoice};
use libmsb::net::NetSpec;
use libmsb::state::guest::{GuestChange, GuestSpec, RootDisk};
use libmsb::state::mounts::{Mount, Source};
use libmsb::state::spec::{BootMode, MainLimits, MetricsSpec, SPEC_BYTES_MAX, Spec};
use libmsb::state::write;
use msb_wire::exec::Rlimit;
use msb_wire::text::Text;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::guest::changes::{SourceType, source};
use crate::guest::guest_path::guest_path;
use crate::guest::root_disk::parse_size;
use crate::mounts::{parse_fstype, parse_target, resolved};
use crate::root::{RootArg, parse_root};
use crate::spec_builder::ImportedSpec;

/// The name of a file that stands for standard input.
pub(crate) const STDIN: &str = "-";

/// A sandbox file that was read and checked.
#[derive(Debug)]
pub(crate) struct SandboxFile {
    /// The fields as written, with absolute paths.
    written: Value,
    pub(crate) name: Option<SandboxName>,
    pub(crate) root: Option<RootArg>,
    manifest_digest: Option<String>,
    pub(crate) env: Vec<EnvVar>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) mounts: Vec<Mount>,
    /// Fields that are used as they are.
    pub(crate) plain: PlainFields,
    /// Network, as far as it is written.
    net: Option<Value>,
    /// True if a snapshot is written, which is ignored.
    has_snapshot: bool,
}

/// Fields that the schema checks completely.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PlainFields {
    pub(crate) ephemeral: bool,
    pub(crate) lasting: Option<bool>,
    pub(crate) cpus: Option<u8>,
    pub(crate) memory_mib: Option<u32>,
    pub(crate) engine: Option<EngineChoice>,
    pub(crate) boot: Option<BootMode>,
    pub(crate) upper_mib: Option<u64>,
    pub(crate) hostname: Option<String>,
    pub(crate) workdir: Option<Text>,
    pub(crate) user: Option<Text>,
    pub(crate) command: Vec<Text>,
    pub(crate) idle_timeout_ms: Option<u64>,
    pub(crate) max_duration_ms: Option<u64>,
    pub(crate) metrics: Option<MetricsSpec>,
    pub(crate) main: MainLimits,
    pub(crate) guest: GuestSpec,
}

/// Fields that are converted.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ConvertedFields {
    name: Option<String>,
    image: Option<ImageField>,
    root_folder: Option<PathField>,
    root_image: Option<DiskField>,
    labels: BTreeMap<String, String>,
    env: Vec<Text>,
    mounts: Vec<Mount>,
    net: Option<Value>,
    snapshot: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ImageField {
    Typed(String),
    Pinned { reference: String, manifest_digest: Option<String> },
}

#[derive(Deserialize)]
struct PathField {
    path: Text,
}

#[derive(Deserialize)]
struct DiskField {
    path: Text,
    format: DiskImageFormat,
    fstype: Option<String>,
}

/// Reads a file; `-` is standard input.
pub(crate) fn read(path: &Path) -> anyhow::Result<SandboxFile> {
    let is_stdin = path == Path::new(STDIN);
    let shown = if is_stdin { "standard input".into() } else { path.display().to_string() };
    let shown = escape(&shown).into_owned();
    let bytes = if is_stdin { read_stdin()? } else { read_file(path, &shown)? };
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::usage(format!("cannot parse '{shown}': it is not UTF-8")))?;
    let directory = if is_stdin { Path::new("") } else { path.parent().unwrap_or(Path::new("")) };
    parse(&text, directory).map_err(|error| {
        let hint = libmsb::cli::error::hint(&error).map(str::to_owned);
        let failure = Failure::usage(format!("cannot use '{shown}': {}", message(&error)));
        failure
            .hint(hint.unwrap_or("the fields are in msb-spec(5): msb config schema".into()))
            .into()
    })
}

fn read_stdin() -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut input = std::io::stdin().lock().take(SPEC_BYTES_MAX + 1);
    input.read_to_end(&mut bytes).context("cannot read standard input")?;
    if bytes.len() as u64 > SPEC_BYTES_MAX {
        let message = format!("standard input is longer than {SPEC_BYTES_MAX} bytes");
        return Err(Failure::failed(message).into());
    }
    Ok(bytes)
}

fn read_file(path: &Path, shown: &str) -> anyhow::Result<Vec<u8>> {
    write::read_bounded(path, SPEC_BYTES_MAX)?.with_context(|| {
        Failure::not_found(format!("cannot open '{shown}': no such file or directory"))
    })
}

/// Parses a text. Relative paths of the host start in `directory`.
fn parse(text: &str, directory: &Path) -> anyhow::Result<SandboxFile> {
    let mut document = parse_document(text).map_err(Failure::usage)?;
    // The output of `inspect` has the specification in a field.
    if let Some(config) = document.get_mut("config").filter(|config| config.is_object()) {
        document = config.take();
    }
    remove_nulls(&mut document);
    schema::check(&document).map_err(Failure::usage)?;
    let plain = PlainFields::deserialize(&document)?;
    let fields = ConvertedFields::deserialize(&document)?;
    convert(document, plain, fields, directory)
}

/// Parses JSON, if the text starts as an object of JSON, else YAML.
fn parse_document(text: &str) -> Result<Value, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| {
            format!("no JSON at line {}, column {}", error.line(), error.column())
        });
    }
    yaml::parse(text)
}

/// Removes fields without a value, as YAML writes them.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

fn convert(
    written: Value,
    mut plain: PlainFields,
    fields: ConvertedFields,
    directory: &Path,
) -> anyhow::Result<SandboxFile> {
    let manifest_digest = match &fields.image {
        Some(ImageField::Pinned { manifest_digest, .. }) => manifest_digest.clone(),
        _ => None,
    };
    guest(&mut plain.guest, directory)?;
    plain.main.rlimits.iter().chain(&plain.guest.rlimits).try_for_each(check_rlimit)?;
    // What `inspect` prints for a root without a disk.
    plain.upper_mib = plain.upper_mib.filter(|mib| *mib > 0);
    if let Some(mib) = plain.upper_mib {
        parse_size(&format!("{mib}M"))?;
    }
    let has_snapshot = fields.snapshot.is_some();
    let name = fields.name.as_deref().map(str::parse).transpose()?;
    Ok(SandboxFile {
        written,
        name,
        manifest_digest,
        env: fields.env.iter().map(variable).collect::<Result<_, _>>()?,
        labels: labels(&fields.labels)?,
        mounts: fields
            .mounts
            .clone()
            .into_iter()
            .map(|new| mount(new, directory))
            .collect::<anyhow::Result<_>>()?,
        net: fields.net.clone(),
        root: root(fields, directory)?,
        plain,
        has_snapshot,
    })
}

fn root(fields: ConvertedFields, directory: &Path) -> anyhow::Result<Option<RootArg>> {
    let roots = [fields.image.is_some(), fields.root_folder.is_some(), fields.root_image.is_some()];
    if roots.iter().filter(|is_given| **is_given).count() > 1 {
        let message = "only one of image, root_folder and root_image can be given";
        return Err(Failure::usage(message).into());
    }
    if let Some(PathField { path }) = fields.root_folder {
        return Ok(Some(RootArg::Directory(host_path(directory, &path))));
    }
    if let Some(DiskField { path, format, fstype }) = fields.root_image {
        let fstype = fstype.as_deref().map(parse_fstype).transpose()?;
        return Ok(Some(RootArg::Disk { path: host_path(directory, &path), format, fstype }));
    }
    let (ImageField::Typed(reference) | ImageField::Pinned { reference, .. }) = match fields.image {
        Some(image) => image,
        None => return Ok(None),
    };
    Ok(Some(match parse_root(reference.into())? {
        RootArg::Directory(path) => RootArg::Directory(host_path(directory, &path)),
        RootArg::Disk { path, format, fstype } => {
            RootArg::Disk { path: host_path(directory, &path), format, fstype }
        }
        other => other,
    }))
}

fn host_path(directory: &Path, path: &Text) -> Text {
    Text::from(directory.join(path.as_os_str()).into_os_string())
}

/// Parses a variable. A name alone is refused: a file means the same in every environment.
fn variable(text: &Text) -> Result<EnvVar, Failure> {
    if !text.as_bytes().contains(&b'=') {
        return Err(Failure::usage("a variable in 'env' is not of the form NAME=value"));
    }
    parse_env(text.as_os_str())
}

fn labels(labels: &BTreeMap<String, String>) -> Result<Vec<(String, String)>, Failure> {
    labels.iter().map(|(key, value)| parse_new_label(&format!("{key}={value}"))).collect()
}

/// Checks a mount as the options do.
fn mount(mut mount: Mount, directory: &Path) -> anyhow::Result<Mount> {
    mount.target = parse_target(mount.target.as_bytes())?;
    match &mut mount.source {
        Source::Bind { source } => *source = resolved(&host_path(directory, source))?,
        Source::Disk { source, fstype, .. } => {
            *source = resolved(&host_path(directory, source))?;
            *fstype = fstype.as_deref().map(parse_fstype).transpose()?;
        }
        Source::Volume { .. } | Source::Tmpfs { .. } => {}
    }
    Ok(mount)
}

/// Checks the setup of the guest as the options do.
fn guest(guest: &mut GuestSpec, directory: &Path) -> anyhow::Result<()> {
    if let Some(path) = guest.init.as_ref().and_then(|init| init.path.as_ref()) {
        guest_path(path.as_bytes())?;
    }
    if let RootDisk::Disk { path, .. } = &mut guest.root_disk {
        let disk = directory.join(&*path);
        *path = disk
            .canonicalize()
            .with_context(|| format!("cannot open the disk '{}'", disk.display()))?;
    }
    for path in &mut guest.directories {
        *path = guest_path(path.as_bytes())?;
    }
    guest.changes.iter_mut().try_for_each(|change| self::change(change, directory))
}

fn change(change: &mut GuestChange, directory: &Path) -> anyhow::Result<()> {
    match change {
        GuestChange::Script { .. } => {}
        GuestChange::Copy { from, to, .. } => {
            *from = source(host_path(directory, from).as_os_str(), SourceType::Any)?;
            *to = guest_path(to.as_bytes())?;
        }
        GuestChange::Write { path, .. }
        | GuestChange::Append { path, .. }
        | GuestChange::Link { path, .. }
        | GuestChange::MakeDirectory { path, .. }
        | GuestChange::Remove { path } => *path = guest_path(path.as_bytes())?,
    }
    Ok(())
}

fn check_rlimit(limit: &Rlimit) -> Result<(), Failure> {
    let hard = limit.hard.unwrap_or(u64::MAX);
    if limit.soft.unwrap_or(u64::MAX) <= hard {
        return Ok(());
    }
    let resource = &limit.resource;
    Err(Failure::usage(format!("the soft limit of '{resource}' is above the hard limit")))
}

impl SandboxFile {
    /// Returns the parts that no option expresses.
    pub(crate) fn imported(&self, default_net: &NetSpec) -> anyhow::Result<ImportedSpec> {
        let mut scripts = BTreeMap::new();
        let mut changes = Vec::new();
        for change in &self.plain.guest.changes {
            match change {
                GuestChange::Script { name, body } => {
                    let body = String::from_utf8(body.as_bytes().to_vec()).map_err(|_| {
                        Failure::usage(format!("the script '{}' is not UTF-8", escape(name)))
                    })?;
                    scripts.insert(name.clone(), body);
                }
                other => changes.push(other.clone()),
            }
        }
        Ok(ImportedSpec {
            command: self
                .plain
                .command
                .iter()
                .map(|word| OsString::from(word.as_os_str()))
                .collect(),
            net: self.net.as_ref().map(|net| self::net(net, default_net)).transpose()?,
            login: None,
            replace: false,
            rlimits: self.plain.guest.rlimits.clone(),
            scripts,
            changes,
        })
    }

    /// Returns warnings about fields that a new sandbox does not have as they are written.
    pub(crate) fn warnings(&self, spec: &Spec) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.has_snapshot && spec.snapshot.is_none() {
            warnings.push("ignored: 'snapshot' of the file; see --snapshot".to_owned());
        }
        if let (Some(written), Some(image)) = (&self.manifest_digest, spec.root.image()) {
            let found = image.manifest_digest.to_string();
            if found != *written {
                let (reference, written) = (escape(&image.reference), escape(written));
                warnings
                    .push(format!("the image '{reference}' is {found}; the file has {written}"));
            }
        }
        warnings
    }

    /// Returns whether the sandbox outlives its main command, if the file decides that.
    pub(crate) fn lasting(&self) -> Option<bool> {
        self.plain.lasting.or((!self.plain.command.is_empty()).then_some(false))
    }

    /// Returns the host name. That of another sandbox's `inspect` is its name, which does not hold
    /// for a sandbox with a name of its own.
    pub(crate) fn hostname(&self) -> Option<String> {
        let is_name = |host: &String| self.name.as_ref().is_some_and(|name| name.as_str() == host);
        self.plain.hostname.clone().filter(|host| !is_name(host))
    }
}

/// Returns a network: the written fields over those of a new sandbox.
pub(crate) fn net(written: &Value, default: &NetSpec) -> anyhow::Result<NetSpec> {
    let is_off = written["enabled"] == Value::Bool(false);
    let base = if is_off { &NetSpec::none() } else { default };
    let mut merged = serde_json::to_value(base)?;
    merge(&mut merged, written);
    let net = NetSpec::deserialize(merged);
    Ok(net.map_err(|error| Failure::usage(format!("the field 'net' is invalid: {error}")))?)
}

fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Object(Map::new())), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use libmsb::machine::EngineChoice;
    use serde_json::json;

    use super::*;

    fn parsed(text: &str) -> SandboxFile {
        parse(text, Path::new("")).unwrap()
    }

    fn error(text: &str) -> String {
        message(&parse(text, Path::new("")).unwrap_err())
    }

    #[test]
    fn both_forms_give_the_same_sandbox() {
        let yaml = "name: web\nimage: alpine\ncpus: 2\nmemory_mib: 256\nengine: qemu\nenv:\n- A=1=2\n\
                    labels:\n  team: ml\nnet:\n  ports: [\"8080:80\"]\nguest:\n  security: restricted\n\
                    command: [httpd, -f]\nworkdir:\n";
        let json = json!({
            "name": "web", "image": {"reference": "alpine"}, "cpus": 2, "memory_mib": 256,
            "engine": "qemu", "env": ["A=1=2"], "labels": {"team": "ml"},
            "net": {"ports": ["8080:80"]}, "guest": {"security": "restricted"},
            "command": ["httpd", "-f"]
        });
        let inspected = json!({"name": "web", "status": "Running", "config": json});
        for text in [yaml.to_owned(), json.to_string(), inspected.to_string()] {
            let file = parsed(&text);
            assert_eq!(file.name.as_ref().map(|name| name.as_str()), Some("web"));
            assert_eq!(file.root, Some(RootArg::Image("alpine".parse().unwrap())));
            let plain = &file.plain;
            assert_eq!((plain.cpus, plain.memory_mib), (Some(2), Some(256)));
            assert_eq!(plain.engine, Some(EngineChoice::Qemu));
            assert!(plain.guest.security.is_restricted());
            assert_eq!(file.env[0].value, "1=2");
            assert_eq!(file.labels, [("team".to_owned(), "ml".to_owned())]);
            let imported = file.imported(&NetSpec::public()).unwrap();
            let net = imported.net.unwrap();
            assert_eq!((net.ports.len(), net.policy), (1, NetSpec::public().policy));
            assert_eq!(imported.command, ["httpd", "-f"]);
            assert_eq!(file.lasting(), Some(false));
        }
        assert_eq!(parsed("image: alpine").lasting(), None);
        assert_eq!(parsed("command: [a]\nlasting: true").lasting(), Some(true));
    }

    #[test]
    fn paths_start_in_the_directory_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("src")).unwrap();
        let text = "image: ./root\nmounts:\n- {target: /src//x/, kind: bind, source: src, read_only: true}\n\
                    guest:\n  changes:\n  - {kind: copy, from: ./src, to: /y}\n";
        let file = parse(text, &real).unwrap();
        let root = real.join("./root").into_os_string();
        assert_eq!(file.root, Some(RootArg::Directory(root.into())));
        let source = Source::Bind { source: real.join("src").into_os_string().into() };
        let mount = Mount { read_only: true, ..Mount::new("/src/x".into(), source) };
        assert_eq!(file.mounts, [mount]);
        assert!(matches!(
            &file.plain.guest.changes[..],
            [GuestChange::Copy { from, .. }] if from.as_bytes().starts_with(b"/")
        ));
    }

    #[test]
    fn a_network_has_the_defaults_of_a_new_sandbox() {
        let spec = |text: &str| {
            let file = parsed(text);
            file.imported(&NetSpec::public()).unwrap().net.unwrap()
        };
        assert_eq!(spec("net: {enabled: false}"), NetSpec::none());
        assert_eq!(spec("net: {enabled: true}"), NetSpec::public());
        let rules = spec("net:\n  policy:\n    rules: [\"allow@example.com:tcp:443\"]\n");
        assert_eq!(rules.policy.rules.len(), 1);
        assert_eq!(rules.policy.egress, NetSpec::public().policy.egress);
        for text in ["net: {policy: {rules: [\"allow@moon\"]}}", "net: {ports: [\"x\"]}"] {
            assert!(parsed(text).imported(&NetSpec::public()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_no_option_takes_is_refused() {
        for (text, why) in [
            ("image: alpine\nroot_folder: {path: /x}", "only one of image"),
            ("env: [SECRET]", "a variable in 'env' is not of the form NAME=value"),
            ("env: [MSB_X=1]", "reserved"),
            ("labels: {sandbox.x: a}", "reserved"),
            ("name: a/b", "a/b"),
            ("upper_mib: 1", "at least"),
            ("mounts: [{target: /proc/x, kind: tmpfs}]", "cannot mount at '/proc/x'"),
            ("mounts: [{target: /x, kind: bind, source: /nowhere}]", "cannot find '/nowhere'"),
            ("guest: {init: {path: init}}", "not absolute"),
            ("guest: {rlimits: [{resource: nofile, soft: 2, hard: 1}]}", "above the hard limit"),
            ("guest: {changes: [{kind: remove, path: /}]}", "root directory"),
            ("cpu: 1", "the field 'cpu' is unknown"),
            ("{\"cpus\": 1", "no JSON at line 1"),
            ("just text", "must be of the type object"),
        ] {
            let error = error(text);
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(!error("env: [SECRET]").contains("SECRET"));
    }
}
