//! `msb ssh NAME`: runs the system's ssh(1) with all settings given as options.
//!
//! Terminal handling, port forwarding and agent forwarding are those of OpenSSH, so msb has no
//! client of its own. ssh(1) reaches the sandbox through `msb ssh serve --stdio` as its
//! ProxyCommand, checks the host key against a known_hosts file next to that key, and logs in with
//! the owner's key of the state directory. The user's own configuration is neither read nor
//! changed.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure};
use libmsb::cli::output;
use libmsb::cli::quote::shell_quoted;
use libmsb::state::{Home, layout, write};

use crate::args::{ConfigArgs, ConnectArgs};
use crate::{identity, login};

/// Program of the SSH client.
const CLIENT: &str = "ssh";

/// Replaces this process with ssh(1).
pub(crate) fn run(args: &ConnectArgs) -> anyhow::Result<()> {
    let name = args.sandbox();
    let name = name.ok_or_else(|| Failure::usage("missing argument: the name of a sandbox"))?;
    let home = Home::from_env()?;
    if !home.sandboxes().find(name)?.is_alive()? {
        let message = format!("the sandbox '{name}' is not running");
        return Err(Failure::wrong_state(message)
            .code(Code::SandboxNotRunning)
            .hint(format!("start it: msb start {name}"))
            .into());
    }
    let settings = ClientSettings::make(&home, name, args.login.as_deref())?;
    let mut client = Command::new(CLIENT);
    client.args(["-F", "none", "-o", "LogLevel=ERROR"]);
    for (key, value) in settings.options() {
        client.arg("-o").arg(format!("{key}={value}"));
    }
    for spec in &args.local {
        client.arg("-L").arg(spec);
    }
    for spec in &args.dynamic {
        client.arg("-D").arg(spec);
    }
    for (wanted, flag) in [(args.agent, "-A"), (args.no_command, "-N"), (args.tty, "-t")] {
        if wanted {
            client.arg(flag);
        }
    }
    client.arg("--").arg(name.as_str());
    client.args(joined_command(&args.command));
    let error = client.exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        return Err(Failure::failed("cannot find the program 'ssh'")
            .hint(format!("install the OpenSSH client, or use: msb exec -it {name}"))
            .into());
    }
    Err(error).context("cannot start ssh")
}

/// Quotes the arguments of a command. ssh(1) joins them with blanks and the guest's shell splits
/// them again, so arguments with special characters need quotes.
fn joined_command(words: &[OsString]) -> impl Iterator<Item = OsString> + '_ {
    // A single argument is a command line, as with ssh(1).
    let one = words.len() == 1;
    words.iter().map(move |word| if one { word.clone() } else { quoted(word) })
}

fn quoted(word: &OsString) -> OsString {
    OsString::from_vec(shell_quoted(word.as_bytes()))
}

/// Prints a Host block for ssh_config(5).
pub(crate) fn print_config(args: &ConfigArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    home.sandboxes().find(&args.name)?;
    let settings = ClientSettings::make(&home, &args.name, args.login.as_deref())?;
    output::print(&format!("Host msb-{}", args.name))?;
    for (key, value) in settings.options() {
        output::print(&format!("    {key} {value}"))?;
    }
    Ok(())
}

/// Settings of ssh(1) for one sandbox.
struct ClientSettings {
    name: SandboxName,
    user: String,
    key: PathBuf,
    known_hosts: PathBuf,
    proxy: String,
}

impl ClientSettings {
    fn make(home: &Home, name: &SandboxName, user: Option<&str>) -> anyhow::Result<ClientSettings> {
        identity::owner_key(home)?;
        let host_key = identity::host_key_of(home, name)?;
        let sandbox = home.sandboxes().find(name)?;
        let known_hosts = sandbox.path(layout::SSH).join(layout::KNOWN_HOSTS);
        let user = match user {
            Some(user) => user.to_owned(),
            None => login::default_user(sandbox.spec()?.user.as_ref()),
        };
        let public = host_key.public_key().to_openssh().context("cannot encode the key")?;
        write::replace(&known_hosts, format!("{} {public}\n", alias(name)).as_bytes())?;
        Ok(ClientSettings {
            name: name.clone(),
            user: login::checked_name(user)?,
            key: identity::owner_key_path(home),
            known_hosts,
            proxy: proxy(home, name)?,
        })
    }

    fn options(&self) -> Vec<(&'static str, String)> {
        vec![
            ("User", self.user.clone()),
            ("HostKeyAlias", alias(&self.name)),
            ("UserKnownHostsFile", config_value(&self.known_hosts)),
            ("StrictHostKeyChecking", "yes".to_owned()),
            ("IdentityFile", config_value(&self.key)),
            ("IdentitiesOnly", "yes".to_owned()),
            ("ProxyCommand", self.proxy.clone()),
        ]
    }
}

/// Returns the HostKeyAlias of a sandbox.
fn alias(name: &SandboxName) -> String {
    format!("msb-{name}")
}

/// Returns the ProxyCommand: a server for one client, with the same state directory. ssh(1) expands
/// `%` in it and has a shell run it after `exec`, so it must be a single command.
fn proxy(home: &Home, name: &SandboxName) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    let program = program.with_file_name("msb-ssh");
    let mut command = String::new();
    if std::env::var_os("MSB_HOME").is_some_and(|home| !home.is_empty()) {
        command = format!("env MSB_HOME={} ", for_shell(home.root()));
    }
    command.push_str(&format!("{} serve {name} --stdio", for_shell(&program)));
    Ok(command)
}

fn for_shell(path: &Path) -> String {
    let quoted = shell_quoted(path.as_os_str().as_bytes());
    String::from_utf8_lossy(&quoted).replace('%', "%%")
}

/// Formats a value for ssh_config(5): blanks need quotes, and `%` is doubled.
fn config_value(path: &Path) -> String {
    let text = path.to_string_lossy().replace('%', "%%");
    if text.contains([' ', '\t', '"', '\\']) {
        let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
        return format!("\"{escaped}\"");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_but_a_single_one_is_a_command_line() {
        let join = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            let joined_command: Vec<_> =
                joined_command(&words).map(|word| word.into_string().unwrap()).collect();
            joined_command.join(" ")
        };
        assert_eq!(join(&["echo $HOME; ls"]), "echo $HOME; ls");
        assert_eq!(join(&["echo", "a b", "it's", ""]), r"echo 'a b' 'it'\''s' ''");
    }

    #[test]
    fn paths_are_quoted_for_the_configuration_and_the_shell() {
        assert_eq!(config_value(Path::new("/a/b c%d")), "\"/a/b c%%d\"");
        assert_eq!(for_shell(Path::new("/a/b c%d")), "'/a/b c%%d'");
    }
}
