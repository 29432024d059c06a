//! Sessions as at a login by SSH, and the SSH server of a sandbox.

use std::ffi::OsString;

use super::address::Address;
use super::error::Error;
use super::exec::{self, ExecOptions};
use super::files::SandboxFs;
use super::output::ExecOutput;
use super::tool;

/// The SSH access of a sandbox.
#[derive(Clone, Debug)]
pub struct SandboxSsh {
    sandbox: Address,
}

/// A session as a user of the guest. Commands run as at a login: by the user's shell, in the user's
/// home, with the variables of a login. It uses the sandbox's socket, so it needs no key and no
/// server in the guest.
#[derive(Clone, Debug)]
pub struct SshClient {
    sandbox: Address,
    user: String,
}

impl SandboxSsh {
    pub(super) fn new(sandbox: Address) -> SandboxSsh {
        SandboxSsh { sandbox }
    }

    /// Opens a session as a user.
    ///
    /// ```no_run
    /// # use libmsb::sdk::Sandbox;
    /// # fn main() -> Result<(), libmsb::sdk::Error> {
    /// let session = Sandbox::get("worker")?.ssh().open_client("root")?;
    /// print!("{}", session.exec("echo $HOME")?.stdout_text());
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_client(&self, user: &str) -> Result<SshClient, Error> {
        self.sandbox.connection()?;
        Ok(SshClient { sandbox: self.sandbox.clone(), user: user.to_owned() })
    }

    /// Serves one SSH connection on the standard input and output of this process, as
    /// `ProxyCommand` of OpenSSH needs it, until the connection ends.
    pub fn serve_stdio(&self) -> Result<(), Error> {
        let args = ["connect", "--", self.sandbox.name()].map(OsString::from);
        tool::inherit(&self.sandbox.home, "msb-ssh", args).map(drop)
    }
}

impl SshClient {
    /// Runs a command line by the user's shell, to its end.
    pub fn exec(&self, command: &str) -> Result<ExecOutput, Error> {
        let user = Some(OsString::from(&self.user));
        let options = ExecOptions { user, login: true, ..ExecOptions::default() };
        exec::start(&self.sandbox, [command], options)?.collect()
    }

    /// Connects the terminal of this process to a login shell. Returns its exit code.
    pub fn attach(&self) -> Result<i32, Error> {
        let mut args = vec![format!("--user={}", self.user).into(), self.sandbox.name().into()];
        args.extend(["--", "/bin/sh", "-l"].map(OsString::from));
        tool::inherit(&self.sandbox.home, "msb-exec", args)
    }

    /// Returns the files of the sandbox, as this user.
    pub fn sftp(&self) -> SandboxFs {
        SandboxFs::new(self.sandbox.clone(), Some(self.user.clone()))
    }
}
