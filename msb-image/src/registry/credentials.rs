//! Who one is at a registry: what `config.json` of the state directory says, then what Docker's configuration and its
//! credential helpers know. Secrets are never printed.

use std::fmt;

use anyhow::{Result, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libmsb::cli::error::{message, print_warning};

use super::docker_config::DockerConfig;
use super::helper;
use super::settings::HostSettings;

/// What opens a registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Password {
        username: String,
        password: String,
    },
    /// What a server of tokens gave for a login.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// The value of an `Authorization` header.
pub(crate) fn basic(credentials: &Credentials) -> Result<String> {
    let Credentials::Password { username, password } = credentials else {
        return Err(anyhow!(
            "the registry wants a password, and an identity token is all there is"
        ));
    };
    ensure!(!username.contains(':'), "the user name has a colon in it");
    Ok(format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    ))
}

/// Finds the credentials for a registry, if there are any.
pub(crate) fn find(registry: &str, settings: &HostSettings) -> Result<Option<Credentials>> {
    if let Some(credentials) = settings.credentials(registry)? {
        return Ok(Some(credentials));
    }
    let config = DockerConfig::read()?;
    if let Some(name) = config.helper(registry) {
        match helper::get(&name, registry) {
            Ok(Some(credentials)) => return Ok(Some(credentials)),
            Ok(None) => {}
            // Most images are for everybody; if this one is not, the registry will say so.
            Err(error) => print_warning(crate::TOOL, &message(&error)),
        }
    }
    config.credentials(registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_becomes_a_header_and_is_never_shown() {
        let credentials = Credentials::Password {
            username: "alice".to_owned(),
            password: "s3cret".to_owned(),
        };
        assert_eq!(basic(&credentials).unwrap(), "Basic YWxpY2U6czNjcmV0");
        assert_eq!(format!("{credentials:?}"), "Credentials");
        let odd = Credentials::Password {
            username: "a:b".to_owned(),
            password: String::new(),
        };
        assert!(basic(&odd).is_err());
    }
}
