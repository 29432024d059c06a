//! Stored configurations of microsandbox 0.5: what `msb create --from-microsandbox` reads.
//!
//! The form is that of its catalog, and of `config` in the output of its `inspect --format json`: 0.5.2 to 0.5.5. Nothing in
//! it is passed over in silence. What a sandbox of ours cannot have yet is named, and refused unless the user says to leave
//! it out; what has no meaning here is named in a warning. Values are never printed: some are secrets.

mod network;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use anyhow::Context;
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::net::NetSpec;
use libmsb::state::write;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::mounts::{parse_format, parse_fstype};
use crate::root::TypedRoot;

/// Longest file, in bytes. A megabyte of environment fits.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Fields that are about microsandbox's own process, and change nothing in the guest.
const WITHOUT_MEANING: [&str; 6] = [
    "log_level",
    "metrics_sample_interval_ms",
    "disable_metrics_sample",
    "manifest_digest",
    "pull_policy",
    "registry_auth",
];

/// What a stored sandbox is, in our terms.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Stored {
    /// Its name.
    pub(crate) name: Option<String>,
    /// Its image's reference.
    pub(crate) image: Option<String>,
    /// The folder or disk of the host that is its root, in place of an image.
    pub(crate) root_path: Option<TypedRoot>,
    /// Virtual processors.
    pub(crate) cpus: Option<u8>,
    /// Memory in MiB.
    pub(crate) memory_mib: Option<u32>,
    /// Size of the writable disk in MiB.
    pub(crate) upper_mib: Option<u64>,
    /// Mounts, in the form of `--mount-dir`.
    pub(crate) folders: Vec<String>,
    /// Mounts, in the form of `--volume`.
    pub(crate) volumes: Vec<String>,
    /// Mounts, in the form of `--mount-disk`.
    pub(crate) disks: Vec<String>,
    /// Mounts, in the form of `--tmpfs`.
    pub(crate) tmpfs: Vec<String>,
    /// What its first process is, if it is not ours.
    pub(crate) init: Option<Init>,
    /// Whether commands have fewer rights than usual.
    pub(crate) restricted: bool,
    /// Shell of the sandbox.
    pub(crate) shell: Option<String>,
    /// The network, if it says anything about one.
    pub(crate) network: Option<NetSpec>,
    /// Variables.
    pub(crate) env: Vec<(String, String)>,
    /// Labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Directory of commands.
    pub(crate) workdir: Option<String>,
    /// User of commands.
    pub(crate) user: Option<String>,
    /// Host name.
    pub(crate) hostname: Option<String>,
    /// Entrypoint and arguments, the image's already resolved. Empty: what the image says.
    pub(crate) command: Vec<OsString>,
    /// Seconds.
    pub(crate) idle_timeout_s: Option<u64>,
    /// Seconds.
    pub(crate) max_duration_s: Option<u64>,
    /// What a sandbox of ours cannot have, by field and in words.
    pub(crate) lacking: Vec<String>,
    /// What was in the file and has no meaning here.
    pub(crate) unused: Vec<String>,
}

