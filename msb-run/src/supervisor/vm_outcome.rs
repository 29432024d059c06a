//! The reason for the end of a VM that ended by itself, from the exit status of its process and the
//! guest's console.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use libmsb::state::status::Reason;

use crate::supervisor::console_watcher::GuestExit;

/// Signal of the host's OOM killer.
const SIGKILL: i32 = 9;

/// The reason for an end, and its description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VmOutcome {
    pub(super) reason: Reason,
    pub(super) message: String,
}

fn outcome(reason: Reason, message: impl Into<String>) -> VmOutcome {
    VmOutcome { reason, message: message.into() }
}

/// Returns the outcome of a VM whose process has exited. A process that failed is the reason,
/// whatever the guest reported: the engines exit with success when the guest ended, well or not.
/// `words` is the last line of the logs.
pub(super) fn of_vm(
    exit: Option<ExitStatus>,
    guest_exit: Option<&GuestExit>,
    words: Option<String>,
) -> VmOutcome {
    let words = words.map(|words| format!(": {words}")).unwrap_or_default();
    let signal = exit.and_then(|exit| exit.signal());
    let code = exit.and_then(|exit| exit.code()).filter(|code| *code != 0);
    match (signal, code) {
        (Some(SIGKILL), _) => outcome(
            Reason::VmmFailed,
            "the VMM process was killed (signal 9): by a user, or by the host's OOM killer",
        ),
        (Some(signal), _) => outcome(
            Reason::VmmFailed,
            format!("the VMM process was killed by signal {signal}{words}"),
        ),
        (None, Some(code)) => {
            outcome(Reason::VmmFailed, format!("the VMM process failed with status {code}{words}"))
        }
        (None, None) if guest_exit.is_some() => of_guest(guest_exit),
        (None, None) => {
            outcome(Reason::VmExited, format!("the virtual machine ended by itself{words}"))
        }
    }
}

/// Returns the outcome that the guest's console reported.
pub(super) fn of_guest(guest_exit: Option<&GuestExit>) -> VmOutcome {
    match guest_exit {
        Some(GuestExit::Panicked(why)) => {
            outcome(Reason::GuestPanicked, format!("the guest's kernel panicked: {why}"))
        }
        Some(GuestExit::OutOfMemory(why)) => outcome(
            Reason::OutOfMemory,
            format!("the guest's kernel ran out of memory and panicked: {why}"),
        ),
        Some(GuestExit::AgentEnded(status)) => outcome(
            Reason::AgentFailed,
            format!("the guest's agent ended{}", describe_status(status)),
        ),
        Some(GuestExit::AgentFailed(why)) => {
            outcome(Reason::AgentFailed, format!("the guest's agent failed: {why}"))
        }
        Some(GuestExit::PoweredOff) => {
            outcome(Reason::GuestPoweredOff, "the guest powered itself off")
        }
        Some(GuestExit::Halted) => outcome(Reason::GuestPoweredOff, "the guest halted"),
        Some(GuestExit::Rebooted) => outcome(Reason::GuestRebooted, "the guest restarted itself"),
        None => outcome(Reason::VmExited, "the guest does not answer"),
    }
}

/// Describes a status of wait(2), given in the hexadecimal digits that the kernel prints.
fn describe_status(status: &str) -> String {
    let digits = status.trim_start_matches("0x");
    match u32::from_str_radix(digits, 16) {
        Ok(status) if status & 0x7f != 0 => format!(": killed by signal {}", status & 0x7f),
        Ok(status) => format!(" with status {}", (status >> 8) & 0xff),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(raw_status: i32, guest_exit: Option<GuestExit>) -> Reason {
        of_vm(Some(ExitStatus::from_raw(raw_status)), guest_exit.as_ref(), Some("words".into()))
            .reason
    }

    #[test]
    fn a_process_that_failed_is_the_reason_whatever_the_guest_said() {
        for guest_exit in [None, Some(GuestExit::PoweredOff)] {
            assert_eq!(reason(9, guest_exit.clone()), Reason::VmmFailed);
            assert_eq!(reason(6, guest_exit.clone()), Reason::VmmFailed);
            assert_eq!(reason(1 << 8, guest_exit), Reason::VmmFailed);
        }
    }

    #[test]
    fn the_exit_status_of_an_agent_is_described() {
        assert_eq!(describe_status(""), "");
        assert_eq!(describe_status("0x0000000b"), ": killed by signal 11");
        assert_eq!(describe_status("0x00000100"), " with status 1");
        assert_eq!(describe_status("nonsense"), "");
    }

    #[test]
    fn success_is_what_the_guest_says_it_was() {
        let cases = [
            (GuestExit::Panicked("x".into()), Reason::GuestPanicked),
            (GuestExit::OutOfMemory("x".into()), Reason::OutOfMemory),
            (GuestExit::AgentEnded("0x4".into()), Reason::AgentFailed),
            (GuestExit::AgentFailed("x".into()), Reason::AgentFailed),
            (GuestExit::PoweredOff, Reason::GuestPoweredOff),
            (GuestExit::Halted, Reason::GuestPoweredOff),
            (GuestExit::Rebooted, Reason::GuestRebooted),
        ];
        for (guest_exit, expected) in cases {
            assert_eq!(reason(0, Some(guest_exit)), expected);
        }
        assert_eq!(reason(0, None), Reason::VmExited);
    }
}
