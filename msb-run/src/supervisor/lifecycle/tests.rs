//! Every transition of the machine.

use std::fmt::Write;

use super::*;

/// Settings with which every action can occur.
fn settings() -> LifecycleSettings {
    LifecycleSettings {
        persistent: false,
        volatile: false,
        has_changes: true,
        has_init: true,
        can_pause: true,
        idle_timeout: Some(Duration::from_secs(60)),
        max_duration: Some(Duration::from_secs(3600)),
    }
}

fn outcome() -> VmOutcome {
    VmOutcome { reason: Reason::GuestPanicked, message: "panic".to_owned() }
}

fn events() -> Vec<Event> {
    let text = |text: &str| text.to_owned();
    vec![
        Event::SlotAcquired,
        Event::VmStarted(BootMethod::Cold { attempt: 0 }),
        Event::VmStarted(BootMethod::Memory),
        Event::StartFailed { message: text("no VM"), hint: Some(text("hint")) },
        Event::AttemptsExhausted,
        Event::HelloReceived,
        Event::PreparationFailed(text("no state")),
        Event::GuestReady,
        Event::FilesChanged,
        Event::InitStarted,
        Event::GuestFailed(text("no root")),
        Event::MainEnded { oom_killed: false, attached: false },
        Event::MainEnded { oom_killed: true, attached: true },
        Event::StopRequested { reason: Reason::StopRequested, timeout: Duration::from_secs(3) },
        Event::StopRequested { reason: Reason::KillRequested, timeout: Duration::ZERO },
        Event::Stop(Reason::Signal),
        Event::ShutdownAnswered { clean: true },
        Event::ShutdownAnswered { clean: false },
        Event::ShutdownFailed,
        Event::AgentViolation(text("nonsense")),
        Event::VmExited(outcome()),
        Event::GuestSilent(outcome()),
        Event::ProcessFailed { reason: Reason::NetFailed, message: text("no network") },
        Event::ConsoleReportedEnd,
        Event::PingAnswered,
        Event::MonitorDone { succeeded: true },
        Event::MonitorDone { succeeded: false },
        Event::Tick,
    ]
}

/// A machine in each of its states, with a name for the state, `start` being the time of its start.
fn machines(start: Instant) -> Vec<(&'static str, Lifecycle)> {
    let machine = |phase: SandboxPhase, vcpus: VcpuState| {
        let mut life = Lifecycle::new(settings(), start);
        (life.phase, life.vcpus) = (phase, vcpus);
        life.expires_at = Some(start + Duration::from_secs(3600));
        life
    };
    let booting = |method: BootMethod| {
        let deadline = start + method.timeout();
        machine(SandboxPhase::Booting { method, deadline }, VcpuState::Running)
    };
    let preparing = |step| machine(SandboxPhase::Preparing(step), VcpuState::Running);
    let running = |vcpus| machine(SandboxPhase::Running, vcpus);
    let stopping = |vcpus| {
        let deadline = start + STOP_TIMEOUT;
        let reason = Reason::IdleTimeout;
        machine(SandboxPhase::Stopping { reason, deadline, clean: false }, vcpus)
    };
    let mut pinged = running(VcpuState::Running);
    pinged.ping_deadline = Some(start + PING_TIMEOUT);
    vec![
        ("queued", machine(SandboxPhase::Queued, VcpuState::Running)),
        ("booting", booting(BootMethod::Cold { attempt: 0 })),
        ("booting the second time", booting(BootMethod::Cold { attempt: 1 })),
        ("recording", booting(BootMethod::Recording)),
        ("taking the state", booting(BootMethod::TakingState)),
        ("starting from memory", booting(BootMethod::Memory)),
        ("changing files", preparing(PrepareStep::Changes)),
        ("starting init", preparing(PrepareStep::Init)),
        ("running", running(VcpuState::Running)),
        ("running, pinged", pinged),
        ("running, pausing", running(VcpuState::Pausing)),
        ("running, paused", running(VcpuState::Paused)),
        ("running, resuming", running(VcpuState::Resuming)),
        ("stopping", stopping(VcpuState::Running)),
        ("stopping, pausing", stopping(VcpuState::Pausing)),
        ("stopping, resuming", stopping(VcpuState::Resuming)),
    ]
}

