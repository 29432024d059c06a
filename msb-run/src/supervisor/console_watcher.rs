//! Detection of the guest's end from its kernel's console messages.
//!
//! The engines end alike whether the guest panicked, restarted or powered itself off, and libkrun
//! does not even end after a power-off: only the console shows it. The console is under the guest's
//! control. A root user in the guest can write anything there, but could also cause all of this for
//! real, so it counts as the guest's own statement. Other guest users may get text of theirs into a
//! kernel message. A VM is therefore never killed because of its console unless its agent is silent
//! too.

/// Bytes of a line that are examined.
const LINE_BYTES_MAX: usize = 512;

/// Panic reason when the first process has ended; its exit status follows.
const AGENT_ENDED: &str = "Attempted to kill init! exitcode=";
/// Message of libkrunfw's kernel in place of a panic when the first process has ended. It tries an
/// orderly restart, which needs a program that no guest of msb has.
const AGENT_ENDED_KRUN: &str = "reboot: Failed to start orderly reboot: forcing the issue";
/// Prefixes of panic reasons for lack of memory.
const OUT_OF_MEMORY: [&str; 2] = ["Out of memory", "System is deadlocked on memory"];

/// The end of a guest as its console reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GuestExit {
    /// The kernel panicked, for this reason.
    Panicked(String),
    /// The kernel panicked for lack of memory.
    OutOfMemory(String),
    /// The kernel panicked or restarted because its first process, the agent, ended; with the exit
    /// status if the message has one.
    AgentEnded(String),
    /// The agent failed, for this reason.
    AgentFailed(String),
    /// The guest powered itself off.
    PoweredOff,
    /// The guest halted, which no VMM notices.
    Halted,
    /// The guest restarted.
    Rebooted,
}

/// A line parser of a console.
#[derive(Debug, Default)]
pub(crate) struct ConsoleWatcher {
    line: Vec<u8>,
    guest_exit: Option<GuestExit>,
}

impl ConsoleWatcher {
    /// Parses printed bytes.
    pub(crate) fn feed(&mut self, printed: &[u8]) {
        for byte in printed {
            if *byte == b'\n' {
                self.scan_line();
                self.line.clear();
            } else if self.line.len() < LINE_BYTES_MAX {
                self.line.push(*byte);
            }
        }
    }

    /// Returns the end that the guest reported, if it did.
    pub(crate) fn guest_exit(&self) -> Option<&GuestExit> {
        self.guest_exit.as_ref()
    }

    /// Discards the reported end: the agent has answered.
    pub(crate) fn clear(&mut self) {
        self.guest_exit = None;
    }

    fn scan_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        let Some(reported) = guest_exit(line.trim_end()) else {
            return;
        };
        // A restart after the end of the agent is a consequence of that end.
        let agents =
            matches!(self.guest_exit, Some(GuestExit::AgentFailed(_) | GuestExit::AgentEnded(_)));
        if reported == GuestExit::Rebooted && agents {
            return;
        }
        self.guest_exit = Some(reported);
    }
}

fn guest_exit(line: &str) -> Option<GuestExit> {
    if let Some(why) = line.strip_prefix("msb-agent: error: ") {
        return Some(GuestExit::AgentFailed(why.to_owned()));
    }
    let text = without_stamps(line)?;
    if let Some(why) = text.strip_prefix("Kernel panic - not syncing: ") {
        return Some(panic(why));
    }
    match text {
        // The second message appears where nothing turns the power off, as under libkrun.
        "reboot: Power down" | "reboot: Power off not available: System halted instead" => {
            Some(GuestExit::PoweredOff)
        }
        AGENT_ENDED_KRUN => Some(GuestExit::AgentEnded(String::new())),
        "reboot: System halted" => Some(GuestExit::Halted),
        // The second is the message of libkrunfw's kernel, which omits the first.
        "reboot: Restarting system" | "reboot: machine restart" | "sysrq: Resetting" => {
            Some(GuestExit::Rebooted)
        }
        _ => None,
    }
}

