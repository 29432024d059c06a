//! Docker's `config.json`, which podman, skopeo and others read too: `$DOCKER_CONFIG/config.json`,
//! otherwise `~/.docker/config.json`.
//!
//! Only its credentials are read. Other fields are preserved when the file is replaced.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libmsb::cli::error::Failure;
use libmsb::state::write;
use serde_json::{Map, Value, json};

use super::DOCKER_IO;
use super::credentials::Credentials;

/// Bytes of the file.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Name of Docker's own registry in this file, for historical reasons.
const DOCKER_IO_SERVER: &str = "https://index.docker.io/v1/";

const AUTHS: &str = "auths";
const CREDENTIAL_HELPERS: &str = "credHelpers";
const CREDENTIAL_STORE: &str = "credsStore";

/// An open configuration file.
#[derive(Debug)]
pub(crate) struct DockerConfig {
    path: PathBuf,
    json: Map<String, Value>,
}

impl DockerConfig {
    /// Reads the configuration file. A missing file is an empty configuration.
    pub(crate) fn read() -> Result<DockerConfig> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let directory = match (variable("DOCKER_CONFIG"), variable("HOME")) {
            (Some(directory), _) => PathBuf::from(directory),
            (None, Some(home)) => Path::new(&home).join(".docker"),
            (None, None) => {
                return Err(Failure::usage("neither DOCKER_CONFIG nor HOME is set").into());
            }
        };
        DockerConfig::read_at(&directory.join("config.json"))
    }

    fn read_at(path: &Path) -> Result<DockerConfig> {
        // A symbolic link stays: its target is replaced.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let json = write::read_json(&path, FILE_BYTES_MAX)?.unwrap_or_default();
        Ok(DockerConfig { path, json })
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the credential helper of a registry: its own, or the default one.
    pub(crate) fn helper(&self, registry: &str) -> Option<String> {
        let own = self.section(CREDENTIAL_HELPERS).find(|(key, _)| registry_of(key) == registry);
        let own = own.and_then(|(_, name)| name.as_str());
        own.or_else(|| self.json.get(CREDENTIAL_STORE)?.as_str())
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
    }

    /// Returns the default credential helper.
    pub(crate) fn store(&self) -> Option<&str> {
        self.json.get(CREDENTIAL_STORE)?.as_str().filter(|name| !name.is_empty())
    }

    /// Returns the registries with a credential helper of their own.
    pub(crate) fn own_helpers(&self) -> impl Iterator<Item = (String, &str)> {
        self.section(CREDENTIAL_HELPERS)
            .filter_map(|(key, name)| Some((registry_of(key), name.as_str()?)))
    }

    /// Returns the registries with credentials in the file itself.
    pub(crate) fn registries(&self) -> Vec<String> {
        self.section(AUTHS).map(|(key, _)| registry_of(key)).collect()
    }

    /// Returns the credentials in the file itself.
    pub(crate) fn credentials(&self, registry: &str) -> Result<Option<Credentials>> {
        let entry = self.section(AUTHS).find(|(key, _)| registry_of(key) == registry);
        let Some((_, entry)) = entry else {
            return Ok(None);
        };
        let text = |name: &str| {
            let text = entry.get(name).and_then(Value::as_str);
            text.filter(|text| !text.is_empty())
        };
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credentials::IdentityToken(token.to_owned())));
        }
        if let Some(auth) = text("auth") {
            let decoded = decode(auth).with_context(|| {
                format!("'{}': the entry of '{registry}' is damaged", self.path.display())
            })?;
            return Ok(Some(decoded));
        }
        Ok(match (text("username"), text("password")) {
            (Some(username), Some(password)) => Some(Credentials::Password {
                username: username.to_owned(),
                password: password.to_owned(),
            }),
            _ => None,
        })
    }

    /// Sets the credentials of a registry. `None` records that a helper has them.
    pub(crate) fn set(&mut self, registry: &str, password: Option<(&str, &str)>) {
        self.remove(registry);
        let entry = match password {
            Some((username, password)) => {
                json!({ "auth": STANDARD.encode(format!("{username}:{password}")) })
            }
            None => json!({}),
        };
        let auths = self.json.entry(AUTHS).or_insert_with(|| json!({}));
        if let Some(auths) = auths.as_object_mut() {
            auths.insert(server_of(registry), entry);
        }
    }

    /// Removes a registry under all its spellings. Returns whether it was present.
    pub(crate) fn remove(&mut self, registry: &str) -> bool {
        let Some(auths) = self.json.get_mut(AUTHS).and_then(Value::as_object_mut) else {
            return false;
        };
        let before = auths.len();
        auths.retain(|key, _| registry_of(key) != registry);
        auths.len() < before
    }

    /// Replaces the file, with mode 0600.
    pub(crate) fn write(&self) -> Result<()> {
        if let Some(directory) = self.path.parent() {
            write::create_dir(directory)?;
        }
        let mut text = serde_json::to_vec_pretty(&self.json)?;
        text.push(b'\n');
        write::replace(&self.path, &text)
    }

    fn section(&self, name: &str) -> impl Iterator<Item = (&String, &Value)> {
        let section = self.json.get(name).and_then(Value::as_object);
        section.into_iter().flatten()
    }
}

