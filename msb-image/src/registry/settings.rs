//! Registry settings in `config.json` of the state directory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use libmsb::cli::args::parse_duration;
use libmsb::state::{Home, write};
use serde::Deserialize;
use serde_json::Value;

use super::connection::HttpOptions;
use super::credentials::Credentials;
use crate::args::ConnectionArgs;

/// Bytes of the file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Environment variable: time without a byte after which a connection is closed.
const TIMEOUT_VARIABLE: &str = "MSB_REGISTRY_TIMEOUT";

/// The part of the file about registries. Unknown fields belong to other programs.
#[derive(Debug, Default, Deserialize)]
struct SettingsFile {
    #[serde(default)]
    registries: RegistriesSection,
}

#[derive(Debug, Default, Deserialize)]
struct RegistriesSection {
    ca_certs: Option<PathList>,
    #[serde(default)]
    hosts: BTreeMap<String, HostSettings>,
}

/// One path or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum PathList {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// Settings of one registry.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct HostSettings {
    #[serde(default)]
    insecure: bool,
    ca_certs: Option<PathList>,
    auth: Option<HostAuth>,
}

#[derive(Clone, Debug, Deserialize)]
struct HostAuth {
    username: String,
    password_env: Option<String>,
    store: Option<Value>,
    secret_name: Option<Value>,
}

/// Connection options and settings of a registry.
#[derive(Debug)]
pub(crate) struct RegistrySettings {
    pub(crate) options: HttpOptions,
    pub(crate) host: HostSettings,
}

impl RegistrySettings {
    /// Reads the settings of one registry and adds the command-line options.
    pub(crate) fn read(
        home: &Home,
        registry: &str,
        connection: &ConnectionArgs,
    ) -> Result<RegistrySettings> {
        let file: SettingsFile =
            write::read_json(&home.config(), FILE_BYTES_MAX)?.unwrap_or_default();
        let host = file.registries.hosts.get(registry).cloned().unwrap_or_default();
        let mut all: Vec<PathBuf> = connection.ca_certs.iter().cloned().collect();
        for paths in [&host.ca_certs, &file.registries.ca_certs].into_iter().flatten() {
            match paths {
                PathList::One(path) => all.push(path.clone()),
                PathList::Many(paths) => all.extend(paths.iter().cloned()),
            }
        }
        let timeout = match std::env::var(TIMEOUT_VARIABLE) {
            Ok(text) => Some(parse_duration(&text).context(TIMEOUT_VARIABLE)?),
            Err(_) => None,
        };
        ensure!(timeout.is_none_or(|timeout| !timeout.is_zero()), "{TIMEOUT_VARIABLE} is zero");
        let options =
            HttpOptions { insecure: connection.insecure || host.insecure, ca_certs: all, timeout };
        Ok(RegistrySettings { options, host })
    }
}

impl HostSettings {
    /// Returns the credentials, if the file configures any.
    pub(crate) fn credentials(&self, registry: &str) -> Result<Option<Credentials>> {
        let Some(auth) = &self.auth else {
            return Ok(None);
        };
        ensure!(
            auth.store.is_none() && auth.secret_name.is_none(),
            "'config.json' stores the password for '{registry}' in an unsupported connection; \
             use 'password_env', or: msb image registry login"
        );
        let name = auth.password_env.as_deref().with_context(|| {
            format!("'config.json' has a user name for '{registry}' but no 'password_env'")
        })?;
        let password = std::env::var(name).with_context(|| {
            format!(
                "cannot read the password for '{registry}' from the environment variable {name}"
            )
        })?;
        Ok(Some(Credentials::Password { username: auth.username.clone(), password }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, registry: &str) -> Result<RegistrySettings> {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        std::fs::write(home.config(), text).unwrap();
        let connection =
            ConnectionArgs { insecure: false, ca_certs: Some(PathBuf::from("typed.pem")) };
        RegistrySettings::read(&home, registry, &connection)
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
    fn an_invalid_file_is_an_error() {
        for text in
            ["{", r#"{"registries":{"hosts":{"r":{"insecure":"yes"}}}}"#, r#"{"registries":[]}"#]
        {
            assert!(read(text, "r").is_err(), "{text}");
        }
        let kept = r#"{"registries":{"hosts":{"r":{"auth":{"username":"u","store":"keyring"}}}}}"#;
        assert!(read(kept, "r").unwrap().host.credentials("r").is_err());
    }
}