/// The first process of the guest.
#[derive(Debug, PartialEq, Deserialize)]
pub(crate) struct Init {
    /// A path in the guest, or `auto`.
    pub(crate) program: String,
    /// Its arguments, but for its name.
    #[serde(default)]
    pub(crate) args: Vec<String>,
    /// Its variables.
    #[serde(default)]
    pub(crate) env: Pairs,
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Stored> {
    let shown = path.display().to_string();
    let wrong = |why: String| {
        Failure::failed(format!("cannot understand '{}': {why}", escape(&shown))).hint(
            "it must be a stored configuration of microsandbox 0.5: msb inspect NAME --format json",
        )
    };
    let document: Option<Value> = write::read_json(path, FILE_BYTES_MAX)?;
    let document = document
        .with_context(|| Failure::not_found(format!("there is no file '{}'", escape(&shown))))?;
    let Value::Object(mut fields) = document else {
        return Err(wrong("it is no object".to_owned()).into());
    };
    // The output of `inspect` has it in a field.
    if let Some(Value::Object(config)) = fields.remove("config") {
        fields = config;
    }
    Ok(stored(fields).map_err(wrong)?)
}

impl Stored {
    /// Its root, if it names one.
    pub(crate) fn root(&self) -> Result<Option<TypedRoot>, Failure> {
        if self.root_path.is_some() {
            return Ok(self.root_path.clone());
        }
        let image = self.image.as_deref().map(str::parse).transpose()?;
        Ok(image.map(TypedRoot::Image))
    }
}

/// The fields, one after the other, until none is left.
fn stored(mut fields: Map<String, Value>) -> Result<Stored, String> {
    let mut stored = Stored {
        name: take(&mut fields, "name")?,
        cpus: take(&mut fields, "cpus")?,
        memory_mib: take(&mut fields, "memory_mib")?,
        workdir: take(&mut fields, "workdir")?,
        user: take(&mut fields, "user")?,
        hostname: take(&mut fields, "hostname")?,
        shell: take(&mut fields, "shell")?,
        init: take(&mut fields, "init")?,
        restricted: take::<String>(&mut fields, "security")?.is_some_and(|is| is == "restricted"),
        env: take::<Pairs>(&mut fields, "env")?.unwrap_or_default().0,
        labels: take::<Pairs>(&mut fields, "labels")?
            .unwrap_or_default()
            .0
            .into_iter()
            .collect(),
        ..Stored::default()
    };
    if stored.cpus == Some(0) || stored.memory_mib == Some(0) {
        return Err("cpus and memory cannot be 0".to_owned());
    }
    for part in ["entrypoint", "cmd"] {
        let words: Option<Vec<String>> = take(&mut fields, part)?;
        stored
            .command
            .extend(words.into_iter().flatten().map(OsString::from));
    }
    image(&mut stored, &mut fields)?;
    policy(&mut stored, &mut fields)?;
    mounts(&mut stored, &mut fields)?;
    if let Some(fields) = take(&mut fields, "network")? {
        stored.network = Some(network::network(fields, &mut stored.lacking)?);
    }
    the_rest(&mut stored, fields);
    Ok(stored)
}

/// Takes a field out; `None` when it is missing or null.
fn take<T: for<'a> Deserialize<'a>>(
    fields: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<T>, String> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        // The error of the parser would show the value, which may be a secret.
        Some(value) => serde_json::from_value(value)
            .map(Some)
            .map_err(|_| format!("its field '{}' is not what it should be", escape(name))),
    }
}

/// Pairs of strings: as an array of arrays, or as an object.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Pairs(pub(crate) Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Pairs, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Array(Vec<(String, String)>),
            Object(BTreeMap<String, String>),
        }
        Ok(Pairs(match Form::deserialize(deserializer)? {
            Form::Array(pairs) => pairs,
            Form::Object(pairs) => pairs.into_iter().collect(),
        }))
    }
}

/// `{"Oci":"python"}` in 0.5.2, `{"Oci":{"reference":"python","upper_size_mib":8192}}` in 0.5.5; else `{"Bind":"/root"}` or
/// `{"DiskImage":{"path":"/root.qcow2","format":"Qcow2","fstype":"ext4"}}`.
fn image(stored: &mut Stored, fields: &mut Map<String, Value>) -> Result<(), String> {
    #[derive(Deserialize)]
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
    struct Disk {
        path: String,
        format: String,
        fstype: Option<String>,
    }
    let Some(mut image) = take::<Map<String, Value>>(fields, "image")? else {
        return Ok(());
    };
    match take(&mut image, "Oci")? {
        Some(Source::Reference(reference)) => stored.image = Some(reference),
        Some(Source::Oci(oci)) => {
            stored.image = Some(oci.reference);
            stored.upper_mib = oci.upper_size_mib;
        }
        None => {}
    }
    if let Some(folder) = take::<String>(&mut image, "Bind")? {
        stored.root_path = Some(TypedRoot::Folder(folder.as_str().into()));
    }
    if let Some(disk) = take::<Disk>(&mut image, "DiskImage")? {
        let fstype = disk.fstype.as_deref().map(parse_fstype).transpose();
        match parse_format(&disk.format.to_lowercase()) {
            Ok(format) => {
                stored.root_path = Some(TypedRoot::Disk {
                    path: disk.path.as_str().into(),
                    format,
                    fstype: fstype.map_err(|error| error.to_string())?,
                });
            }
            Err(_) => stored.lacking.push(format!(
                "image: a disk of the format '{}'",
                escape(&disk.format)
            )),
        }
    }
    for kind in image.keys() {
        let kind = escape(kind);
        stored
            .lacking
            .push(format!("image: a root file system of the kind '{kind}'"));
    }
    Ok(())
}

