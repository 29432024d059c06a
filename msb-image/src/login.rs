//! `msb image registry`: credentials for registries, kept where Docker keeps them.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use anyhow::{Context, Result, ensure};
use libmsb::cli::error::{Failure, Told, message, print_warning};
use libmsb::cli::style::Table;
use libmsb::cli::{escape::escape, exit, output};
use libmsb::reference::Reference;
use libmsb::signals::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use libmsb::signals::{Signals, unblock_all};
use libmsb::state::Home;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde::Serialize;

use crate::arguments::{Format, Login, Logins, Logout, Registry, RegistryCommand};
use crate::load::note;
use crate::registry::client::Client;
use crate::registry::credentials::Credentials;
use crate::registry::docker_config::{DockerConfig, registry_of};
use crate::registry::helper;
use crate::registry::settings::Settings;

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
    let registry = name_of(&args.registry)?;
    let username = match args.username {
        Some(username) => username,
        None => ask("Username: ", "--username")?,
    };
    let password = if args.password_stdin {
        password_from(&mut io::stdin().lock())?
    } else {
        ask_password()?
    };
    ensure!(
        !username.is_empty() && !username.contains(':'),
        "'{}' cannot be a user name",
        escape(&username)
    );
    ensure!(!password.is_empty(), "the password is empty");
    let settings = Settings::read(home, &registry, &args.way)?;
    let credentials = Credentials::Password {
        username: username.clone(),
        password: password.clone(),
    };
    let cannot = || format!("cannot log in to '{registry}'");
    Client::open(&registry, &settings.options, Some(credentials))
        .and_then(|client| client.check_login())
        .with_context(cannot)?;
    keep(&registry, &username, &password).with_context(cannot)?;
    note(&format!("Logged in to {registry}"));
    Ok(())
}

/// Keeps credentials that a registry has taken.
fn keep(registry: &str, username: &str, password: &str) -> Result<()> {
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
    let registry = name_of(&args.registry)?;
    let mut config = DockerConfig::read()?;
    let mut known = config.remove(&registry);
    if let Some(name) = config.helper(&registry) {
        known |= helper::get(&name, &registry)?.is_some();
        helper::erase(&name, &registry)?;
    }
    if !known {
        return Err(
            Failure::not_found(format!("there are no credentials for '{registry}'"))
                .hint("`msb image registry list` lists what there is")
                .into(),
        );
    }
    config.write()?;
    note(&format!("Logged out of {registry}"));
    Ok(())
}

/// A registry with credentials.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Row {
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
                print_warning(crate::TOOL, &message(&error));
                continue;
            }
        };
        if rows.iter().all(|row| row.registry != registry) {
            rows.push(Row {
                registry,
                username,
                source,
            });
        }
    }
    rows.sort();
    if args.format == Some(Format::Json) {
        return Ok(output::print_json(&rows)?);
    }
    let mut table = Table::new(&["REGISTRY", "USERNAME", "SOURCE"]);
    for row in &rows {
        table.row([
            row.registry.as_str(),
            row.username.as_deref().unwrap_or("-"),
            &row.source,
        ]);
    }
    Ok(output::print(
        table.render(output::is_terminal()).trim_end(),
    )?)
}

/// What helpers keep. One that does not work is said, and the others are listed.
fn rows_of_helpers(config: &DockerConfig) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut add = |helper: &str, registry: String, username: String| {
        if rows.iter().all(|row| row.registry != registry) {
            rows.push(Row {
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
            Err(error) => print_warning(crate::TOOL, &message(&error)),
        }
    }
    if let Some(name) = config.store() {
        match helper::list(name) {
            Ok(servers) => {
                for (server, username) in servers {
                    add(name, registry_of(&server), username);
                }
            }
            Err(error) => print_warning(crate::TOOL, &message(&error)),
        }
    }
    rows
}

/// The registry that was typed, as references have it.
fn name_of(typed: &str) -> Result<String, Failure> {
    let name = registry_of(typed);
    let reference: Option<Reference> = format!("{name}/x").parse().ok();
    match reference {
        Some(reference) if reference.registry() == name => Ok(name),
        _ => Err(
            Failure::usage(format!("'{}' is no registry", escape(typed)))
                .hint("give its host name, as ghcr.io or localhost:5000"),
        ),
    }
}

/// A line from the terminal.
fn ask(question: &str, option: &str) -> Result<String> {
    if !io::stdin().is_terminal() {
        return Err(Failure::usage("there is no terminal to ask at")
            .hint(format!("use {option}, and --password-stdin"))
            .into());
    }
    drop(io::stderr().write_all(question.as_bytes()));
    read_line()
}

/// A line from the terminal that is not shown. Whatever ends the wait, the terminal shows again what is typed.
fn ask_password() -> Result<String> {
    let stdin = io::stdin();
    let Ok(before) = tcgetattr(&stdin) else {
        return ask("Password: ", "--username");
    };
    let signals =
        Signals::of(&[SIGINT, SIGTERM, SIGHUP, SIGQUIT]).context("cannot wait for signals")?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &silent).context("cannot hide what is typed")?;
    drop(io::stderr().write_all(b"Password: "));
    let line = line_or_signal(&signals);
    drop(io::stderr().write_all(b"\n"));
    tcsetattr(&stdin, OptionalActions::Flush, &before).context("cannot set the terminal back")?;
    unblock_all().context("cannot wait for signals")?;
    line
}

/// What comes first: a line, or a signal, which ends the tool as it would have.
fn line_or_signal(signals: &Signals) -> Result<String> {
    let stdin = io::stdin();
    let mut waited = [
        PollFd::new(&stdin, PollFlags::IN),
        PollFd::new(signals, PollFlags::IN),
    ];
    poll(&mut waited, None).context("cannot wait for the terminal")?;
    if !waited[1].revents().is_empty() {
        let number = signals.wait().context("cannot read signals")?;
        return Err(Told(exit::of_signal(number)).into());
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

/// A password from a pipe: all of it, but the end of its line.
fn password_from(input: &mut dyn Read) -> Result<String> {
    let mut bytes = Vec::new();
    input
        .take(PASSWORD_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .context("cannot read the password")?;
    ensure!(
        bytes.len() as u64 <= PASSWORD_BYTES_MAX,
        "the password is longer than {PASSWORD_BYTES_MAX} bytes"
    );
    let text = String::from_utf8(bytes).context("the password is no text")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_named_by_its_host() {
        let name = |text: &str| name_of(text).ok();
        assert_eq!(name("ghcr.io").as_deref(), Some("ghcr.io"));
        assert_eq!(
            name("https://index.docker.io/v1/").as_deref(),
            Some("docker.io")
        );
        assert_eq!(name("localhost:5000").as_deref(), Some("localhost:5000"));
        for bad in ["", "alice", "a b.c", "-x.y"] {
            assert_eq!(name(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_password_loses_the_end_of_its_line_and_nothing_else() {
        assert_eq!(password_from(&mut &b" a b \r\n"[..]).unwrap(), " a b ");
        assert!(password_from(&mut &vec![b'x'; 70_000][..]).is_err());
    }
}
