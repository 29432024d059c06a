//! `msb image registry`: manages registry credentials in Docker's configuration.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use anyhow::{Context, Result, ensure};
use libmsb::cli::error::{Failure, ReportedExit, message, warn};
use libmsb::cli::style::Table;
use libmsb::cli::{escape::escape, exit, output};
use libmsb::reference::Reference;
use libmsb::signals::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use libmsb::signals::{Signals, unblock_all};
use libmsb::state::Home;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde::Serialize;

use crate::args::{Login, Logins, Logout, OutputFormat, Registry, RegistryCommand};
use crate::registry::client::RegistryClient;
use crate::registry::credentials::Credentials;
use crate::registry::docker_config::{DockerConfig, registry_of};
use crate::registry::helper;
use crate::registry::settings::RegistrySettings;
use crate::report::print_note;

/// Bytes of a password or token.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

pub(crate) fn run(home: &Home, args: Registry) -> Result<()> {
    match args.command {
        RegistryCommand::Login(args) => login(home, args),
        RegistryCommand::Logout(args) => logout(&args),
        RegistryCommand::List(args) => list(&args),
    }
}

fn login(home: &Home, args: Login) -> Result<()> {
    let registry = registry_name(&args.registry)?;
    let username = match args.username {
        Some(username) => username,
        None => prompt("Username: ", "--username")?,
    };
    let password = if args.password_stdin {
        password_from(&mut io::stdin().lock())?
    } else {
        prompt_password()?
    };
    check(&username, &password)?;
    let settings = RegistrySettings::read(home, &registry, &args.connection)?;
    let credentials =
        Credentials::Password { username: username.clone(), password: password.clone() };
    let cannot = || format!("cannot log in to '{registry}'");
    RegistryClient::open(&registry, &settings.options, Some(credentials))
        .and_then(|client| client.check_login())
        .with_context(cannot)?;
    save_credentials(&registry, &username, &password).with_context(cannot)?;
    print_note(&format!("Logged in to {registry}"));
    Ok(())
}

/// Checks a typed user name and password.
pub(crate) fn check(username: &str, password: &str) -> Result<()> {
    ensure!(
        !username.is_empty() && !username.contains(':'),
        "invalid user name '{}'",
        escape(username)
    );
    ensure!(!password.is_empty(), "the password is empty");
    Ok(())
}

/// Saves credentials that a registry has accepted.
fn save_credentials(registry: &str, username: &str, password: &str) -> Result<()> {
    let mut config = DockerConfig::read()?;
    match config.helper(registry) {
        Some(name) => {
            helper::store(&name, registry, username, password)?;
            config.set(registry, None);
        }
        None => config.set(registry, Some((username, password))),
    }
    config.write()
}

fn logout(args: &Logout) -> Result<()> {
    let registry = registry_name(&args.registry)?;
    let mut config = DockerConfig::read()?;
    let mut known = config.remove(&registry);
    if let Some(name) = config.helper(&registry) {
        known |= helper::get(&name, &registry)?.is_some();
        helper::erase(&name, &registry)?;
    }
    if !known {
        return Err(Failure::not_found(format!("there are no credentials for '{registry}'"))
            .hint("list the registries: msb image registry list")
            .into());
    }
    config.write()?;
    print_note(&format!("Logged out of {registry}"));
    Ok(())
}

/// A registry with credentials, as a row of a list.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct RegistryRow {
    registry: String,
    username: Option<String>,
    source: String,
}

fn list(args: &Logins) -> Result<()> {
    let config = DockerConfig::read()?;
    let mut rows = rows_of_helpers(&config);
    for registry in config.registries() {
        let source = config.path().display().to_string();
        let username = match config.credentials(&registry) {
            Ok(Some(Credentials::Password { username, .. })) => Some(username),
            Ok(Some(Credentials::IdentityToken(_))) => None,
            Ok(None) => continue,
            Err(error) => {
                warn(&message(&error));
                continue;
            }
        };
        if rows.iter().all(|row| row.registry != registry) {
            rows.push(RegistryRow { registry, username, source });
        }
    }
    rows.sort();
    if args.format == Some(OutputFormat::Json) {
        return Ok(output::print_json(&rows)?);
    }
    let mut table = Table::new(&["REGISTRY", "USERNAME", "SOURCE"]);
    for row in &rows {
        table.row([row.registry.as_str(), row.username.as_deref().unwrap_or("-"), &row.source]);
    }
    Ok(output::print(table.render(output::is_terminal()).trim_end())?)
}