/// Describes the state of a machine, with times since `start`.
fn describe(life: &Lifecycle, start: Instant) -> String {
    let mut text = match life.phase {
        SandboxPhase::Booting { method, deadline } => {
            format!("Booting({method:?}) until {:?}", deadline - start)
        }
        SandboxPhase::Stopping { reason, deadline, clean } => {
            let clean = if clean { ", clean" } else { "" };
            format!("Stopping({reason:?}{clean}) until {:?}", deadline - start)
        }
        phase => format!("{phase:?}"),
    };
    if let Some(SandboxEnd { reason, message, hint, clean }) = &life.end {
        let clean = if *clean { ", clean" } else { "" };
        let message = message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        let hint = hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
        write!(text, "({reason:?}{clean}{message}{hint})").unwrap();
        return text;
    }
    if life.vcpus != VcpuState::Running {
        write!(text, ", vCPUs {:?}", life.vcpus).unwrap();
    }
    if let Some(deadline) = life.ping_deadline {
        write!(text, ", ping until {:?}", deadline - start).unwrap();
    }
    text
}

/// Writes each transition that changes the machine or causes actions. All others do nothing.
fn transitions() -> String {
    let start = Instant::now();
    let now = start + Duration::from_secs(1);
    let mut text = String::new();
    for (name, _) in machines(start) {
        let machine = || machines(start).into_iter().find(|(other, _)| *other == name).unwrap().1;
        let before = describe(&machine(), start);
        writeln!(text, "# {name}: {before}").unwrap();
        for event in events() {
            let mut life = machine();
            let actions = life.handle(event.clone(), now);
            let after = describe(&life, start);
            if after != before || !actions.is_empty() {
                writeln!(text, "{event:?}\n    -> {after} {actions:?}").unwrap();
            }
        }
        for (request, result) in
            [("pause", Lifecycle::pause as fn(&mut _) -> _), ("resume", Lifecycle::resume)]
        {
            let mut life = machine();
            match result(&mut life) {
                Ok(actions) => {
                    writeln!(text, "{request}\n    -> {} {actions:?}", describe(&life, start))
                        .unwrap()
                }
                Err(PauseRefusal::WrongState(why)) => writeln!(text, "{request}: {why}").unwrap(),
                Err(PauseRefusal::Unsupported) => unreachable!("the engine can pause"),
            }
        }
        let mut life = machine();
        if let Some(deadline) = life.deadline() {
            let actions = life.handle(Event::Tick, deadline);
            writeln!(
                text,
                "at {:?}\n    -> {} {actions:?}",
                deadline - start,
                describe(&life, start)
            )
            .unwrap();
        }
        text.push('\n');
    }
    text
}

/// Compares with the reviewed table. `MSB_WRITE_TABLES=1` writes it again after an intended change.
#[test]
fn every_transition_is_the_one_in_the_table() {
    let expected = include_str!("transitions.txt");
    let actual = transitions();
    if std::env::var_os("MSB_WRITE_TABLES").is_some() {
        let table =
            concat!(env!("CARGO_MANIFEST_DIR"), "/src/supervisor/lifecycle/transitions.txt");
        std::fs::write(table, &actual).unwrap();
    }
    for (actual, expected) in actual.lines().zip(expected.lines()) {
        assert_eq!(actual, expected);
    }
    assert_eq!(actual.lines().count(), expected.lines().count());
}

fn opened(settings: LifecycleSettings, now: Instant) -> Lifecycle {
    let mut life = Lifecycle::new(settings, now);
    for event in [Event::SlotAcquired, Event::VmStarted(BootMethod::Memory), Event::GuestReady] {
        life.handle(event, now);
    }
    assert!(life.is_running());
    life
}

