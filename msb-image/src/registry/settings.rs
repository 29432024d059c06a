//! What `config.json` of the state directory says of registries.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use libmsb::cli::args::parse_duration;
use libmsb::state::{Home, write};
use serde::Deserialize;
use serde_json::Value;

use super::connection::Options;
use super::credentials::Credentials;
use crate::arguments::Way;

/// Bytes of the file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Names the time without a byte after which a connection is given up.
const TIMEOUT_VARIABLE: &str = "MSB_REGISTRY_TIMEOUT";

/// The file, as far as it concerns registries. Fields that are not known belong to others.
#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    registries: Registries,
}

#[derive(Debug, Default, Deserialize)]
struct Registries {
    ca_certs: Option<Paths>,
    #[serde(default)]
    hosts: BTreeMap<String, HostSettings>,
}

/// One file or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Paths {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// What is said of one registry.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct HostSettings {
    #[serde(default)]
    insecure: bool,
    ca_certs: Option<Paths>,
    auth: Option<Auth>,
}

#[derive(Clone, Debug, Deserialize)]
struct Auth {
    username: String,
    password_env: Option<String>,
    store: Option<Value>,
    secret_name: Option<Value>,
}

/// How to reach a registry, and who one is there.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) options: Options,
    pub(crate) host: HostSettings,
}

impl Settings {
    /// For one registry; what was typed is added.
    pub(crate) fn read(home: &Home, registry: &str, way: &Way) -> Result<Settings> {
        let file: File = write::read_json(&home.config(), FILE_BYTES_MAX)?.unwrap_or_default();
        let host = file
            .registries
            .hosts
            .get(registry)
            .cloned()
            .unwrap_or_default();
        let mut all: Vec<PathBuf> = way.ca_certs.iter().cloned().collect();
        for paths in [&host.ca_certs, &file.registries.ca_certs]
            .into_iter()
            .flatten()
        {
            match paths {
                Paths::One(path) => all.push(path.clone()),
                Paths::Many(paths) => all.extend(paths.iter().cloned()),
            }
        }
        let timeout = match std::env::var(TIMEOUT_VARIABLE) {
            Ok(text) => Some(parse_duration(&text).context(TIMEOUT_VARIABLE)?),
            Err(_) => None,
        };
        ensure!(
            timeout.is_none_or(|timeout| !timeout.is_zero()),
            "{TIMEOUT_VARIABLE} is zero"
        );
        let options = Options {
            insecure: way.insecure || host.insecure,
            ca_certs: all,
            timeout,
        };
        Ok(Settings { options, host })
    }
}

impl HostSettings {
    /// The credentials, if the file names any.
    pub(crate) fn credentials(&self, registry: &str) -> Result<Option<Credentials>> {
        let Some(auth) = &self.auth else {
            return Ok(None);
        };
        ensure!(
            auth.store.is_none() && auth.secret_name.is_none(),
            "'config.json' keeps the password for '{registry}' in a way that is not supported; use 'password_env', or: msb image registry login"
        );
        let name = auth.password_env.as_deref().with_context(|| {
            format!("'config.json' names a user for '{registry}' and no 'password_env'")
        })?;
        let password = std::env::var(name).with_context(|| {
            format!(
                "'config.json' says that the password for '{registry}' is in the variable {name}"
            )
        })?;
        Ok(Some(Credentials::Password {
            username: auth.username.clone(),
            password,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, registry: &str) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        std::fs::write(home.config(), text).unwrap();
        let way = Way {
            insecure: false,
            ca_certs: Some(PathBuf::from("typed.pem")),
        };
        Settings::read(&home, registry, &way)
    }

    #[test]
    fn a_registrys_own_settings_are_added_to_those_for_all() {
        let text = r#"{ "log_level": "info", "registries": { "ca_certs": "all.pem", "future": 1, "hosts": {
            "r:5000": { "insecure": true, "ca_certs": ["a.pem", "b.pem"] } } } }"#;
        let settings = read(text, "r:5000").unwrap();
        assert!(settings.options.insecure);
        let paths = ["typed.pem", "a.pem", "b.pem", "all.pem"].map(PathBuf::from);
        assert_eq!(settings.options.ca_certs, paths);
        let other = read(text, "other").unwrap();
        assert!(!other.options.insecure);
        assert_eq!(other.options.ca_certs.len(), 2);
    }

    #[test]
    fn what_cannot_be_understood_is_no_default() {
        for text in [
            "{",
            r#"{"registries":{"hosts":{"r":{"insecure":"yes"}}}}"#,
            r#"{"registries":[]}"#,
        ] {
            assert!(read(text, "r").is_err(), "{text}");
        }
        let kept = r#"{"registries":{"hosts":{"r":{"auth":{"username":"u","store":"keyring"}}}}}"#;
        assert!(read(kept, "r").unwrap().host.credentials("r").is_err());
    }
}
