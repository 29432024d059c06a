//! A session from here: the system's ssh(1), told all that it must know.
//!
//! Its terminal, forwards and agent are the ones that everybody knows, so there is no client of ours. It reaches the
//! sandbox through a server of ours on its standard input and output, knows the host key from a file beside it, and
//! logs in with the key of the state directory's owner. Nothing of the user's own configuration is read or changed.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use libmsb::cli::args::SandboxName;
use libmsb::cli::error::{Code, Failure};
use libmsb::cli::output;
use libmsb::state::{Home, layout, write};

use crate::arguments::{ConfigArgs, ConnectArgs};
use crate::{identity, login};

/// The system's client.
const CLIENT: &str = "ssh";

/// Becomes a client.
pub(crate) fn run(args: &ConnectArgs) -> anyhow::Result<()> {
    let name = args.name.as_ref();
    let name = name.ok_or_else(|| Failure::usage("which sandbox?"))?;
    let home = Home::from_env()?;
    if !home.sandboxes().find(name)?.is_alive()? {
        let message = format!("the sandbox '{name}' is not running");
        return Err(Failure::wrong_state(message)
            .code(Code::SandboxNotRunning)
            .hint(format!("start it: msb start {name}"))
            .into());
    }
    let settings = Settings::make(&home, name, args.login.as_deref())?;
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
    for (wanted, flag) in [
        (args.agent, "-A"),
        (args.no_command, "-N"),
        (args.tty, "-t"),
    ] {
        if wanted {
            client.arg(flag);
        }
    }
    client.arg("--").arg(name.as_str());
    client.args(joined(&args.command));
    let error = client.exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        return Err(Failure::failed("there is no ssh program here")
            .hint(format!(
                "install OpenSSH's client, or use: msb exec -it {name}"
            ))
            .into());
    }
    Err(error).context("cannot start ssh")
}

/// ssh(1) puts blanks between words, and the guest's shell takes them apart again: words with special letters are quoted.
fn joined(words: &[OsString]) -> impl Iterator<Item = OsString> + '_ {
    // One word is a command line, as with ssh(1).
    let one = words.len() == 1;
    words
        .iter()
        .map(move |word| if one { word.clone() } else { quoted(word) })
}

fn quoted(word: &OsString) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./=:,@%+".contains(byte);
    if !word.is_empty() && word.as_bytes().iter().all(plain) {
        return word.clone();
    }
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            _ => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

/// Prints a Host block.
pub(crate) fn print_config(args: &ConfigArgs) -> anyhow::Result<()> {
    let home = Home::from_env()?;
    home.sandboxes().find(&args.name)?;
    let settings = Settings::make(&home, &args.name, args.login.as_deref())?;
    output::print(&format!("Host msb-{}", args.name))?;
    for (key, value) in settings.options() {
        output::print(&format!("    {key} {value}"))?;
    }
    Ok(())
}

/// What a client must know of a sandbox.
struct Settings {
    name: SandboxName,
    user: String,
    key: PathBuf,
    known_hosts: PathBuf,
    proxy: String,
}

impl Settings {
    fn make(home: &Home, name: &SandboxName, user: Option<&str>) -> anyhow::Result<Settings> {
        identity::of_owner(home)?;
        let host_key = identity::of_host(home, name)?;
        let sandbox = home.sandboxes().find(name)?;
        let known_hosts = sandbox.path(layout::SSH).join(layout::KNOWN_HOSTS);
        let user = match user {
            Some(user) => user.to_owned(),
            None => login::own(sandbox.spec()?.user.as_ref()),
        };
        let public = host_key
            .public_key()
            .to_openssh()
            .context("cannot write a key")?;
        write::replace(
            &known_hosts,
            format!("{} {public}\n", alias(name)).as_bytes(),
        )?;
        Ok(Settings {
            name: name.clone(),
            user: login::checked(user)?,
            key: identity::owner_path(home),
            known_hosts,
            proxy: proxy(home, name)?,
        })
    }

    fn options(&self) -> Vec<(&'static str, String)> {
        vec![
            ("User", self.user.clone()),
            ("HostKeyAlias", alias(&self.name)),
            ("UserKnownHostsFile", argument(&self.known_hosts)),
            ("StrictHostKeyChecking", "yes".to_owned()),
            ("IdentityFile", argument(&self.key)),
            ("IdentitiesOnly", "yes".to_owned()),
            ("ProxyCommand", self.proxy.clone()),
        ]
    }
}

/// The name under which a sandbox's host key is known.
fn alias(name: &SandboxName) -> String {
    format!("msb-{name}")
}

/// A server for one client, of this state directory. ssh(1) looks for `%` in it, and has a shell run it after `exec`, so
/// it is one command.
fn proxy(home: &Home, name: &SandboxName) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let program = program.with_file_name("msb-ssh");
    let mut command = String::new();
    if std::env::var_os("MSB_HOME").is_some_and(|home| !home.is_empty()) {
        command = format!("env MSB_HOME={} ", for_shell(home.root()));
    }
    command.push_str(&format!("{} serve {name} --stdio", for_shell(&program)));
    Ok(command)
}

fn for_shell(path: &Path) -> String {
    let quoted = quoted(&path.as_os_str().to_owned());
    quoted.to_string_lossy().replace('%', "%%")
}

/// A value of ssh_config(5): blanks need quotes, and `%` stands for itself when it is doubled.
fn argument(path: &Path) -> String {
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
    fn words_reach_the_guest_as_they_are_but_one_word_is_a_line() {
        let join = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            let joined: Vec<_> = joined(&words)
                .map(|word| word.into_string().unwrap())
                .collect();
            joined.join(" ")
        };
        assert_eq!(join(&["echo $HOME; ls"]), "echo $HOME; ls");
        assert_eq!(
            join(&["echo", "a b", "it's", ""]),
            r"echo 'a b' 'it'\''s' ''"
        );
    }

    #[test]
    fn paths_survive_the_configuration_and_the_shell() {
        assert_eq!(argument(Path::new("/a/b c%d")), "\"/a/b c%%d\"");
        assert_eq!(for_shell(Path::new("/a/b c%d")), "'/a/b c%%d'");
    }
}
