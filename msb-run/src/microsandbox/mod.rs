//! Stored configurations of microsandbox 0.5, the input of `msb create --from-microsandbox`.
//!
//! The format is that of its catalog, and of `config` in the output of its `inspect --format json`:
//! 0.5.2 to 0.5.5. No field is ignored silently. It is converted, or it is unsupported, which is an
//! error unless the user names it with `--leave-out`. A field that limits the sandbox, and a field
//! that is not known here, cannot be left out. Values are never printed: some are secrets.

/// Translation into the terms of `msb create`.
mod arguments;
/// The way back: specifications in the form of microsandbox.
pub(crate) mod export;
/// Parsing of single fields, and the list of unsupported ones.
mod fields;
/// Mounts.
mod mounts;
/// The network.
mod network;
/// Changes of the files of the root.
mod patches;
/// TLS interception and secrets.
mod secrets;
/// The parsed fields.
mod stored_config;

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::state::write;
use msb_wire::exec::{RESOURCES, Rlimit};
use serde::Deserialize;
use serde_json::{Map, Value};

pub(crate) use self::arguments::Import;
use self::fields::{Omission, StringPairs, UnsupportedField, is_set, parse, take_field};
pub(crate) use self::secrets::GivenValues;
use self::stored_config::StoredConfig;
use crate::mounts::{parse_format, parse_fstype};
use crate::pull::{PullPolicy, RegistryLogin};
use crate::root::RootArg;

/// Longest file, in bytes. An environment of one MiB fits.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The name of a file that stands for standard input.
pub(crate) const STDIN: &str = "-";

/// Default interval of metric samples in microsandbox, in milliseconds. The default of msb replaces
/// it.
const SAMPLE_INTERVAL_MS: u64 = 1000;

/// Reads a stored configuration from a file and translates it. Its unsupported fields are those of
/// `left_out`, or it is an error. `is_typed` returns whether the user has given an option.
pub(crate) fn import(
    path: &Path,
    left_out: &[String],
    is_typed: impl Fn(&str) -> bool,
) -> anyhow::Result<Import> {
    let is_stdin = path == Path::new(STDIN);
    let file = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
    let shown = escape(&file);
    let invalid = |why: String| {
        Failure::failed(format!("cannot parse '{shown}': {why}"))
            .hint("write one with microsandbox 0.5: msb inspect NAME --format json")
    };
    let document: Value = if is_stdin {
        read_stdin()?
    } else {
        let document = write::read_json(path, FILE_BYTES_MAX)?;
        document.with_context(|| {
            Failure::not_found(format!("cannot open '{shown}': no such file or directory"))
        })?
    };
    let Value::Object(mut fields) = document else {
        return Err(invalid("not a JSON object".to_owned()).into());
    };
    // The output of `inspect` has the configuration in a field.
    if let Some(Value::Object(config)) = fields.remove("config") {
        fields = config;
    }
    let stored = stored(fields).map_err(invalid)?;
    fields::check(&stored.unsupported, left_out, &shown)?;
    let mut import = arguments::translate(stored, is_typed)?;
    if !is_stdin {
        // A file stays, and nothing says that it is private.
        let values = std::mem::take(&mut import.secret_values);
        import.warnings.extend(values.0.keys().map(|name| {
            format!(
                "ignored: the value of secret {name}; --secret-from or the environment gives it"
            )
        }));
    }
    Ok(import)
}

/// Reads a document from standard input. The error has no values, which may be secrets.
fn read_stdin() -> anyhow::Result<Value> {
    let mut bytes = Vec::new();
    let mut input = std::io::stdin().lock().take(FILE_BYTES_MAX + 1);
    input.read_to_end(&mut bytes).context("cannot read standard input")?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("standard input is longer than {FILE_BYTES_MAX} bytes");
        return Err(Failure::failed(message).into());
    }
    let document = serde_json::from_slice(&bytes);
    Ok(document.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Failure::failed(format!(
            "cannot parse 'standard input': no JSON at line {line}, column {column}"
        ))
    })?)
}

