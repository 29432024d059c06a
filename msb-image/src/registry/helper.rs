//! Credential helpers: programs `docker-credential-NAME` that keep secrets, one verb a call, JSON on standard input and
//! output.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use libmsb::cli::escape::escape;
use libmsb::tools;
use serde::{Deserialize, Serialize};

use super::credentials::Credentials;
use super::docker_config::server_of;

/// Bytes of what a helper says.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// How a helper says that it knows nothing of a server.
const NOT_FOUND: &str = "credentials not found";
/// The user name that goes with a token in place of a password.
const TOKEN_USER: &str = "<token>";

/// What a helper keeps of one server.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// What the helper has for a registry.
pub(crate) fn get(helper: &str, registry: &str) -> Result<Option<Credentials>> {
    let answer = call(helper, "get", server_of(registry).as_bytes())?;
    let Some(answer) = answer else {
        return Ok(None);
    };
    let entry: Entry = serde_json::from_slice(&answer).with_context(|| misunderstood(helper))?;
    Ok(Some(if entry.username == TOKEN_USER {
        Credentials::IdentityToken(entry.secret)
    } else {
        Credentials::Password {
            username: entry.username,
            password: entry.secret,
        }
    }))
}

/// Lets the helper keep a password.
pub(crate) fn store(helper: &str, registry: &str, username: &str, password: &str) -> Result<()> {
    let entry = Entry {
        server_url: server_of(registry),
        username: username.to_owned(),
        secret: password.to_owned(),
    };
    call(helper, "store", &serde_json::to_vec(&entry)?)?;
    Ok(())
}

/// Lets the helper forget a registry.
pub(crate) fn erase(helper: &str, registry: &str) -> Result<()> {
    call(helper, "erase", server_of(registry).as_bytes())?;
    Ok(())
}

/// Servers that the helper knows, each with its user.
pub(crate) fn list(helper: &str) -> Result<BTreeMap<String, String>> {
    let answer = call(helper, "list", b"")?.unwrap_or_else(|| b"{}".to_vec());
    serde_json::from_slice(&answer).with_context(|| misunderstood(helper))
}

fn misunderstood(helper: &str) -> String {
    format!(
        "cannot understand the credential helper '{}'",
        escape(helper)
    )
}

/// Runs a helper; `None` when it knows nothing of the server. It may ask its user: standard error is ours.
fn call(helper: &str, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
    let failed = || format!("the credential helper '{}'", escape(helper));
    let mut command =
        tools::command(&format!("docker-credential-{helper}")).with_context(failed)?;
    let child = command
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.with_context(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input says by its status whether that is right.
        drop(stdin.write_all(input));
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(OUTPUT_BYTES_MAX)
            .read_to_end(&mut output)
            .with_context(failed)?;
    }
    let status = child.wait().with_context(failed)?;
    if status.success() {
        return Ok(Some(output));
    }
    let said = String::from_utf8_lossy(&output);
    if said.contains(NOT_FOUND) {
        return Ok(None);
    }
    let said: String = said.trim().chars().take(200).collect();
    bail!("{}: {status}: {}", failed(), escape(&said))
}
