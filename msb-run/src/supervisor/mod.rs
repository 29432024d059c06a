//! The supervisor of one sandbox.
//!
//! The supervisor is a process that leads its own session. It holds the sandbox's lock, starts the
//! virtual machine, sets the guest up, relays between clients and agent, and writes status and
//! logs. At the end it leaves the sandbox's directory clean and stopped, or removes it. It is one
//! event loop over descriptors in one thread, which sleeps while there are no events.
//!
//! [`lifecycle`] decides, without knowing a process. [`guest_link`], [`clients`], [`jobs`],
//! [`console`], [`network`], [`journal`], [`pause`], [`backup`] and
//! [`memory_save`] each hold one concern, without
//! knowing each other. [`sandbox`] owns them and connects them through [`event_loop`].

mod args;
mod background_task;
mod backup;
mod client_listener;
mod clients;
mod clock;
mod console;
mod console_watcher;
mod event_loop;
mod exec_log;
mod file_changes;
mod frame_socket;
mod guest_link;
mod jobs;
mod journal;
mod lifecycle;
mod memory_save;
mod network;
mod operations;
mod pause;
pub(crate) mod relay;
mod samples;
mod sandbox;
mod setup;
mod share_server;
mod vm;
mod vm_outcome;
mod vm_start;

pub(crate) use args::SupervisorArgs;

use libmsb::cli::error::{message, print_failure};
use libmsb::state::sandboxes::Sandbox;
use libmsb::state::status::{Reason, State, Status};
use libmsb::state::{Home, layout};

use self::sandbox::SandboxSupervisor;
use crate::process::error_log;
use crate::startup::StartupReport;

/// Runs a sandbox to its end.
pub(crate) fn run(args: SupervisorArgs) -> anyhow::Result<()> {
    // Setsid(2) fails for a process that already leads a session, such as a service manager's
    // child. That is as good.
    let _ = rustix::process::setsid();
    // It was started through /proc/self/exe; ps(1) and top(1) would show "exe".
    let _ = rustix::thread::set_name(c"msb-supervisor");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let (name, lock, mut starter, secrets) = args.take()?;
    let home = Home::from_env()?;
    let sandbox = home.sandboxes().named(&name);
    // Without a log, errors go to the standard error of the process that started this one.
    let _ = error_log::open(&sandbox.path(layout::SUPERVISOR_LOG));
    let opened = setup::prepare(home, &sandbox, lock, secrets).and_then(|(setup, note)| {
        starter.report(&StartupReport::Prepared { note });
        SandboxSupervisor::open(setup, &mut starter)
    });
    match opened {
        Ok(mut supervisor) => {
            event_loop::run(&mut supervisor);
            let ended = supervisor.shut_down();
            error_log::copy();
            ended
        }
        Err((error, lock)) => {
            record_failed_start(&sandbox, &error);
            drop(lock);
            starter.report(&StartupReport::failed(&error));
            Err(error)
        }
    }
}

/// Records a failed start in the sandbox's directory, or removes the directory of an ephemeral
/// sandbox.
fn record_failed_start(sandbox: &Sandbox, error: &anyhow::Error) {
    let status = Status {
        reason: Some(Reason::BootFailed),
        message: Some(message(error)),
        changed: sandbox.status().is_ok_and(|status| status.changed),
        ..Status::new(State::Crashed)
    };
    let ephemeral = sandbox.spec().is_ok_and(|spec| spec.ephemeral);
    let left = if ephemeral { sandbox.remove_locked() } else { sandbox.set_status(&status) };
    if let Err(error) = left {
        // The lock will be free, which shows that the sandbox does not run.
        print_failure("msb-supervisor", &error);
    }
}
