//! Credential helpers: programs `docker-credential-NAME` that store secrets. Each call runs one
//! command, with JSON on standard input and output.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use libmsb::cli::escape::escape;
use libmsb::tools;
use serde::{Deserialize, Serialize};

use super::credentials::Credentials;
use super::docker_config::server_of;

/// Bytes of a helper's output.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// Message of a helper that has no credentials for a server.
const NOT_FOUND: &str = "credentials not found";
/// User name that marks the secret as a token.
const TOKEN_USER: &str = "<token>";

/// A helper's credentials for one server.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperCredentials {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Returns the helper's credentials for a registry.
pub(crate) fn get(helper: &str, registry: &str) -> Result<Option<Credentials>> {
    let answer = call(helper, "get", server_of(registry).as_bytes())?;
    let Some(answer) = answer else {
        return Ok(None);
    };
    let entry: HelperCredentials =
        serde_json::from_slice(&answer).with_context(|| invalid_output(helper))?;
    Ok(Some(if entry.username == TOKEN_USER {
        Credentials::IdentityToken(entry.secret)
    } else {
        Credentials::Password { username: entry.username, password: entry.secret }
    }))
}

/// Stores a password in the helper.
pub(crate) fn store(helper: &str, registry: &str, username: &str, password: &str) -> Result<()> {
    let entry = HelperCredentials {
        server_url: server_of(registry),
        username: username.to_owned(),
        secret: password.to_owned(),
    };
    call(helper, "store", &serde_json::to_vec(&entry)?)?;
    Ok(())
}

/// Erases a registry from the helper.
pub(crate) fn erase(helper: &str, registry: &str) -> Result<()> {
    call(helper, "erase", server_of(registry).as_bytes())?;
    Ok(())
}

/// Lists the helper's servers with their user names.
pub(crate) fn list(helper: &str) -> Result<BTreeMap<String, String>> {
    let answer = call(helper, "list", b"")?.unwrap_or_else(|| b"{}".to_vec());
    serde_json::from_slice(&answer).with_context(|| invalid_output(helper))
}

fn invalid_output(helper: &str) -> String {
    format!("invalid output of the credential helper '{}'", escape(helper))
}

/// Runs a helper. Returns `None` if it has no credentials for the server. It inherits standard
/// error, so it can prompt the user.
fn call(helper: &str, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
    let failed = || format!("the credential helper '{}'", escape(helper));
    let mut command =
        tools::command(&format!("docker-credential-{helper}")).with_context(failed)?;
    let child = command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.with_context(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its input reports failure by its exit status.
        drop(stdin.write_all(input));
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut output).with_context(failed)?;
    }
    let status = child.wait().with_context(failed)?;
    if status.success() {
        return Ok(Some(output));
    }
    let message = String::from_utf8_lossy(&output);
    if message.contains(NOT_FOUND) {
        return Ok(None);
    }
    let message: String = message.trim().chars().take(200).collect();
    bail!("{}: {status}: {}", failed(), escape(&message))
}
