//! How a machine comes to run: by a boot, or from memory ([`crate::boot_state`]).
//!
//! A boot of a kind of which no state is kept stops at the agent's hello for a moment, for its state to be taken. A start
//! from memory that fails before the guest is set up is followed by a boot, whatever the reason.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::Context;
use libmsb::cli::error::{message, print_warning};
use libmsb::state::status::{BootKind, Reason};
use msb_wire::handshake::{Hello, operation};

use super::{Life, Phase};
use crate::boot_state::{
    BootState, Monitor, Recording, Restore, Store, Subject, may_start_from_memory, plug_share, take,
};
use crate::engine::kind::{Kind, TscRate};
use crate::supervisor::last_line::LastLine;
use crate::supervisor::machine::Way;
use crate::supervisor::relay::Violation;
use crate::supervisor::task::Task;
use crate::supervisor::{TOOL, last_words, start_machine, wanted};

/// Time for a guest that starts from memory to be set up. It takes less than a second on an idle host.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(20);

/// What the start of a machine is about.
#[derive(Debug, Default)]
pub(super) struct Start {
    /// The kind of the machine, if it may start from memory and its state may be taken.
    kind: Option<Kind>,
    /// Nanoseconds from the kernel's start to the hello of the state that the machine started from.
    from_ns: Option<u64>,
    /// The machine is made ready.
    task: Option<Task<Ready>>,
    /// The agent's hello, which is answered when the machine is ready.
    hello: Option<Hello>,
    /// The file for the state of the machine that boots.
    recording: Option<Recording>,
    /// A state gets its name.
    publishing: Option<Task<()>>,
    /// Why a state was of no use.
    pub(super) note: Option<String>,
}

/// A machine that is ready.
#[derive(Debug)]
enum Ready {
    /// For the boot request.
    Boot(Monitor),
    /// Its state was taken, and it is of no more use.
    Taken(Recording, Box<BootState>),
}

impl Start {
    /// Returns the descriptor that is ready when the machine is.
    pub(super) fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.task.as_ref().map(AsFd::as_fd)
    }

    /// Returns whether the machine boots for its state, and has not said hello yet.
    pub(super) fn records(&self) -> bool {
        self.recording.is_some()
    }

    /// Returns the uptime of the guest in the state that it started from.
    pub(super) fn kept_ns(&self) -> Option<u64> {
        self.from_ns
    }

    /// Waits until the state that was taken has its name.
    pub(super) fn finish_publishing(&mut self) {
        if let Some(Err(error)) = self.publishing.take().map(Task::finish) {
            print_warning(TOOL, &format!("cannot keep the state: {}", message(&error)));
        }
    }
}

impl Life {
    /// Starts the first machine of this life.
    pub(super) fn start_first(&mut self) -> anyhow::Result<()> {
        let way = self.find_way();
        self.start_with(way)
    }

    fn start_with(&mut self, way: Way) -> anyhow::Result<()> {
        let hello = match &way {
            Way::Memory(state) => Some(state.header.hello.clone()),
            Way::Boot | Way::Record => None,
        };
        self.status.boot = Some(if hello.is_some() {
            BootKind::Memory
        } else {
            BootKind::Cold
        });
        let (machine, restore) = start_machine(&self.setup, &self.samples, 0, way)?
            .context("the engine has no way to start a machine")?;
        self.boots(machine, 0);
        match (restore, hello) {
            (Some(restore), Some(hello)) => self.go_on_from(restore, hello),
            _ => Ok(()),
        }
    }

    /// From the state of the kind, if it is kept; else by a boot, whose state is taken if nobody else takes one now. What is
    /// wrong with a state does not stop a start.
    fn find_way(&mut self) -> Way {
        if !may_start_from_memory(&self.setup.spec) {
            return Way::Boot;
        }
        self.memory_or_record().unwrap_or_else(|error| {
            print_warning(TOOL, &message(&error));
            Way::Boot
        })
    }

    fn memory_or_record(&mut self) -> anyhow::Result<Way> {
        let net = self.setup.net.is_some();
        self.start.kind = self.setup.engine.kind(&wanted(&self.setup), net)?;
        let Some(kind) = &self.start.kind else {
            return Ok(Way::Boot);
        };
        let store = Store::of(&self.setup.home);
        match store.open(kind, TscRate::measure()) {
            Ok(Some(state)) => return Ok(Way::Memory(Box::new(state))),
            Ok(None) => {}
            Err(error) => self.start.note = Some(note(&message(&error))),
        }
        if store.has_given_up(kind) {
            return Ok(Way::Boot);
        }
        self.start.recording = store.begin(kind)?;
        Ok(match self.start.recording {
            Some(_) => Way::Record,
            None => Way::Boot,
        })
    }

    /// The machine gets its memory and the state of its devices, and the guest its boot request: it takes it when it runs.
    fn go_on_from(&mut self, restore: Restore, hello: Hello) -> anyhow::Result<()> {
        self.start.from_ns = Some(hello.hello_ns.unwrap_or(0));
        self.phase = Phase::Booting {
            deadline: Instant::now() + MEMORY_TIMEOUT,
        };
        self.machine.memory = None;
        let unplugged = self.machine.unplugged.take();
        let mut monitor = self
            .machine
            .monitor
            .take()
            .context("the machine has no monitor")?;
        self.start.task = Some(Task::begin("restore", move || {
            restore.run(&mut monitor)?;
            if let Some((socket, tag)) = unplugged {
                monitor.wait_until_running()?;
                plug_share(&mut monitor, &socket, &tag)?;
            }
            Ok(Ready::Boot(monitor))
        })?);
        self.greeted = true;
        self.meet(hello)
            .map_err(|Violation(what)| anyhow::anyhow!("the kept hello is {what}"))
    }

