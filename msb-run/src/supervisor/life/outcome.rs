//! How a machine that ended by itself came to that: by the status of its process, and by what the guest said last.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use libmsb::state::status::Reason;

use crate::supervisor::last_line::Farewell;

/// The signal of the host's own killer for lack of memory.
const SIGKILL: i32 = 9;

/// Why it ended, and in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) reason: Reason,
    pub(super) message: String,
}

fn outcome(reason: Reason, message: impl Into<String>) -> Outcome {
    Outcome {
        reason,
        message: message.into(),
    }
}

/// The end of a machine whose process is gone. A process that failed is the reason, whatever the guest said: success is
/// what the engines end with when the guest ended, well or not. `words`: the last that was written to the logs.
pub(super) fn of_machine(
    exit: Option<ExitStatus>,
    farewell: Option<&Farewell>,
    words: Option<String>,
) -> Outcome {
    let words = words.map(|words| format!(": {words}")).unwrap_or_default();
    let signal = exit.and_then(|exit| exit.signal());
    let code = exit.and_then(|exit| exit.code()).filter(|code| *code != 0);
    match (signal, code) {
        (Some(SIGKILL), _) => outcome(
            Reason::VmmFailed,
            "the process of the virtual machine was killed (signal 9), by somebody or by the host for lack of memory",
        ),
        (Some(signal), _) => outcome(
            Reason::VmmFailed,
            format!("the process of the virtual machine died of signal {signal}{words}"),
        ),
        (None, Some(code)) => outcome(
            Reason::VmmFailed,
            format!("the process of the virtual machine failed with status {code}{words}"),
        ),
        (None, None) if farewell.is_some() => of_guest(farewell),
        (None, None) => outcome(
            Reason::VmExited,
            format!("the virtual machine ended by itself{words}"),
        ),
    }
}

/// The end that the guest told.
pub(super) fn of_guest(farewell: Option<&Farewell>) -> Outcome {
    match farewell {
        Some(Farewell::Panicked(why)) => outcome(
            Reason::GuestPanicked,
            format!("the guest's kernel panicked: {why}"),
        ),
        Some(Farewell::OutOfMemory(why)) => outcome(
            Reason::OutOfMemory,
            format!("the guest's kernel ran out of memory and panicked: {why}"),
        ),
        Some(Farewell::AgentEnded(status)) => outcome(
            Reason::AgentFailed,
            format!("the guest's agent ended{}", with_status(status)),
        ),
        Some(Farewell::AgentFailed(why)) => outcome(
            Reason::AgentFailed,
            format!("the guest's agent could not go on: {why}"),
        ),
        Some(Farewell::PoweredOff) => {
            outcome(Reason::GuestPoweredOff, "the guest powered itself off")
        }
        Some(Farewell::Halted) => outcome(Reason::GuestPoweredOff, "the guest halted"),
        Some(Farewell::Rebooted) => outcome(Reason::GuestRebooted, "the guest restarted itself"),
        None => outcome(Reason::VmExited, "the guest does not answer any more"),
    }
}

/// A status of wait(2), in the hexadecimal digits that the kernel prints, in words.
fn with_status(status: &str) -> String {
    let digits = status.trim_start_matches("0x");
    match u32::from_str_radix(digits, 16) {
        Ok(status) if status & 0x7f != 0 => format!(": signal {} killed it", status & 0x7f),
        Ok(status) => format!(" with status {}", (status >> 8) & 0xff),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(raw_status: i32, farewell: Option<Farewell>) -> Reason {
        of_machine(
            Some(ExitStatus::from_raw(raw_status)),
            farewell.as_ref(),
            Some("words".into()),
        )
        .reason
    }

    #[test]
    fn a_process_that_failed_is_the_reason_whatever_the_guest_said() {
        for farewell in [None, Some(Farewell::PoweredOff)] {
            assert_eq!(reason(9, farewell.clone()), Reason::VmmFailed);
            assert_eq!(reason(6, farewell.clone()), Reason::VmmFailed);
            assert_eq!(reason(1 << 8, farewell), Reason::VmmFailed);
        }
    }

    #[test]
    fn the_end_of_an_agent_is_told_in_words() {
        assert_eq!(with_status(""), "");
        assert_eq!(with_status("0x0000000b"), ": signal 11 killed it");
        assert_eq!(with_status("0x00000100"), " with status 1");
        assert_eq!(with_status("nonsense"), "");
    }

    #[test]
    fn success_is_what_the_guest_says_it_was() {
        let cases = [
            (Farewell::Panicked("x".into()), Reason::GuestPanicked),
            (Farewell::OutOfMemory("x".into()), Reason::OutOfMemory),
            (Farewell::AgentEnded("0x4".into()), Reason::AgentFailed),
            (Farewell::AgentFailed("x".into()), Reason::AgentFailed),
            (Farewell::PoweredOff, Reason::GuestPoweredOff),
            (Farewell::Halted, Reason::GuestPoweredOff),
            (Farewell::Rebooted, Reason::GuestRebooted),
        ];
        for (farewell, expected) in cases {
            assert_eq!(reason(0, Some(farewell)), expected);
        }
        assert_eq!(reason(0, None), Reason::VmExited);
    }
}
