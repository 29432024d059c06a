//! The vCPUs of a guest: running, paused, or between the two.

/// The state of the guest's vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum VcpuState {
    #[default]
    Running,
    /// The command to stop them was sent.
    Pausing,
    Paused,
    /// The command to continue was sent.
    Resuming,
}

/// A command to the VM's monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MonitorCommand {
    Stop,
    Cont,
}

impl MonitorCommand {
    /// Returns the name of the command in QMP.
    pub(crate) fn name(self) -> &'static str {
        match self {
            MonitorCommand::Stop => "stop",
            MonitorCommand::Cont => "cont",
        }
    }
}

impl VcpuState {
    /// Returns the command for a pause request, or the reason for its refusal: words that follow
    /// the name of the sandbox.
    pub(super) fn pause(&mut self) -> Result<MonitorCommand, &'static str> {
        match self {
            VcpuState::Running => {
                *self = VcpuState::Pausing;
                Ok(MonitorCommand::Stop)
            }
            VcpuState::Pausing => Err("is already being paused"),
            VcpuState::Paused => Err("is already paused"),
            VcpuState::Resuming => Err("is being resumed"),
        }
    }

    /// Returns the command for a resume request, or the reason for its refusal.
    pub(super) fn resume(&mut self) -> Result<MonitorCommand, &'static str> {
        match self {
            VcpuState::Paused => {
                *self = VcpuState::Resuming;
                Ok(MonitorCommand::Cont)
            }
            VcpuState::Running => Err("is not paused"),
            VcpuState::Pausing => Err("is being paused"),
            VcpuState::Resuming => Err("is already being resumed"),
        }
    }

    /// Enters the state after a command and returns the next command. The guest of a stopping
    /// sandbox must run.
    pub(super) fn done(&mut self, succeeded: bool, is_stopping: bool) -> Option<MonitorCommand> {
        *self = match (*self, succeeded) {
            (VcpuState::Pausing, true) | (VcpuState::Resuming, false) => VcpuState::Paused,
            _ => VcpuState::Running,
        };
        // A failed command is not repeated: the timeout of the shutdown ends such a VM.
        (is_stopping && succeeded).then(|| self.resume().ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_stop_and_continue_by_one_command_each() {
        let mut vcpus = VcpuState::default();
        assert_eq!(vcpus.resume(), Err("is not paused"));
        assert_eq!(vcpus.pause(), Ok(MonitorCommand::Stop));
        assert_eq!(vcpus.pause(), Err("is already being paused"));
        assert_eq!(vcpus.resume(), Err("is being paused"));
        assert_eq!(vcpus.done(true, false), None);
        assert_eq!(vcpus, VcpuState::Paused);
        assert_eq!(vcpus.pause(), Err("is already paused"));
        assert_eq!(vcpus.resume(), Ok(MonitorCommand::Cont));
        assert_eq!(vcpus.pause(), Err("is being resumed"));
        assert_eq!(vcpus.resume(), Err("is already being resumed"));
        assert_eq!(vcpus.done(true, false), None);
        assert_eq!(vcpus, VcpuState::Running);
    }

    #[test]
    fn a_command_that_fails_leaves_the_state_before_it() {
        let mut vcpus = VcpuState::default();
        vcpus.pause().unwrap();
        assert_eq!(vcpus.done(false, false), None);
        assert_eq!(vcpus, VcpuState::Running);
        vcpus.pause().unwrap();
        vcpus.done(true, false);
        vcpus.resume().unwrap();
        assert_eq!(vcpus.done(false, true), None);
        assert_eq!(vcpus, VcpuState::Paused);
    }

    #[test]
    fn a_sandbox_that_stops_while_it_is_paused_runs_again() {
        let mut vcpus = VcpuState::default();
        vcpus.pause().unwrap();
        assert_eq!(vcpus.done(true, true), Some(MonitorCommand::Cont));
        assert_eq!(vcpus, VcpuState::Resuming);
        assert_eq!(vcpus.done(true, true), None);
        assert_eq!(vcpus, VcpuState::Running);
    }
}