    /// The agent of a machine that has booted said hello: its state is taken, or its share is plugged in.
    pub(super) fn make_ready(&mut self, hello: Hello) -> anyhow::Result<()> {
        if let Some(recording) = self.start.recording.take() {
            return self.take_state(recording, hello);
        }
        // Without a share, the monitor stays for a pause.
        let Some((socket, tag)) = self.machine.unplugged.take() else {
            return self.answer(hello);
        };
        let monitor = self.machine.monitor.take();
        let mut monitor = monitor.context("the machine has no monitor for its share")?;
        self.start.hello = Some(hello);
        self.start.task = Some(Task::begin("share", move || {
            plug_share(&mut monitor, &socket, &tag)?;
            Ok(Ready::Boot(monitor))
        })?);
        Ok(())
    }

    fn take_state(&mut self, recording: Recording, hello: Hello) -> anyhow::Result<()> {
        hello
            .require(operation::BOOT_MEMORY)
            .map_err(anyhow::Error::from)
            .and_then(|()| {
                let monitor = self.machine.monitor.take();
                let memory = self.machine.memory.take();
                let subject = Subject {
                    kind: self.start.kind.clone().context("there is no kind")?,
                    tsc_khz: self.machine.tsc,
                    hello,
                };
                let (mut monitor, memory) = monitor.zip(memory).context("there is no monitor")?;
                self.start.task = Some(Task::begin("state", move || {
                    let (recording, state) = take(&mut monitor, &memory, recording, subject)?;
                    Ok(Ready::Taken(recording, Box::new(state)))
                })?);
                Ok(())
            })
            .or_else(|error| {
                self.boot_instead(&message(&error));
                Ok(())
            })
    }

    fn answer(&mut self, hello: Hello) -> anyhow::Result<()> {
        if let Err(Violation(what)) = self.meet(hello) {
            self.finish(
                Reason::AgentFailed,
                Some(format!("the guest's agent sent {what}")),
            );
        }
        Ok(())
    }

    /// The machine is ready, or is not going to be.
    pub(super) fn readied(&mut self) -> anyhow::Result<()> {
        let Some(task) = self.start.task.take() else {
            return Ok(());
        };
        match task.finish() {
            Ok(Ready::Boot(monitor)) => {
                self.machine.monitor = Some(monitor);
                match self.start.hello.take() {
                    Some(hello) => self.answer(hello),
                    None => Ok(()),
                }
            }
            Ok(Ready::Taken(recording, state)) => {
                self.machine.kill();
                self.copy_last_of_console();
                if let Some(kind) = self.start.kind.clone() {
                    let publish = move || recording.publish(&kind);
                    self.start.publishing = Some(Task::begin("publish", publish)?);
                }
                self.forget_machine();
                self.start_with(Way::Memory(state))
            }
            Err(error) if self.start.hello.is_none() => {
                self.boot_instead(&message(&error));
                Ok(())
            }
            // Its end says more.
            Err(_) if self.machine.poll_exit().is_some() => Ok(()),
            Err(error) => {
                self.finish(Reason::BootFailed, Some(message(&error)));
                Ok(())
            }
        }
    }

    /// Whether the machine is one that a boot can take the place of: it starts from memory, and its guest is not set up yet,
    /// or its state is to be taken.
    pub(super) fn is_replaceable(&self) -> bool {
        let records = self.start.recording.is_some()
            || (self.start.task.is_some() && self.start.hello.is_none());
        (self.start.from_ns.is_some() || records) && matches!(self.phase, Phase::Booting { .. })
    }

    /// A start from memory failed, or the taking of a state: the guest boots.
    pub(super) fn boot_instead(&mut self, why: &str) {
        self.machine.kill();
        self.copy_last_of_console();
        let why = match last_words(&self.setup.sandbox) {
            Some(words) => format!("{why} ({words})"),
            None => why.to_owned(),
        };
        let note = note(&why);
        print_warning(TOOL, &note);
        // A fresh one is no better than what it was made of: then no other would be either.
        let is_fresh = self.start.publishing.is_some();
        self.start.finish_publishing();
        if let Some(kind) = &self.start.kind {
            let store = Store::of(&self.setup.home);
            store.remove(kind);
            if is_fresh || self.start.from_ns.is_none() {
                store.give_up(kind, &note);
            }
        }
        self.start = Start {
            note: Some(note),
            ..Start::default()
        };
        self.forget_machine();
        if let Err(error) = self.start_with(Way::Boot) {
            self.finish_unborn(&error);
        }
    }

    /// The boot for a state hung: the next start tries again to make one, and this guest boots without.
    pub(super) fn boot_without_state(&mut self) -> anyhow::Result<()> {
        self.machine.kill();
        self.start = Start::default();
        self.forget_machine();
        self.start_with(Way::Boot)
    }

    /// Moves what is left of a machine that was killed to the log, which goes on with the next machine.
    fn copy_last_of_console(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = (&self.machine.console).read(&mut bytes) {
            let _ = self.console.as_mut().map(|log| log.append(&bytes[..count]));
        }
    }

    /// Another machine is to come.
    pub(super) fn forget_machine(&mut self) {
        self.greeted = false;
        self.last_line = LastLine::default();
        self.assembler = msb_wire::frame::Assembler::new();
    }
}

fn note(why: &str) -> String {
    format!("cannot start from memory, so the guest boots: {why}")
}