fn panic(why: &str) -> GuestExit {
    if let Some(status) = why.strip_prefix(AGENT_ENDED) {
        GuestExit::AgentEnded(status.to_owned())
    } else if OUT_OF_MEMORY.iter().any(|words| why.starts_with(words)) {
        GuestExit::OutOfMemory(why.to_owned())
    } else {
        GuestExit::Panicked(why.to_owned())
    }
}

/// Strips the time stamp of a kernel line, `[    1.234567] `, and the `[    T1] ` that may follow.
/// Returns `None` for a line without one, which is not from the kernel.
fn without_stamps(line: &str) -> Option<&str> {
    let mut text = line;
    while let Some(rest) = text.strip_prefix('[') {
        text = rest.split_once(']')?.1;
    }
    let stamped = text.len() < line.len();
    stamped.then(|| text.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(console: &str) -> Option<GuestExit> {
        let mut last = ConsoleWatcher::default();
        // In pieces, as it arrives.
        for piece in console.as_bytes().chunks(7) {
            last.feed(piece);
        }
        last.guest_exit().cloned()
    }

    #[test]
    fn each_end_of_a_guest_is_recognized_by_its_kernel_message() {
        let cases = [
            ("reboot: Power down", GuestExit::PoweredOff),
            ("reboot: Power off not available: System halted instead", GuestExit::PoweredOff),
            ("reboot: System halted", GuestExit::Halted),
            ("reboot: Restarting system", GuestExit::Rebooted),
            ("reboot: machine restart", GuestExit::Rebooted),
            ("sysrq: Resetting", GuestExit::Rebooted),
            (
                "Kernel panic - not syncing: sysrq triggered crash",
                GuestExit::Panicked("sysrq triggered crash".into()),
            ),
            (
                "Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled",
                GuestExit::OutOfMemory("Out of memory: compulsory panic_on_oom is enabled".into()),
            ),
            (
                "Kernel panic - not syncing: System is deadlocked on memory",
                GuestExit::OutOfMemory("System is deadlocked on memory".into()),
            ),
            (
                "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b",
                GuestExit::AgentEnded("0x0000000b".into()),
            ),
        ];
        for (line, expected) in cases {
            for stamp in ["[    2.345678] ", "[12345.678901][    T1] "] {
                let console =
                    format!("[    0.1] x\r\n{stamp}{line}\r\n[    3.0] CPU: 0 PID: 1\r\n");
                assert_eq!(last(&console), Some(expected.clone()), "{line}");
            }
        }
    }

    #[test]
    fn a_line_without_the_kernels_time_stamp_is_ignored() {
        for line in [
            "reboot: Power down\n",
            "[    1.0] overlayfs: failed to resolve 'reboot: Power down': -2\n",
            "[    1.0 reboot: Power down\n",
            "[    1.0] reboot: Power down soon\n",
            "[    1.0] reboot: Power down",
        ] {
            assert_eq!(last(line), None, "{line}");
        }
    }

    #[test]
    fn an_agent_that_gave_up_is_the_reason_for_the_restart_that_follows() {
        let console =
            "msb-agent: error: the host sent nonsense\r\n[    9.0] reboot: Restarting system\r\n";
        assert_eq!(last(console), Some(GuestExit::AgentFailed("the host sent nonsense".into())));
    }

    #[test]
    fn an_agent_that_died_under_libkrunfw_is_the_reason_for_the_restart_that_follows() {
        let console = "[    4.5] reboot: Failed to start orderly reboot: forcing the issue\r\n\
            [    4.6] reboot: machine restart\r\n";
        assert_eq!(last(console), Some(GuestExit::AgentEnded(String::new())));
    }

    #[test]
    fn an_endless_line_takes_no_memory() {
        let mut last = ConsoleWatcher::default();
        last.feed(&vec![b'x'; 10_000_000]);
        assert!(last.line.capacity() <= 2 * LINE_BYTES_MAX);
    }
}
