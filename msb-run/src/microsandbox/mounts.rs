//! Conversion of the mounts of a stored configuration: directories and files of the host, volumes,
//! disks and memory. VMware disks and special handling of owners and modes are unsupported.

use libmsb::cli::escape::escape;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::fields::{Omission, UnsupportedField, parse, take_field};
use super::stored_config::StoredConfig;
use crate::mounts::{is_path, parse_format};

/// A stored mount. In 0.5.2 `readonly` is a field of its own; since 0.5.4 it is one of `options`,
/// which then take precedence.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredMount {
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
#[serde(default, deny_unknown_fields)]
struct MountOptions {
    readonly: bool,
    noexec: bool,
    nosuid: bool,
    nodev: bool,
}

impl StoredMount {
    fn options(&self) -> MountOptions {
        self.options.unwrap_or(MountOptions { readonly: self.readonly, ..MountOptions::default() })
    }

    fn source(&self) -> Option<&str> {
        self.host.as_deref().or(self.name.as_deref())
    }

    /// Returns the mount in the syntax of the command line, with its options.
    fn typed(&self, what: &str) -> String {
        self.typed_with(what, Vec::new())
    }

    /// Like [`StoredMount::typed`], with `all` before the mount's own options.
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

    /// Returns a disk mount as typed, if its format is supported.
    fn disk(&self) -> Option<String> {
        let format = self.format.as_deref()?.to_lowercase();
        parse_format(&format).ok()?;
        let fstype = self.fstype.iter().map(|name| format!("fstype={name}"));
        let options = [format!("format={format}")].into_iter().chain(fstype);
        let what = format!("{}:{}", self.host.as_deref()?, self.guest);
        Some(self.typed_with(&what, options.collect()))
    }

    /// Returns a description for error messages.
    fn shown(&self) -> String {
        let source = self.source().map(|source| format!("{source}:"));
        let what = format!("{}{}", source.unwrap_or_default(), self.guest);
        let kind = self.r#type.to_lowercase();
        escape(&format!("{kind} {}", self.typed(&what))).into_owned()
    }
}

/// Converts the mounts. Fails for one that is not known; records an unsupported one.
pub(super) fn mounts(
    stored: &mut StoredConfig,
    fields: &mut Map<String, Value>,
) -> Result<(), String> {
    let mounts: Vec<Value> = take_field(fields, "mounts")?.unwrap_or_default();
    for (index, mount) in mounts.into_iter().enumerate() {
        let path = format!("mounts.{index}");
        let mount: StoredMount = parse(mount, &path)?;
        if let Err(why) = add(stored, &mount) {
            let reason = format!("{}: {why}", mount.shown());
            stored.unsupported.push(UnsupportedField::new(path, reason, Omission::Allowed));
        }
    }
    Ok(())
}

/// Adds a mount, or returns the unsupported part.
fn add(stored: &mut StoredConfig, mount: &StoredMount) -> Result<(), String> {
    if let Some(policy) = mount.stat_virtualization.as_deref().filter(|is| *is != "strict") {
        return Err(format!("stat virtualization '{}'", escape(policy)));
    }
    if let Some(policy) = mount.host_permissions.as_deref().filter(|is| *is != "private") {
        return Err(format!("host permissions '{}'", escape(policy)));
    }
    match (mount.r#type.as_str(), mount.source()) {
        ("Bind", Some(source)) => {
            // A path that does not look like one would be the name of a volume.
            let prefix = if is_path(source.as_bytes()) { "" } else { "./" };
            let typed = mount.typed(&format!("{prefix}{source}:{}", mount.guest));
            stored.volumes.push(typed);
        }
        ("Named", Some(source)) if !is_path(source.as_bytes()) => {
            stored.volumes.push(mount.typed(&format!("{source}:{}", mount.guest)));
            stored.volume_names.push(source.to_owned());
        }
        ("Tmpfs", None) => {
            let size = mount.size_mib.map(|mib| format!(":{mib}M"));
            let typed = format!("{}{}", mount.guest, size.unwrap_or_default());
            stored.tmpfs.push(mount.typed(&typed));
        }
        ("DiskImage", Some(_)) => {
            let format = mount.format.as_deref().unwrap_or_default();
            let disk = mount.disk();
            stored.disks.push(disk.ok_or_else(|| format!("format '{}'", escape(format)))?);
        }
        _ => return Err("not a known kind of mount".to_owned()),
    }
    Ok(())
}