#[test]
fn a_guest_without_changes_and_init_is_opened_at_once() {
    let now = Instant::now();
    let mut life = Lifecycle::new(LifecycleSettings::default(), now);
    assert_eq!(life.handle(Event::SlotAcquired, now), [Action::StartVm]);
    life.handle(Event::VmStarted(BootMethod::Cold { attempt: 0 }), now);
    let actions = life.handle(Event::GuestReady, now);
    assert_eq!(actions, [Action::ReleaseSlot, Action::Isolate, Action::Open]);
    assert_eq!(life.deadline(), None);
}

#[test]
fn a_persistent_sandbox_outlives_its_main_command_unless_a_client_is_attached() {
    let now = Instant::now();
    let settings = LifecycleSettings { persistent: true, ..LifecycleSettings::default() };
    let mut life = opened(settings, now);
    assert!(life.handle(Event::MainEnded { oom_killed: false, attached: false }, now).is_empty());
    assert!(life.is_running());
    life.handle(Event::MainEnded { oom_killed: false, attached: true }, now);
    assert!(!life.is_running());
}

#[test]
fn a_volatile_vm_is_killed_without_a_shutdown_only_when_its_command_has_ended() {
    let now = Instant::now();
    let settings = LifecycleSettings { volatile: true, ..LifecycleSettings::default() };
    for reason in [Reason::Completed, Reason::OutOfMemory, Reason::ClientGone] {
        let mut life = opened(settings, now);
        assert_eq!(life.handle(Event::Stop(reason), now), [Action::FlushClients]);
        assert_eq!(life.end().unwrap().reason, reason);
    }
    let mut life = opened(settings, now);
    life.handle(Event::Stop(Reason::Signal), now);
    assert_eq!(life.end(), None);
}

#[test]
fn a_use_and_a_pause_defer_the_idle_timeout() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let settings = LifecycleSettings {
        idle_timeout: Some(Duration::from_secs(60)),
        can_pause: true,
        ..LifecycleSettings::default()
    };
    let mut life = opened(settings, start);
    assert_eq!(life.deadline(), Some(at(60)));
    life.record_use(at(10));
    life.record_use(at(5));
    assert_eq!(life.deadline(), Some(at(70)));

    life.pause().unwrap();
    assert_eq!(life.deadline(), None);
    life.handle(Event::MonitorDone { succeeded: true }, at(30));
    assert!(life.handle(Event::Tick, at(1000)).is_empty());
    life.resume().unwrap();
    life.handle(Event::MonitorDone { succeeded: true }, at(1030));
    // 20 seconds without use before the pause count.
    assert_eq!(life.deadline(), Some(at(1070)));
    life.handle(Event::Tick, at(1070));
    assert!(matches!(life.phase, SandboxPhase::Stopping { reason: Reason::IdleTimeout, .. }));
}

#[test]
fn an_engine_without_a_monitor_refuses_a_pause() {
    let mut life = opened(LifecycleSettings::default(), Instant::now());
    assert_eq!(life.pause(), Err(PauseRefusal::Unsupported));
    assert_eq!(life.resume(), Err(PauseRefusal::WrongState("is not paused")));
}

#[test]
fn a_second_stop_only_shortens_the_timeout_and_keeps_the_first_reason() {
    let start = Instant::now();
    let mut life = opened(LifecycleSettings::default(), start);
    let stop =
        |reason, seconds| Event::StopRequested { reason, timeout: Duration::from_secs(seconds) };
    life.handle(stop(Reason::StopRequested, 5), start);
    life.handle(stop(Reason::Signal, 60), start);
    assert_eq!(life.deadline(), Some(start + Duration::from_secs(5)));
    life.handle(stop(Reason::KillRequested, 0), start);
    assert_eq!(life.end().unwrap().reason, Reason::StopRequested);
}