/// Converts all fields, one after the other.
fn stored(mut fields: Map<String, Value>) -> Result<StoredConfig, String> {
    let mut stored = StoredConfig {
        name: take_field(&mut fields, "name")?,
        manifest_digest: take_field(&mut fields, "manifest_digest")?,
        cpus: take_field(&mut fields, "cpus")?,
        memory_mib: take_field(&mut fields, "memory_mib")?,
        workdir: take_field(&mut fields, "workdir")?,
        user: take_field(&mut fields, "user")?,
        hostname: take_field(&mut fields, "hostname")?,
        shell: take_field(&mut fields, "shell")?,
        init: take_field(&mut fields, "init")?,
        scripts: take_field(&mut fields, "scripts")?.unwrap_or_default(),
        env: take_field::<StringPairs>(&mut fields, "env")?.unwrap_or_default().0,
        labels: take_field(&mut fields, "labels")?.unwrap_or_default(),
        replace: take_field(&mut fields, "replace_existing")?.unwrap_or_default(),
        login: login(&mut fields)?,
        ..StoredConfig::default()
    };
    if stored.cpus == Some(0) || stored.memory_mib == Some(0) {
        return Err("cpus and memory cannot be 0".to_owned());
    }
    for part in ["entrypoint", "cmd"] {
        let words: Option<Vec<String>> = take_field(&mut fields, part)?;
        stored.command.extend(words.into_iter().flatten().map(OsString::from));
    }
    choices(&mut stored, &mut fields)?;
    image(&mut stored, &mut fields)?;
    policy(&mut stored, &mut fields)?;
    limits(&mut stored, &mut fields)?;
    samples(&mut stored, &mut fields)?;
    mounts::mounts(&mut stored, &mut fields)?;
    patches(&mut stored, &mut fields)?;
    if let Some(fields) = take_field(&mut fields, "network")? {
        let (network, values) = network::network(fields, &mut stored.unsupported)?;
        (stored.network, stored.secret_values) = (Some(network), values);
    }
    classify_remaining(&mut stored, fields);
    Ok(stored)
}

/// Converts the fields that select one of several values. Another value is an error.
fn choices(stored: &mut StoredConfig, fields: &mut Map<String, Value>) -> Result<(), String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Profile {
        Default,
        Restricted,
    }
    #[derive(Deserialize)]
    enum Pull {
        Always,
        IfMissing,
        Never,
    }
    let profile = take_field(fields, "security_profile")?;
    stored.restricted = matches!(profile, Some(Profile::Restricted));
    stored.pull = take_field(fields, "pull_policy")?.map(|pull| match pull {
        Pull::Always => PullPolicy::Always,
        Pull::IfMissing => PullPolicy::IfMissing,
        Pull::Never => PullPolicy::Never,
    });
    Ok(())
}

/// Converts the image: `{"Oci":"python"}` in 0.5.2,
/// `{"Oci":{"reference":"python","upper_size_mib":8192}}` in 0.5.5; else `{"Bind":"/root"}` or
/// `{"DiskImage":{"path":"/root.qcow2","format":"Qcow2","fstype":"ext4"}}`.
fn image(stored: &mut StoredConfig, fields: &mut Map<String, Value>) -> Result<(), String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Oci {
        reference: String,
        upper_size_mib: Option<u64>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Source {
        Reference(String),
        Oci(Oci),
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Disk {
        path: String,
        format: String,
        fstype: Option<String>,
    }
    let Some(mut image) = take_field::<Map<String, Value>>(fields, "image")? else {
        return Ok(());
    };
    match take_field(&mut image, "Oci")? {
        Some(Source::Reference(reference)) => stored.image = Some(reference),
        Some(Source::Oci(oci)) => {
            stored.image = Some(oci.reference);
            stored.upper_mib = oci.upper_size_mib;
        }
        None => {}
    }
    if let Some(directory) = take_field::<String>(&mut image, "Bind")? {
        stored.root_path = Some(RootArg::Directory(directory.as_str().into()));
    }
    if let Some(disk) = take_field::<Disk>(&mut image, "DiskImage")? {
        let fstype = disk.fstype.as_deref().map(parse_fstype).transpose();
        match parse_format(&disk.format.to_lowercase()) {
            Ok(format) => {
                stored.root_path = Some(RootArg::Disk {
                    path: disk.path.as_str().into(),
                    format,
                    fstype: fstype.map_err(|error| error.to_string())?,
                });
            }
            Err(_) => stored.unsupported.push(UnsupportedField::new(
                "image",
                format!("a disk of the format '{}'", escape(&disk.format)),
                Omission::Allowed,
            )),
        }
    }
    for kind in image.keys() {
        let why = format!("a root file system of the kind '{}'", escape(kind));
        stored.unsupported.push(UnsupportedField::new("image", why, Omission::Allowed));
    }
    Ok(())
}

/// Converts the credentials: `"Anonymous"`, or `{"Basic":{"username":"ann","password":"…"}}`.
fn login(fields: &mut Map<String, Value>) -> Result<Option<RegistryLogin>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Basic {
        username: String,
        password: String,
    }
    #[derive(Deserialize)]
    enum Auth {
        Anonymous,
        Basic(Basic),
    }
    Ok(match take_field(fields, "registry_auth")? {
        None | Some(Auth::Anonymous) => None,
        Some(Auth::Basic(Basic { username, password })) => {
            Some(RegistryLogin { username, password })
        }
    })
}

