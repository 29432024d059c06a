//! The address of a sandbox: its state directory and name, and the connection to its supervisor.

use msb_wire::client::ClientConnection;

use super::PROGRAM;
use super::error::Error;
use crate::cli::args::SandboxName;
use crate::cli::error::Code;
use crate::state::Home;

/// A sandbox, by name.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) home: Home,
    pub(super) name: SandboxName,
}

impl Address {
    /// Returns the name.
    pub(super) fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Connects to the sandbox's supervisor.
    pub(super) fn connection(&self) -> Result<ClientConnection, Error> {
        let sandbox = self.home.sandboxes().find(&self.name)?;
        if !sandbox.is_alive()? {
            let message = format!("the sandbox '{}' is not running", self.name);
            return Err(Error::new(Code::SandboxNotRunning, message));
        }
        Ok(ClientConnection::connect(&self.home.agent_socket(&self.name), PROGRAM)?)
    }
}