/// Returns the key of a registry in this file.
pub(crate) fn server_of(registry: &str) -> String {
    if registry == DOCKER_IO { DOCKER_IO_SERVER.to_owned() } else { registry.to_owned() }
}

/// Returns the registry of a key in this file: without scheme and path.
pub(crate) fn registry_of(server: &str) -> String {
    let bare = server.split_once("://").map_or(server, |(_, bare)| bare);
    let host = bare.split('/').next().unwrap_or_default();
    match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_IO.to_owned(),
        host => host.to_owned(),
    }
}

/// Decodes `name:password` from base64.
fn decode(auth: &str) -> Result<Credentials> {
    let bytes = STANDARD.decode(auth)?;
    let text = String::from_utf8(bytes)?;
    let (username, password) = text.split_once(':').context("it has no colon")?;
    Ok(Credentials::Password {
        username: username.to_owned(),
        // Old programs pad it with NULs.
        password: password.trim_end_matches('\0').to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: Value) -> DockerConfig {
        let json = json.as_object().unwrap().clone();
        DockerConfig { path: PathBuf::from("config.json"), json }
    }

    fn password(username: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password { username: username.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn every_spelling_of_a_registry_is_found() {
        let config = config(json!({ "auths": {
            "https://index.docker.io/v1/": { "auth": "YTpi" },
            "http://r.example:5000/v2/": { "username": "u", "password": "p" },
            "t.example": { "identitytoken": "x", "auth": "YTpi" },
            "empty.example": {},
            "bad.example": { "auth": "%" },
        }}));
        assert_eq!(config.credentials("docker.io").unwrap(), password("a", "b"));
        assert_eq!(config.credentials("r.example:5000").unwrap(), password("u", "p"));
        assert_eq!(
            config.credentials("t.example").unwrap(),
            Some(Credentials::IdentityToken("x".to_owned()))
        );
        assert_eq!(config.credentials("empty.example").unwrap(), None);
        assert_eq!(config.credentials("r.example").unwrap(), None);
        assert!(config.credentials("bad.example").is_err());
    }

    #[test]
    fn a_registrys_own_helper_comes_before_the_one_for_all() {
        let config = config(json!({ "credsStore": "all", "credHelpers": { "r.example": "own" } }));
        assert_eq!(config.helper("r.example").as_deref(), Some("own"));
        assert_eq!(config.helper("docker.io").as_deref(), Some("all"));
    }

    #[test]
    fn a_login_replaces_one_entry_and_keeps_all_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker/config.json");
        let mut config = DockerConfig::read_at(&path).unwrap();
        config.json = config_json();
        config.set("docker.io", Some(("a", "b")));
        config.write().unwrap();
        let mut read = DockerConfig::read_at(&path).unwrap();
        assert_eq!(read.json["HttpHeaders"], json!({ "X": "y" }));
        assert_eq!(read.credentials("docker.io").unwrap(), password("a", "b"));
        assert_eq!(read.registries(), ["docker.io", "other.example"]);
        assert!(read.remove("docker.io"));
        assert!(!read.remove("docker.io"));
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    fn config_json() -> Map<String, Value> {
        let json = json!({
            "HttpHeaders": { "X": "y" },
            "auths": { "index.docker.io": {}, "other.example": { "auth": "YTpi" } },
        });
        json.as_object().unwrap().clone()
    }
}
