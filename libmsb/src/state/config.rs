//! The user's configuration: `config.json` of the state directory. Man page msb-state(5).
//!
//! The names of 0.5.5 of microsandbox that mean the same here are the same. The section
//! `registries` belongs to msb-image.

use std::collections::BTreeMap;
use std::num::{NonZeroU8, NonZeroU32, NonZeroU64};

use anyhow::{Context, ensure};
use msb_wire::guest::Security;
use serde::Deserialize;
use serde_json::Value;

use super::spec::BootMode;
use super::{Home, layout, write};
use crate::cli::verbosity::{self, Verbosity};
use crate::machine::EngineChoice;
use crate::net::dns::SearchDomain;

/// Longest configuration file, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Fields that have a meaning, by their path. `*` stands for any name.
const KNOWN: &[&[&str]] = &[
    &["engine"],
    &["boot"],
    &["log_level"],
    &["sandbox_defaults", "cpus"],
    &["sandbox_defaults", "memory_mib"],
    &["sandbox_defaults", "shell"],
    &["sandbox_defaults", "workdir"],
    &["sandbox_defaults", "oci", "upper_size_mib"],
    &["sandbox_defaults", "dns_search"],
    &["sandbox_defaults", "env"],
    &["sandbox_defaults", "idle_timeout_ms"],
    &["sandbox_defaults", "labels"],
    &["sandbox_defaults", "max_duration_ms"],
    &["sandbox_defaults", "net"],
    &["sandbox_defaults", "security"],
    &["sandbox_defaults", "user"],
    &["sandbox_defaults", "metrics_sample_interval_ms"],
    &["sandbox_defaults", "disable_metrics_sample"],
    &["registries", "ca_certs"],
    &["registries", "hosts", "*", "ca_certs"],
    &["registries", "hosts", "*", "insecure"],
    &["registries", "hosts", "*", "auth", "username"],
    &["registries", "hosts", "*", "auth", "password_env"],
    // These are refused with a reason when the registry is used.
    &["registries", "hosts", "*", "auth", "store"],
    &["registries", "hosts", "*", "auth", "secret_name"],
];

/// The configuration. Missing fields have no value.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct UserConfig {
    /// Engine of new sandboxes.
    pub engine: Option<EngineChoice>,
    /// Boot mode of new sandboxes.
    pub boot: Option<BootMode>,
    /// Verbosity of commands.
    pub log_level: Option<LogLevel>,
    /// Defaults of new sandboxes.
    pub sandbox_defaults: SandboxDefaults,
    /// Unknown fields, as paths.
    #[serde(skip)]
    unknown: Vec<String>,
}

/// Defaults of a new sandbox's options.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SandboxDefaults {
    /// Number of virtual processors.
    pub cpus: Option<NonZeroU8>,
    /// Memory in MiB.
    pub memory_mib: Option<NonZeroU32>,
    /// Shell for terminals and scripts.
    pub shell: Option<String>,
    /// Working directory of commands.
    pub workdir: Option<String>,
    /// User and group of commands.
    pub user: Option<String>,
    /// Environment variables, `NAME=value`.
    pub env: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Network: fields of [`crate::net::NetSpec`] that differ from those of a new sandbox.
    pub net: Option<Value>,
    /// Security profile.
    pub security: Option<Security>,
    /// Idle timeout in milliseconds.
    pub idle_timeout_ms: Option<NonZeroU64>,
    /// Maximum duration in milliseconds.
    pub max_duration_ms: Option<NonZeroU64>,
    /// Settings of roots from images.
    pub oci: OciDefaults,
    /// Search domains.
    pub dns_search: Vec<SearchDomain>,
    /// Interval of metric samples in milliseconds.
    pub metrics_sample_interval_ms: Option<u64>,
    /// True to take no metric samples.
    pub disable_metrics_sample: bool,
}

/// Defaults of a root from an image.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct OciDefaults {
    /// Size of the writable disk in MiB.
    pub upper_size_mib: Option<NonZeroU64>,
}

/// A verbosity level by its name in microsandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing but errors.
    #[serde(alias = "off", alias = "none")]
    Error,
    /// Warnings.
    #[serde(alias = "warning")]
    Warn,
    /// Notes.
    Info,
    /// Steps of the work.
    Debug,
    /// Details.
    Trace,
}

impl LogLevel {
    /// Returns the verbosity.
    pub fn verbosity(self) -> Verbosity {
        match self {
            LogLevel::Error => Verbosity::Error,
            LogLevel::Warn => Verbosity::Warn,
            LogLevel::Info => Verbosity::Info,
            LogLevel::Debug => Verbosity::Debug,
            LogLevel::Trace => Verbosity::Trace,
        }
    }
}

impl UserConfig {
    /// Reads the configuration; without a file it is empty.
    pub fn read(home: &Home) -> anyhow::Result<UserConfig> {
        let path = home.config();
        let Some(value) = write::read_json::<Value>(&path, CONFIG_BYTES_MAX)? else {
            return Ok(UserConfig::default());
        };
        let cannot = || format!("cannot parse '{}'", path.display());
        // A list would be taken for the fields of the structure in their order.
        ensure!(value.is_object(), "{}: it is not a JSON object", cannot());
        let unknown = unknown_fields(&value);
        let config = UserConfig::deserialize(value).with_context(cannot)?;
        Ok(UserConfig { unknown, ..config })
    }