/// Returns the credentials in helpers. A failing helper is a warning; the others are still listed.
fn rows_of_helpers(config: &DockerConfig) -> Vec<RegistryRow> {
    let mut rows: Vec<RegistryRow> = Vec::new();
    let mut add = |helper: &str, registry: String, username: String| {
        if rows.iter().all(|row| row.registry != registry) {
            rows.push(RegistryRow {
                registry,
                username: Some(username),
                source: format!("docker-credential-{helper}"),
            });
        }
    };
    for (registry, name) in config.own_helpers() {
        match helper::get(name, &registry) {
            Ok(Some(Credentials::Password { username, .. })) => add(name, registry, username),
            Ok(Some(Credentials::IdentityToken(_))) => add(name, registry, "<token>".to_owned()),
            Ok(None) => {}
            Err(error) => warn(&message(&error)),
        }
    }
    if let Some(name) = config.store() {
        match helper::list(name) {
            Ok(servers) => {
                for (server, username) in servers {
                    add(name, registry_of(&server), username);
                }
            }
            Err(error) => warn(&message(&error)),
        }
    }
    rows
}

/// Parses a registry name and normalizes it as references do.
fn registry_name(typed: &str) -> Result<String, Failure> {
    let name = registry_of(typed);
    let reference: Option<Reference> = format!("{name}/x").parse().ok();
    match reference {
        Some(reference) if reference.registry() == name => Ok(name),
        _ => Err(Failure::usage(format!("invalid registry name '{}'", escape(typed)))
            .hint("use a host name such as ghcr.io or localhost:5000")),
    }
}

/// Reads a line from the terminal.
fn prompt(question: &str, option: &str) -> Result<String> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("cannot prompt without a terminal")
            .hint(format!("use {option}, and --password-stdin"))
            .into());
    }
    drop(io::stderr().write_all(question.as_bytes()));
    read_line()
}

/// Reads a line from the terminal without echo. Echo is restored whatever ends the wait.
fn prompt_password() -> Result<String> {
    let stdin = io::stdin();
    let Ok(before) = tcgetattr(&stdin) else {
        return prompt("Password: ", "--username");
    };
    let signals =
        Signals::of(&[SIGINT, SIGTERM, SIGHUP, SIGQUIT]).context("cannot wait for signals")?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &silent)
        .context("cannot turn off the terminal's echo")?;
    drop(io::stderr().write_all(b"Password: "));
    let line = line_or_signal(&signals);
    drop(io::stderr().write_all(b"\n"));
    tcsetattr(&stdin, OptionalActions::Flush, &before).context("cannot restore the terminal")?;
    unblock_all().context("cannot wait for signals")?;
    line
}

/// Waits for a line or a signal. A signal ends the program with its usual exit code.
fn line_or_signal(signals: &Signals) -> Result<String> {
    let stdin = io::stdin();
    let mut waited = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    poll(&mut waited, None).context("cannot wait for the terminal")?;
    if !waited[1].revents().is_empty() {
        let number = signals.wait().context("cannot read signals")?;
        return Err(ReportedExit(exit::of_signal(number)).into());
    }
    read_line()
}

fn read_line() -> Result<String> {
    let mut line = String::new();
    io::stdin()
        .lock()
        .take(PASSWORD_BYTES_MAX)
        .read_line(&mut line)
        .context("cannot read from the terminal")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Reads a password from a pipe, without its line ending.
pub(crate) fn password_from(input: &mut dyn Read) -> Result<String> {
    let mut bytes = Vec::new();
    input
        .take(PASSWORD_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .context("cannot read the password")?;
    ensure!(
        bytes.len() as u64 <= PASSWORD_BYTES_MAX,
        "the password is longer than {PASSWORD_BYTES_MAX} bytes"
    );
    let text = String::from_utf8(bytes).context("the password is not valid UTF-8")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_named_by_its_host() {
        let name = |text: &str| registry_name(text).ok();
        assert_eq!(name("ghcr.io").as_deref(), Some("ghcr.io"));
        assert_eq!(name("https://index.docker.io/v1/").as_deref(), Some("docker.io"));
        assert_eq!(name("localhost:5000").as_deref(), Some("localhost:5000"));
        for bad in ["", "alice", "a b.c", "-x.y"] {
            assert_eq!(name(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_password_loses_only_its_line_ending() {
        assert_eq!(password_from(&mut &b" a b \r\n"[..]).unwrap(), " a b ");
        assert!(password_from(&mut &vec![b'x'; 70_000][..]).is_err());
    }
}