/// When it ends by itself. 0.5 has seconds in two spellings.
fn policy(stored: &mut Stored, fields: &mut Map<String, Value>) -> Result<(), String> {
    let Some(mut policy) = take::<Map<String, Value>>(fields, "policy")? else {
        return Ok(());
    };
    let idle = take(&mut policy, "idle_timeout_secs")?;
    stored.idle_timeout_s = idle.or(take(&mut policy, "idle_timeout")?);
    let longest = take(&mut policy, "max_duration_secs")?;
    stored.max_duration_s = longest.or(take(&mut policy, "max_duration")?);
    // A sandbox that is made by a configuration stays until it is removed.
    policy.remove("ephemeral");
    policy.retain(|_, value| says_something(value));
    let names = policy
        .keys()
        .map(|name| format!("policy: '{}'", escape(name)));
    stored.lacking.extend(names);
    Ok(())
}

/// A mount. In 0.5.2 `readonly` stands beside the rest, since 0.5.4 it is one of `options`, and those count then.
#[derive(Debug, PartialEq, Deserialize)]
struct Mount {
    r#type: String,
    guest: String,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    size_mib: Option<u64>,
    #[serde(default)]
    readonly: bool,
    #[serde(default)]
    options: Option<MountOptions>,
    #[serde(default)]
    stat_virtualization: Option<String>,
    #[serde(default)]
    host_permissions: Option<String>,
    #[serde(default)]
    format: Option<String>,
    #[serde(default)]
    fstype: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct MountOptions {
    readonly: bool,
    noexec: bool,
    nosuid: bool,
    nodev: bool,
}

impl Mount {
    fn options(&self) -> MountOptions {
        self.options.unwrap_or(MountOptions {
            readonly: self.readonly,
            ..MountOptions::default()
        })
    }

    fn source(&self) -> Option<&str> {
        self.host.as_deref().or(self.name.as_deref())
    }

    /// With its options behind it, as they are typed.
    fn typed(&self, what: &str) -> String {
        self.typed_with(what, Vec::new())
    }

    /// As [`Mount::typed`], with these options before the others.
    fn typed_with(&self, what: &str, mut all: Vec<String>) -> String {
        let options = self.options();
        let named = [
            (options.readonly, "ro"),
            (options.noexec, "noexec"),
            (options.nosuid, "nosuid"),
            (options.nodev, "nodev"),
        ];
        let given = named.iter().filter(|(given, _)| *given);
        all.extend(given.map(|(_, name)| (*name).to_owned()));
        if all.is_empty() {
            return what.to_owned();
        }
        format!("{what}:{}", all.join(","))
    }

    /// As a disk, if it is one of a format that we have.
    fn disk(&self) -> Option<String> {
        let format = self.format.as_deref()?.to_lowercase();
        parse_format(&format).ok()?;
        let fstype = self.fstype.iter().map(|name| format!("fstype={name}"));
        let said = [format!("format={format}")].into_iter().chain(fstype);
        let what = format!("{}:{}", self.host.as_deref()?, self.guest);
        Some(self.typed_with(&what, said.collect()))
    }

