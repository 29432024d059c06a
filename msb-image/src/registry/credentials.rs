//! Credentials for a registry: from `config.json` of the state directory, then from Docker's
//! configuration and its credential helpers. Secrets are never printed.

use std::fmt;

use anyhow::{Result, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libmsb::cli::error::{message, warn};

use super::docker_config::DockerConfig;
use super::helper;
use super::settings::HostSettings;

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Password {
        username: String,
        password: String,
    },
    /// Identity token that a token server issued at login.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// Formats the value of an `Authorization` header.
pub(crate) fn basic(credentials: &Credentials) -> Result<String> {
    let Credentials::Password { username, password } = credentials else {
        return Err(anyhow!(
            "the registry requires a password, but only an identity token is known"
        ));
    };
    ensure!(!username.contains(':'), "the user name contains a colon");
    Ok(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

/// Finds the credentials for a registry, if any.
pub(crate) fn find(registry: &str, settings: &HostSettings) -> Result<Option<Credentials>> {
    if let Some(credentials) = settings.credentials(registry)? {
        return Ok(Some(credentials));
    }
    let config = DockerConfig::read()?;
    if let Some(name) = config.helper(registry) {
        match helper::get(&name, registry) {
            Ok(Some(credentials)) => return Ok(Some(credentials)),
            Ok(None) => {}
            // Most images are public; for others the registry will report an error.
            Err(error) => warn(&message(&error)),
        }
    }
    config.credentials(registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_becomes_a_header_and_is_never_shown() {
        let credentials =
            Credentials::Password { username: "alice".to_owned(), password: "s3cret".to_owned() };
        assert_eq!(basic(&credentials).unwrap(), "Basic YWxpY2U6czNjcmV0");
        assert_eq!(format!("{credentials:?}"), "Credentials");
        let odd = Credentials::Password { username: "a:b".to_owned(), password: String::new() };
        assert!(basic(&odd).is_err());
    }
}
