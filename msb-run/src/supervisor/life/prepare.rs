//! Between a guest that is set up and one that is open: its files are changed, if it is the first time, and then its own
//! init is started, if it has one. Nothing of the image has run before, and nobody but this process is served.

use anyhow::Context;
use libmsb::cli::error;
use libmsb::state::status::Reason;
use msb_wire::guest::InitEvent;
use msb_wire::sandbox::Request;

use super::{Life, Phase};
use crate::isolate;
use crate::supervisor::relay::Own;
use crate::supervisor::{Setup, Starter, changes};

impl Life {
    /// The guest is set up.
    pub(super) fn prepare(&mut self, starter: &mut Starter) -> anyhow::Result<()> {
        let wanted = &self.setup.spec.guest.changes;
        if wanted.is_empty() || self.status.changed {
            return self.hand_over(starter);
        }
        let socket = self.setup.home.agent_socket(&self.setup.sandbox.name);
        self.changing = Some(changes::begin(socket, wanted.clone())?);
        self.phase = Phase::Preparing;
        Ok(())
    }

    /// The changes are at their end, good or bad.
    pub(super) fn changes_made(&mut self, starter: &mut Starter) -> anyhow::Result<()> {
        let Some(changing) = self.changing.take() else {
            return Ok(());
        };
        match changing.finish() {
            Ok(()) => {
                self.status.changed = true;
                self.hand_over(starter)
            }
            Err(error) => {
                self.finish(Reason::BootFailed, Some(error::message(&error)));
                Ok(())
            }
        }
    }

    /// All is started, and all files of the host are read: what is needed no more is given up.
    fn isolate(&mut self) {
        let Setup {
            home,
            sandbox,
            spec,
            ..
        } = &self.setup;
        self.status.isolation = self.machine.isolation();
        let ours = isolate::while_serving(home, sandbox, spec.ephemeral);
        self.status.isolation.extend(ours);
    }

    /// Starts the image's init, or goes on without one.
    fn hand_over(&mut self, starter: &mut Starter) -> anyhow::Result<()> {
        self.isolate();
        let Some(init) = self.setup.spec.guest.init.clone() else {
            return self.open(starter);
        };
        self.phase = Phase::Preparing;
        let request = Request::Init(init);
        Ok(self
            .relay
            .request(Own::Init, &request, &mut self.machine.agent)?)
    }

    /// The agent's answer to that.
    pub(super) fn handed_over(
        &mut self,
        message: &[u8],
        starter: &mut Starter,
    ) -> anyhow::Result<()> {
        match serde_json::from_slice(message)
            .context("the agent's answer about the init cannot be understood")?
        {
            InitEvent::Started { .. } => self.open(starter),
            InitEvent::Failed { message } => {
                let message = format!("the guest failed in its stage 'init': {message}");
                self.finish(Reason::BootFailed, Some(message));
                Ok(())
            }
        }
    }
}