    /// Returns a warning of unknown fields, once for each set of them.
    pub fn unknown_fields_warning(&self, home: &Home) -> Option<String> {
        let note = home.root().join(layout::CONFIG_NOTE);
        if self.unknown.is_empty() {
            // The next unknown field is told again.
            let _ = std::fs::remove_file(note);
            return None;
        }
        let names = self.unknown.join("', '");
        let text = format!("'config.json' has fields without a meaning in msb: '{names}'");
        let told = write::read_bounded(&note, CONFIG_BYTES_MAX).ok().flatten();
        if told.as_deref() == Some(text.as_bytes()) {
            return None;
        }
        // If it cannot be stored, it is told again.
        let _ = write::replace(&note, text.as_bytes());
        Some(text)
    }
}

/// Sets the verbosity of this process to that of the configuration, unless the user gave one. A
/// file that cannot be read is an error of those commands that need it.
pub fn apply_log_level() {
    let level = || UserConfig::read(&Home::from_env().ok()?).ok()?.log_level;
    if let Some(level) = level() {
        verbosity::set_default(level.verbosity());
    }
}

/// Returns the fields without a meaning, as paths with dots.
fn unknown_fields(config: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    collect_unknown(config, &mut Vec::new(), &mut unknown);
    unknown
}

fn collect_unknown<'a>(value: &'a Value, path: &mut Vec<&'a str>, unknown: &mut Vec<String>) {
    let Value::Object(fields) = value else {
        return;
    };
    for (name, field) in fields {
        path.push(name);
        let fits = |known: &&&[&str]| {
            let names = known.iter().zip(path.iter());
            known.len() >= path.len()
                && names.into_iter().all(|(known, name)| *known == "*" || known == name)
        };
        match KNOWN.iter().find(fits) {
            None => unknown.push(path.join(".")),
            Some(known) if known.len() > path.len() => collect_unknown(field, path, unknown),
            Some(_) => {}
        }
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn home_with(config: &str) -> (tempfile::TempDir, Home) {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        std::fs::write(home.config(), config).unwrap();
        (directory, home)
    }

    #[test]
    fn defaults_of_microsandbox_are_read() {
        let text = r#"{"log_level":"debug","database":{"url":"x"},"sandbox_defaults":{"cpus":2,
            "memory_mib":1024,"shell":"/bin/bash","workdir":"/work","oci":{"upper_size_mib":8192},
            "dns_search":["host","corp.example"]}}"#;
        let (_directory, home) = home_with(text);
        let config = UserConfig::read(&home).unwrap();
        let defaults = &config.sandbox_defaults;
        assert_eq!(
            (defaults.cpus, defaults.memory_mib),
            (NonZeroU8::new(2), NonZeroU32::new(1024))
        );
        assert_eq!(defaults.oci.upper_size_mib, NonZeroU64::new(8192));
        assert_eq!(defaults.workdir.as_deref(), Some("/work"));
        assert_eq!(defaults.dns_search.len(), 2);
        assert_eq!(config.log_level.unwrap().verbosity(), Verbosity::Debug);
        assert_eq!(config.unknown, ["database"]);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in [
            r#"{"sandbox_defaults":{"cpus":0}}"#,
            r#"{"sandbox_defaults":{"cpus":256}}"#,
            r#"{"sandbox_defaults":{"memory_mib":0}}"#,
            r#"{"sandbox_defaults":{"dns_search":["a b"]}}"#,
            r#"{"log_level":"loud"}"#,
            "[]",
            "{",
        ] {
            let (_directory, home) = home_with(text);
            let error = format!("{:#}", UserConfig::read(&home).unwrap_err());
            assert!(error.contains("config.json"), "{error}");
        }
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(UserConfig::read(&Home::at(directory.path())).unwrap(), UserConfig::default());
    }

    #[test]
    fn a_warning_of_unknown_fields_is_given_once() {
        let (_directory, home) = home_with(r#"{"paths":{},"enginee":"x"}"#);
        let warning = || UserConfig::read(&home).unwrap().unknown_fields_warning(&home);
        let told = warning().unwrap();
        assert!(told.contains("'paths'") && told.contains("'enginee'"), "{told}");
        assert_eq!(warning(), None);
        std::fs::write(home.config(), r#"{"paths":{}}"#).unwrap();
        assert!(warning().is_some());
        std::fs::write(home.config(), "{}").unwrap();
        assert_eq!(warning(), None);
        std::fs::write(home.config(), r#"{"paths":{}}"#).unwrap();
        assert!(warning().is_some());
    }

    #[test]
    fn unknown_fields_are_found_at_every_depth() {
        let config = json!({
            "engine": "qemu",
            "enginee": 1,
            "sandbox_defaults": {"cpus": 1, "cpu": 2, "oci": {"size": 1}},
            "registries": {"hosts": {"a.b:5000": {"insecure": true, "auth": {"user": "x"}}}, "x": 1},
        });
        let mut unknown = unknown_fields(&config);
        unknown.sort();
        assert_eq!(
            unknown,
            [
                "enginee",
                "registries.hosts.a.b:5000.auth.user",
                "registries.x",
                "sandbox_defaults.cpu",
                "sandbox_defaults.oci.size",
            ]
        );
    }
}