    /// For people.
    fn shown(&self) -> String {
        let source = self.source().map(|source| format!("{source}:"));
        let what = format!("{}{}", source.unwrap_or_default(), self.guest);
        let kind = self.r#type.to_lowercase();
        escape(&format!("{kind} {}", self.typed(&what))).into_owned()
    }
}

/// Mounts of folders, volumes, disks and memory are taken over, disks of VMware and other ways to show owners and modes
/// are not.
fn mounts(stored: &mut Stored, fields: &mut Map<String, Value>) -> Result<(), String> {
    let mounts: Vec<Mount> = take(fields, "mounts")?.unwrap_or_default();
    for mount in mounts {
        let unusual = |policy: &Option<String>, usual: &str| {
            policy.as_deref().is_some_and(|policy| policy != usual)
        };
        let plain = !unusual(&mount.stat_virtualization, "strict")
            && !unusual(&mount.host_permissions, "private");
        match (mount.r#type.as_str(), mount.source(), plain) {
            ("Bind", Some(source), true) => {
                let typed = mount.typed(&format!("{source}:{}", mount.guest));
                stored.folders.push(typed);
            }
            // A name that looks like a path would be taken for one.
            ("Named", Some(source), true) if !source.starts_with(['/', '.']) => {
                let typed = mount.typed(&format!("{source}:{}", mount.guest));
                stored.volumes.push(typed);
            }
            ("Tmpfs", None, _) => {
                let size = mount.size_mib.map(|mib| format!(":{mib}M"));
                let typed = format!("{}{}", mount.guest, size.unwrap_or_default());
                stored.tmpfs.push(mount.typed(&typed));
            }
            ("DiskImage", _, true) => match mount.disk() {
                Some(typed) => stored.disks.push(typed),
                None => stored.lacking.push(format!("mounts: {}", mount.shown())),
            },
            _ => stored.lacking.push(format!("mounts: {}", mount.shown())),
        }
    }
    Ok(())
}

/// Whether a value is more than nothing.
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => fields.values().any(says_something),
        Value::String(text) => !text.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

/// What is left is lacking, if it says anything; but what is about microsandbox's own process.
fn the_rest(stored: &mut Stored, fields: Map<String, Value>) {
    for (name, value) in fields {
        if !says_something(&value) {
            continue;
        }
        let shown = format!("'{}'", escape(&name));
        if WITHOUT_MEANING.contains(&name.as_str()) {
            stored.unused.push(shown);
        } else {
            stored.lacking.push(shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: Value) -> Result<Stored, String> {
        let Value::Object(fields) = json else {
            panic!("no object")
        };
        stored(fields)
    }

    #[test]
    fn the_old_form_of_a_mount_keeps_what_it_says() {
        let mount = |json: Value| {
            let stored = parsed(serde_json::json!({ "mounts": [json] })).unwrap();
            [
                stored.folders,
                stored.volumes,
                stored.tmpfs,
                stored.disks,
                stored.lacking,
            ]
            .concat()
            .join("|")
        };
        let old = serde_json::json!({"type":"Bind","host":"/data","guest":"/d","readonly":true});
        assert_eq!(mount(old), "/data:/d:ro");
        let new = serde_json::json!({"type":"Bind","host":"/data","guest":"/d",
            "options":{"readonly":false,"noexec":true,"nosuid":false,"nodev":false}});
        assert_eq!(mount(new), "/data:/d:noexec");
        let named = serde_json::json!({"type":"Named","name":"cache","guest":"/c"});
        assert_eq!(mount(named), "cache:/c");
        let path = serde_json::json!({"type":"Named","name":"/etc","guest":"/c"});
        assert_eq!(mount(path), "mounts: named /etc:/c");
        let memory =
            serde_json::json!({"type":"Tmpfs","guest":"/m","size_mib":64,"readonly":false});
        assert_eq!(mount(memory), "/m:64M");
        let mirrored = serde_json::json!({"type":"Bind","host":"/h","guest":"/g",
            "stat_virtualization":"strict","host_permissions":"mirror"});
        assert_eq!(mount(mirrored), "mounts: bind /h:/g");
        let disk = |format: &str| {
            mount(
                serde_json::json!({"type":"DiskImage","host":"/d","guest":"/g","format":format,
                "fstype":"ext4","options":{"readonly":true,"noexec":false,"nosuid":false,"nodev":false}}),
            )
        };
        assert_eq!(disk("Qcow2"), "/d:/g:format=qcow2,fstype=ext4,ro");
        assert_eq!(disk("Vmdk"), "mounts: diskimage /d:/g:ro");
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
        assert_eq!(
            (new.image.as_deref(), new.upper_mib),
            (Some("python"), Some(8192))
        );
        let bind = parsed(serde_json::json!({"image":{"Bind":"/srv/root"}})).unwrap();
        assert_eq!(bind.root_path, Some(TypedRoot::Folder("/srv/root".into())));
        let disk = |format: &str| {
            let disk = serde_json::json!({"path":"/srv/root","format":format,"fstype":"xfs"});
            parsed(serde_json::json!({"image":{"DiskImage":disk}})).unwrap()
        };
        let root = TypedRoot::Disk {
            path: "/srv/root".into(),
            format: parse_format("qcow2").unwrap(),
            fstype: Some("xfs".to_owned()),
        };
        assert_eq!(disk("Qcow2").root_path, Some(root));
        assert_eq!(disk("Vmdk").lacking, ["image: a disk of the format 'Vmdk'"]);
        let other = parsed(serde_json::json!({"image":{"Tape":"/dev/st0"}})).unwrap();
        assert_eq!(
            other.lacking,
            ["image: a root file system of the kind 'Tape'"]
        );
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
    fn a_field_that_nobody_knows_is_lacking_when_it_says_something() {
        let stored = parsed(serde_json::json!({
            "init": {"program": "/sbin/init", "args": ["-x"], "env": [["A", "1"]]}, "scripts": {}, "patches": [], "shell": "/bin/sh",
            "security": "restricted", "log_level": "debug", "vsock": 3
        }));
        let stored = stored.unwrap();
        assert!(stored.restricted);
        let init = stored.init.unwrap();
        assert_eq!(
            (&*init.program, init.args),
            ("/sbin/init", vec!["-x".to_owned()])
        );
        assert_eq!(init.env.0, [("A".to_owned(), "1".to_owned())]);
        assert_eq!(stored.lacking, ["'vsock'"]);
        assert_eq!(stored.unused, ["'log_level'"]);
    }
}
