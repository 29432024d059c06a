//! What the guest's kernel said last on its console.
//!
//! The engines end alike whether the guest panicked, restarted or powered itself off, and libkrun does not even end for
//! the last: only the console tells. It is the guest's: whoever is root there can write what they like, and could do all of
//! this in earnest, so it says what the guest says of itself. Others may get words of theirs into a message of the kernel;
//! so a machine is never killed for what the console says unless its agent is silent too.

/// Bytes of a line that are looked at.
const LINE_BYTES_MAX: usize = 512;

/// Said when the first process has ended; what it ended with follows.
const AGENT_ENDED: &str = "Attempted to kill init! exitcode=";
/// Said by libkrunfw's kernel in place of a panic when the first process has ended: it tries to restart in order, for which
/// it needs a program that no guest of ours has.
const AGENT_ENDED_KRUN: &str = "reboot: Failed to start orderly reboot: forcing the issue";
/// How the reasons of a panic for lack of memory begin.
const OUT_OF_MEMORY: [&str; 2] = ["Out of memory", "System is deadlocked on memory"];

/// How a guest said that it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// The kernel panicked, and said why.
    Panicked(String),
    /// It panicked for lack of memory.
    OutOfMemory(String),
    /// It panicked or restarted since its first process, the agent, had ended; with which status, if it said so.
    AgentEnded(String),
    /// The agent could not go on, and said why.
    AgentFailed(String),
    /// It powered itself off.
    PoweredOff,
    /// It halted, which no machine notices.
    Halted,
    /// It restarted.
    Rebooted,
}

/// Follows a console.
#[derive(Debug, Default)]
pub(crate) struct LastLine {
    line: Vec<u8>,
    farewell: Option<Farewell>,
}

impl LastLine {
    /// Takes what was printed.
    pub(crate) fn follow(&mut self, printed: &[u8]) {
        for byte in printed {
            if *byte == b'\n' {
                self.judge();
                self.line.clear();
            } else if self.line.len() < LINE_BYTES_MAX {
                self.line.push(*byte);
            }
        }
    }

    /// How the guest said that it ends, if it did.
    pub(crate) fn farewell(&self) -> Option<&Farewell> {
        self.farewell.as_ref()
    }

    /// The guest goes on, whatever was said.
    pub(crate) fn goes_on(&mut self) {
        self.farewell = None;
    }

    fn judge(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        let Some(said) = farewell(line.trim_end()) else {
            return;
        };
        // A machine that restarts since its agent is at its end has no reason of its own.
        let agents = matches!(
            self.farewell,
            Some(Farewell::AgentFailed(_) | Farewell::AgentEnded(_))
        );
        if said == Farewell::Rebooted && agents {
            return;
        }
        self.farewell = Some(said);
    }
}

fn farewell(line: &str) -> Option<Farewell> {
    if let Some(why) = line.strip_prefix("msb-agent: error: ") {
        return Some(Farewell::AgentFailed(why.to_owned()));
    }
    let text = without_stamps(line)?;
    if let Some(why) = text.strip_prefix("Kernel panic - not syncing: ") {
        return Some(panic(why));
    }
    match text {
        // The latter where nothing turns the power off, as under libkrun.
        "reboot: Power down" | "reboot: Power off not available: System halted instead" => {
            Some(Farewell::PoweredOff)
        }
        AGENT_ENDED_KRUN => Some(Farewell::AgentEnded(String::new())),
        "reboot: System halted" => Some(Farewell::Halted),
        // The second is what libkrunfw's kernel says, which leaves the first out.
        "reboot: Restarting system" | "reboot: machine restart" | "sysrq: Resetting" => {
            Some(Farewell::Rebooted)
        }
        _ => None,
    }
}

fn panic(why: &str) -> Farewell {
    if let Some(status) = why.strip_prefix(AGENT_ENDED) {
        Farewell::AgentEnded(status.to_owned())
    } else if OUT_OF_MEMORY.iter().any(|words| why.starts_with(words)) {
        Farewell::OutOfMemory(why.to_owned())
    } else {
        Farewell::Panicked(why.to_owned())
    }
}

/// A line of the kernel begins with `[    1.234567] `, and on some with `[    T1] ` after that. Without it, the line is
/// somebody else's.
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

    fn last(console: &str) -> Option<Farewell> {
        let mut last = LastLine::default();
        // In pieces, as it comes.
        for piece in console.as_bytes().chunks(7) {
            last.follow(piece);
        }
        last.farewell().cloned()
    }

    #[test]
    fn each_end_of_a_kernel_has_its_line() {
        let cases = [
            ("reboot: Power down", Farewell::PoweredOff),
            (
                "reboot: Power off not available: System halted instead",
                Farewell::PoweredOff,
            ),
            ("reboot: System halted", Farewell::Halted),
            ("reboot: Restarting system", Farewell::Rebooted),
            ("reboot: machine restart", Farewell::Rebooted),
            ("sysrq: Resetting", Farewell::Rebooted),
            (
                "Kernel panic - not syncing: sysrq triggered crash",
                Farewell::Panicked("sysrq triggered crash".into()),
            ),
            (
                "Kernel panic - not syncing: Out of memory: compulsory panic_on_oom is enabled",
                Farewell::OutOfMemory("Out of memory: compulsory panic_on_oom is enabled".into()),
            ),
            (
                "Kernel panic - not syncing: System is deadlocked on memory",
                Farewell::OutOfMemory("System is deadlocked on memory".into()),
            ),
            (
                "Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b",
                Farewell::AgentEnded("0x0000000b".into()),
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
    fn a_line_without_the_kernels_stamp_or_not_at_its_begin_says_nothing() {
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
        assert_eq!(
            last(console),
            Some(Farewell::AgentFailed("the host sent nonsense".into()))
        );
    }

    #[test]
    fn an_agent_that_died_under_libkrunfw_is_the_reason_for_the_restart_that_follows() {
        let console = "[    4.5] reboot: Failed to start orderly reboot: forcing the issue\r\n[    4.6] reboot: machine restart\r\n";
        assert_eq!(last(console), Some(Farewell::AgentEnded(String::new())));
    }

    #[test]
    fn an_endless_line_takes_no_memory() {
        let mut last = LastLine::default();
        last.follow(&vec![b'x'; 10_000_000]);
        assert!(last.line.capacity() <= 2 * LINE_BYTES_MAX);
    }
}