/// Converts the timeouts. 0.5 spells the fields for seconds in two ways.
fn policy(stored: &mut StoredConfig, fields: &mut Map<String, Value>) -> Result<(), String> {
    let Some(mut policy) = take_field::<Map<String, Value>>(fields, "policy")? else {
        return Ok(());
    };
    let idle = take_field(&mut policy, "idle_timeout_secs")?;
    stored.idle_timeout_s = idle.or(take_field(&mut policy, "idle_timeout")?);
    let longest = take_field(&mut policy, "max_duration_secs")?;
    stored.max_duration_s = longest.or(take_field(&mut policy, "max_duration")?);
    // A sandbox created from a configuration is always persistent.
    policy.remove("ephemeral");
    stored.unsupported.extend(fields::unknown("policy", &policy));
    Ok(())
}

/// Converts the resource limits, which hold for all commands.
fn limits(stored: &mut StoredConfig, fields: &mut Map<String, Value>) -> Result<(), String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct StoredRlimit {
        resource: String,
        soft: u64,
        hard: u64,
    }
    let limits: Vec<Value> = take_field(fields, "rlimits")?.unwrap_or_default();
    for (index, limit) in limits.into_iter().enumerate() {
        let path = format!("rlimits.{index}");
        let limit: StoredRlimit = parse(limit, &path)?;
        let resource = limit.resource.to_ascii_lowercase();
        if !RESOURCES.contains(&resource.as_str()) || limit.soft > limit.hard {
            return Err(format!("field '{path}' has an invalid value"));
        }
        // `RLIM_INFINITY` of Linux.
        let value = |limit: u64| Some(limit).filter(|limit| *limit != u64::MAX);
        let (soft, hard) = (value(limit.soft), value(limit.hard));
        stored.rlimits.push(Rlimit { resource, soft, hard });
    }
    Ok(())
}

/// Converts the settings of metric samples.
fn samples(stored: &mut StoredConfig, fields: &mut Map<String, Value>) -> Result<(), String> {
    let interval: Option<u64> = take_field(fields, "metrics_sample_interval_ms")?;
    let disabled: Option<bool> = take_field(fields, "disable_metrics_sample")?;
    stored.sample_interval_ms = match (disabled, interval) {
        (Some(true), _) => Some(0),
        (_, Some(SAMPLE_INTERVAL_MS)) => None,
        (_, interval) => interval,
    };
    Ok(())
}

/// Converts the changes of files. Those of a directory that is the root have been made in it.
fn patches(stored: &mut StoredConfig, fields: &mut Map<String, Value>) -> Result<(), String> {
    let patches: Vec<Value> = take_field(fields, "patches")?.unwrap_or_default();
    if stored.root_path.is_some() && !patches.is_empty() {
        stored.unused.push("'patches': the root has them already".to_owned());
        return Ok(());
    }
    for (index, patch) in patches.into_iter().enumerate() {
        stored.patches.push(parse(patch, &format!("patches.{index}"))?);
    }
    Ok(())
}

