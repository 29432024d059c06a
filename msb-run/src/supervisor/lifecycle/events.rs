//! Events in the life of a sandbox, and the actions that follow.

use std::time::Duration;

use libmsb::state::status::Reason;

use super::phase::BootMethod;
use super::vcpus::MonitorCommand;
use crate::supervisor::vm_outcome::VmOutcome;

/// An event in the life of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LifecycleEvent {
    /// A boot slot was acquired.
    SlotAcquired,
    /// The VMM process was started.
    VmStarted(BootMethod),
    /// The VM could not be started.
    StartFailed { message: String, hint: Option<String> },
    /// The engine offers no further attempt to boot.
    AttemptsExhausted,
    /// The agent has sent its hello, in a VM that boots.
    HelloReceived,
    /// The VM could not be recorded or filled from memory, for this reason.
    PreparationFailed(String),
    /// The guest is set up.
    GuestReady,
    /// The guest's files are changed.
    FilesChanged,
    /// The image's init was started.
    InitStarted,
    /// The guest cannot be set up, for this reason.
    GuestFailed(String),
    /// The main command has ended. `attached`: its client is connected.
    MainEnded { oom_killed: bool, attached: bool },
    /// A stop was requested.
    StopRequested { reason: Reason, timeout: Duration },
    /// A stop was requested by an event on the host, with the default timeout.
    Stop(Reason),
    /// The guest has answered the shutdown request.
    ShutdownAnswered { clean: bool },
    /// The shutdown request could not be sent.
    ShutdownFailed,
    /// The agent has broken the protocol: it sent this.
    AgentViolation(String),
    /// The VMM process has exited.
    VmExited(VmOutcome),
    /// The agent did not answer a ping after the console had reported the guest's end.
    GuestSilent(VmOutcome),
    /// A process of the sandbox has failed.
    ProcessFailed { reason: Reason, message: String },
    /// The console reports the guest's end.
    ConsoleReportedEnd,
    /// The agent has answered a ping.
    PingAnswered,
    /// A command to the VM's monitor is done.
    MonitorDone { succeeded: bool },
    /// Time has passed.
    Tick,
}

/// An action that the supervisor performs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LifecycleAction {
    /// Start the first VM.
    StartVm,
    /// Kill the VM, and boot another one for this attempt.
    StartAttempt(u32),
    /// Kill the VM, and boot another one that is not recorded.
    BootUnrecorded,
    /// Kill the VM, and boot another one, for this reason.
    FallBack(String),
    /// Let the next sandbox boot.
    ReleaseSlot,
    /// Change the guest's files.
    ChangeFiles,
    /// Give up privileges that are not needed any more.
    Isolate,
    /// Start the image's init.
    StartInit,
    /// Open the guest to clients and publish that it runs.
    Open,
    /// Report to the starter that the sandbox was stopped before the guest was up.
    ReportStopped,
    /// Write the clients' queued output before the VM is killed, which takes a moment.
    FlushClients,
    /// Publish that the sandbox is stopping.
    PublishStopping,
    /// Ask the guest to shut down.
    ShutDownGuest { timeout: Duration },
    /// Refuse requests for the agent.
    RefuseRequests,
    /// Admit requests for the agent again.
    AdmitRequests,
    /// Send the time to the agent, which reads it when the vCPUs run.
    SendTime,
    /// Send a command to the VM's monitor.
    RunMonitor(MonitorCommand),
    /// Publish that the sandbox is paused, and answer the client.
    PublishPaused,
    /// Publish that the sandbox runs again, and answer the client.
    PublishResumed,
    /// Ping the agent.
    Ping,
    /// Kill the VM of a guest that is silent, and report its outcome.
    KillSilent,
}

/// A refusal of a pause or resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PauseRefusal {
    /// The sandbox is in a wrong state: words that follow its name.
    WrongState(&'static str),
    /// The engine cannot pause.
    Unsupported,
}