/// Records the remaining fields as unused if they concern microsandbox's own process, else as
/// unsupported. Ignores empty values.
fn classify_remaining(stored: &mut StoredConfig, mut fields: Map<String, Value>) {
    if fields.remove("log_level").is_some_and(|value| is_set(&value)) {
        stored.unused.push("'log_level'".to_owned());
    }
    stored.unsupported.extend(fields::unknown("", &fields));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: Value) -> Result<StoredConfig, String> {
        let Value::Object(fields) = json else { panic!("no object") };
        stored(fields)
    }

    #[test]
    fn the_old_form_of_a_mount_keeps_its_options() {
        let mount = |json: Value| {
            let stored = parsed(serde_json::json!({ "mounts": [json] })).unwrap();
            let unsupported = stored.unsupported.iter().map(ToString::to_string).collect();
            [stored.volumes, stored.tmpfs, stored.disks, unsupported].concat().join("|")
        };
        let old = serde_json::json!({"type":"Bind","host":"/data","guest":"/d","readonly":true});
        assert_eq!(mount(old), "/data:/d:ro");
        let new = serde_json::json!({"type":"Bind","host":"/data","guest":"/d",
            "options":{"readonly":false,"noexec":true,"nosuid":false,"nodev":false}});
        assert_eq!(mount(new), "/data:/d:noexec");
        let named = serde_json::json!({"type":"Named","name":"cache","guest":"/c"});
        assert_eq!(mount(named), "cache:/c");
        let path = serde_json::json!({"type":"Named","name":"/etc","guest":"/c"});
        assert_eq!(mount(path), "mounts.0 (named /etc:/c: not a known kind of mount)");
        let memory =
            serde_json::json!({"type":"Tmpfs","guest":"/m","size_mib":64,"readonly":false});
        assert_eq!(mount(memory), "/m:64M");
        let mirrored = serde_json::json!({"type":"Bind","host":"/h","guest":"/g",
            "stat_virtualization":"strict","host_permissions":"mirror"});
        assert_eq!(mount(mirrored), "mounts.0 (bind /h:/g: host permissions 'mirror')");
        let disk = |format: &str| {
            mount(serde_json::json!({"type":"DiskImage","host":"/d","guest":"/g","format":format,
                "fstype":"ext4",
                "options":{"readonly":true,"noexec":false,"nosuid":false,"nodev":false}}))
        };
        assert_eq!(disk("Qcow2"), "/d:/g:format=qcow2,fstype=ext4,ro");
        assert_eq!(disk("Vmdk"), "mounts.0 (diskimage /d:/g:ro: format 'Vmdk')");
        let old = serde_json::json!({"type":"DiskImage","host":"/d","guest":"/g","format":"Raw",
            "fstype":null,"readonly":false});
        assert_eq!(mount(old), "/d:/g:format=raw");
    }

    #[test]
    fn both_forms_of_an_image_are_read_and_other_roots_are_named() {
        let old = parsed(serde_json::json!({"image":{"Oci":"python"}})).unwrap();
        assert_eq!(old.image.as_deref(), Some("python"));
        let new = serde_json::json!({"image":{"Oci":{"reference":"python","upper_size_mib":8192}}});
        let new = parsed(new).unwrap();
        assert_eq!((new.image.as_deref(), new.upper_mib), (Some("python"), Some(8192)));
        let bind = parsed(serde_json::json!({"image":{"Bind":"/srv/root"}})).unwrap();
        assert_eq!(bind.root_path, Some(RootArg::Directory("/srv/root".into())));
        let disk = |format: &str| {
            let disk = serde_json::json!({"path":"/srv/root","format":format,"fstype":"xfs"});
            parsed(serde_json::json!({"image":{"DiskImage":disk}})).unwrap()
        };
        let root = RootArg::Disk {
            path: "/srv/root".into(),
            format: parse_format("qcow2").unwrap(),
            fstype: Some("xfs".to_owned()),
        };
        assert_eq!(disk("Qcow2").root_path, Some(root));
        let unsupported = |stored: StoredConfig| {
            stored.unsupported.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(unsupported(disk("Vmdk")), ["image (a disk of the format 'Vmdk')"]);
        let other = parsed(serde_json::json!({"image":{"Tape":"/dev/st0"}})).unwrap();
        assert_eq!(unsupported(other), ["image (a root file system of the kind 'Tape')"]);
    }

    #[test]
    fn fields_of_another_sort_are_refused_without_showing_them() {
        for json in [
            serde_json::json!({"cpus":"secret"}),
            serde_json::json!({"env":"secret"}),
            serde_json::json!({"cpus":300}),
            serde_json::json!({"cpus":0}),
            serde_json::json!({"memory_mib":0}),
            serde_json::json!({"mounts":[{"guest":"secret"}]}),
        ] {
            let error = parsed(json.clone()).unwrap_err();
            assert!(!error.contains("secret"), "{json}: {error}");
        }
    }

    #[test]
    fn a_nonempty_unknown_field_is_unsupported() {
        let stored = parsed(serde_json::json!({
            "init": {"cmd": "/sbin/init", "args": ["-x"], "env": [["A", "1"]]},
            "scripts": {}, "patches": [], "shell": "/bin/sh",
            "security_profile": "restricted", "log_level": "debug", "vsock": 3, "jail": false
        }));
        let stored = stored.unwrap();
        assert!(stored.restricted);
        let init = stored.init.unwrap();
        assert_eq!((&*init.cmd, init.args), ("/sbin/init", vec!["-x".to_owned()]));
        assert_eq!(init.env.0, [("A".to_owned(), "1".to_owned())]);
        let unsupported: Vec<_> = stored.unsupported.iter().map(ToString::to_string).collect();
        assert_eq!(unsupported, ["jail (not known)", "vsock (not known)"]);
        assert_eq!(stored.unused, ["'log_level'"]);
    }

    #[test]
    fn a_value_with_another_meaning_is_an_error() {
        for (json, why) in [
            (serde_json::json!({"security_profile": "paranoid"}), "field 'security_profile' has"),
            (serde_json::json!({"pull_policy": "Daily"}), "field 'pull_policy' has"),
            (serde_json::json!({"init": {"program": "/x"}}), "unknown field 'init.program'"),
            (serde_json::json!({"patches": [{"Chmod": {"path": "/x"}}]}), "field 'patches.0' has"),
            (
                serde_json::json!({"mounts": [{"type": "Bind", "guest": "/g", "quota_mib": 1}]}),
                "unknown field 'mounts.0.quota_mib'",
            ),
            (
                serde_json::json!({"rlimits": [{"resource": "Nofile", "soft": 2, "hard": 1}]}),
                "field 'rlimits.0' has",
            ),
        ] {
            let error = parsed(json).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn only_a_field_that_limits_nothing_can_be_left_out() {
        let stored = parsed(serde_json::json!({
            "mounts": [{"type": "DiskImage", "host": "/d", "guest": "/g", "format": "Vmdk"}],
            "network": {"max_connections": 0}
        }));
        let unsupported = stored.unwrap().unsupported;
        let left_out = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let failure = fields::check(&unsupported, &names, "FILE").unwrap_err();
            format!("{failure}|{}", failure.hint_text().unwrap_or_default())
        };
        let remedy = "set another limit in 'FILE'";
        assert_eq!(
            left_out(&["mounts.0"]),
            format!(
                "cannot import 'FILE': unsupported fields: network.max_connections (not from 1 to \
                 65536)|{remedy}"
            )
        );
        assert_eq!(
            left_out(&["mounts.0", "network.max_connections"]),
            format!(
                "cannot leave out 'network.max_connections': the sandbox would be less restricted \
                 than the stored one|{remedy}"
            )
        );
        assert_eq!(
            left_out(&["env"]),
            "cannot leave out 'env': not an unsupported field|\
             the unsupported fields are mounts.0,network.max_connections"
        );
    }
}
