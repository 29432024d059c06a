//! A model of the machine's surroundings, which act in any order.

use super::*;

fn panicked() -> VmOutcome {
    VmOutcome { reason: Reason::GuestPanicked, message: "panic".to_owned() }
}

/// A generator of pseudo-random numbers: xorshift64*, with a seed that a failure prints.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// The surroundings of a machine: a VM, a guest, a monitor and clients that answer at any time, or
/// never. It performs actions and checks that each one is possible.
struct World {
    random: Random,
    now: Instant,
    life: Lifecycle,
    slot_held: bool,
    /// The way in which the VM was started, while there is a VM.
    vm: Option<BootMethod>,
    changing: bool,
    starting_init: bool,
    isolated: bool,
    open: bool,
    shutdown_sent: bool,
    refused: bool,
    vcpus_stopped: bool,
    command: Option<MonitorCommand>,
    pinged: bool,
    published: Vec<&'static str>,
    stop_reason: Option<Reason>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed * 2 + 1);
        let now = Instant::now();
        let settings = LifecycleSettings {
            persistent: random.chance(2),
            volatile: random.chance(2),
            has_changes: random.chance(2),
            has_init: random.chance(2),
            can_pause: !random.chance(4),
            idle_timeout: random.chance(2).then(|| Duration::from_secs(30)),
            max_duration: random.chance(3).then(|| Duration::from_secs(300)),
        };
        World {
            random,
            now,
            life: Lifecycle::new(settings, now),
            slot_held: false,
            vm: None,
            changing: false,
            starting_init: false,
            isolated: false,
            open: false,
            shutdown_sent: false,
            refused: false,
            vcpus_stopped: false,
            command: None,
            pinged: false,
            published: Vec::new(),
            stop_reason: None,
        }
    }

    fn handle(&mut self, event: Event) {
        let had_ended = self.life.end().cloned();
        let actions = self.life.handle(event, self.now);
        if had_ended.is_some() {
            assert!(actions.is_empty() && self.life.end() == had_ended.as_ref());
        }
        if let SandboxPhase::Stopping { reason, .. } = self.life.phase {
            assert_eq!(*self.stop_reason.get_or_insert(reason), reason);
        }
        self.perform(actions);
        self.check();
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.perform_one(action);
        }
    }

    fn start_vm(&mut self, method: BootMethod) {
        self.vm = Some(method);
        self.handle(Event::VmStarted(method));
    }

    fn start_or_fail(&mut self, method: BootMethod) {
        if self.random.chance(8) {
            self.vm = None;
            let failed = Event::StartFailed { message: "no VM".to_owned(), hint: None };
            return self.handle(failed);
        }
        self.start_vm(method);
    }

    fn perform_one(&mut self, action: Action) {
        match action {
            Action::StartVm => {
                assert!(self.slot_held && self.vm.is_none());
                let method = match self.random.below(3) {
                    0 => BootMethod::Cold { attempt: 0 },
                    1 => BootMethod::Recording,
                    _ => BootMethod::Memory,
                };
                self.start_or_fail(method);
            }
            Action::StartAttempt(attempt) => {
                assert_eq!(self.vm, Some(BootMethod::Cold { attempt: attempt - 1 }));
                if self.random.chance(4) {
                    return self.handle(Event::AttemptsExhausted);
                }
                self.start_vm(BootMethod::Cold { attempt });
            }
            Action::BootUnrecorded => {
                assert_eq!(self.vm, Some(BootMethod::Recording));
                self.start_vm(BootMethod::Cold { attempt: 0 });
            }
            Action::FallBack(_) => {
                assert!(self.vm.is_some_and(BootMethod::has_fallback) && !self.isolated);
                self.start_or_fail(BootMethod::Cold { attempt: 0 });
            }
            Action::ReleaseSlot => assert!(std::mem::replace(&mut self.slot_held, false)),
            Action::ChangeFiles => {
                assert!(!self.isolated && !std::mem::replace(&mut self.changing, true));
            }
            Action::Isolate => {
                assert!(self.vm.is_some() && !std::mem::replace(&mut self.isolated, true));
            }
            Action::StartInit => {
                assert!(self.isolated && !std::mem::replace(&mut self.starting_init, true));
            }
            Action::Open => {
                assert!(self.isolated && !self.slot_held && !self.open);
                self.open = true;
                self.publish("running");
            }
            Action::ReportStopped => assert!(!self.open),
            Action::FlushClients => {}
            Action::PublishStopping => self.publish("stopping"),
            Action::ShutDownGuest { .. } => {
                assert!(self.open && !std::mem::replace(&mut self.shutdown_sent, true));
                if self.random.chance(16) {
                    self.handle(Event::ShutdownFailed);
                }
            }
            Action::RefuseRequests => assert!(!std::mem::replace(&mut self.refused, true)),
            Action::AdmitRequests => self.refused = false,
            Action::SendTime => assert!(self.open),
            Action::RunMonitor(command) => {
                assert_eq!(self.vcpus_stopped, command == MonitorCommand::Cont);
                assert!(self.open && self.command.is_none());
                if self.random.chance(8) {
                    return self.handle(Event::MonitorDone { succeeded: false });
                }
                self.command = Some(command);
            }
            Action::PublishPaused => {
                assert!(self.vcpus_stopped && self.refused);
                self.publish("paused");
            }
            Action::PublishResumed => {
                assert!(!self.vcpus_stopped && !self.refused);
                self.publish("running");
            }
            Action::Ping => {
                assert!(self.open && !self.vcpus_stopped);
                self.pinged = true;
            }
            Action::KillSilent => {
                assert!(self.pinged);
                self.vm = None;
                self.handle(Event::GuestSilent(panicked()));
            }
        }
    }

    fn publish(&mut self, state: &'static str) {
        assert!(self.life.end().is_none());
        let allowed = match self.published.last() {
            None => ["running"].as_slice(),
            Some(&"running") => &["paused", "stopping"],
            Some(&"paused") => &["running", "stopping"],
            _ => &[],
        };
        assert!(allowed.contains(&state), "{state} after {:?}", self.published);
        self.published.push(state);
    }

    fn check(&self) {
        let settled = self.life.is_running() && self.command.is_none();
        if settled && !self.life.is_pausing() {
            assert!(!self.vcpus_stopped && !self.refused);
        }
        if let Some(end) = self.life.end() {
            assert!(self.life.deadline().is_none());
            assert!(self.stop_reason.is_none_or(|reason| reason == end.reason));
        }
    }

    /// Lets time pass to the next deadline, which then moves.
    fn tick(&mut self) {
        let Some(deadline) = self.life.deadline() else {
            self.now += Duration::from_secs(1);
            return;
        };
        self.now = self.now.max(deadline);
        self.handle(Event::Tick);
        assert!(self.life.deadline().is_none_or(|next| next > self.now));
    }

    /// Lets something happen that is possible now.
    fn step(&mut self) {
        let booting = matches!(self.life.phase, SandboxPhase::Booting { .. });
        let event = match self.random.below(24) {
            0 | 1 if self.life.phase == SandboxPhase::Queued => {
                self.slot_held = true;
                Event::SlotAcquired
            }
            2 if booting && self.vm != Some(BootMethod::Memory) => {
                if self.vm == Some(BootMethod::Recording) {
                    self.vm = Some(BootMethod::TakingState);
                }
                Event::HelloReceived
            }
            3 if self.vm == Some(BootMethod::TakingState) && booting => {
                return self.start_vm(BootMethod::Memory);
            }
            4 if booting && self.vm.is_some_and(BootMethod::has_fallback) => {
                Event::PreparationFailed("no state".to_owned())
            }
            5 | 6
                if booting
                    && matches!(self.vm, Some(BootMethod::Memory | BootMethod::Cold { .. })) =>
            {
                Event::GuestReady
            }
            7 if booting && self.random.chance(4) => Event::GuestFailed("no root".to_owned()),
            8 if std::mem::take(&mut self.changing) => Event::FilesChanged,
            9 if std::mem::take(&mut self.starting_init) => Event::InitStarted,
            10 if self.open && self.random.chance(4) => Event::MainEnded {
                oom_killed: self.random.chance(2),
                attached: self.random.chance(2),
            },
            11 if self.random.chance(8) => Event::StopRequested {
                reason: Reason::StopRequested,
                timeout: Duration::from_secs(self.random.below(20)),
            },
            12 if self.random.chance(16) => Event::Stop(Reason::ClientGone),
            13 if self.shutdown_sent => {
                self.shutdown_sent = false;
                let clean = self.random.chance(2);
                Event::ShutdownAnswered { clean }
            }
            14 if self.vm.is_some() && self.random.chance(16) => {
                Event::AgentViolation("nonsense".to_owned())
            }
            15 if self.vm.is_some() && self.random.chance(16) => Event::VmExited(panicked()),
            16 if self.open && self.random.chance(4) => Event::ConsoleReportedEnd,
            17 if std::mem::take(&mut self.pinged) => Event::PingAnswered,
            18 | 19 if self.command.is_some() => {
                let command = self.command.take();
                let succeeded = !self.random.chance(8);
                if succeeded {
                    self.vcpus_stopped = command == Some(MonitorCommand::Stop);
                }
                Event::MonitorDone { succeeded }
            }
            20 => return self.request(Lifecycle::pause),
            21 => return self.request(Lifecycle::resume),
            22 => {
                self.now += Duration::from_millis(self.random.below(2000));
                return self.life.record_use(self.now);
            }
            23 if self.random.chance(4) => return self.tick(),
            _ => return,
        };
        self.handle(event);
    }

    fn request(&mut self, request: fn(&mut Lifecycle) -> Result<Vec<Action>, PauseRefusal>) {
        if let Ok(actions) = request(&mut self.life) {
            self.perform(actions);
        }
        self.check();
    }

    /// Stops the sandbox, with surroundings that are silent from now on.
    fn stop(&mut self) {
        self.handle(Event::Stop(Reason::Signal));
        let latest = self.now + STOP_TIMEOUT + PING_TIMEOUT;
        for _ in 0..3 {
            if self.life.end().is_none() {
                self.tick();
            }
        }
        assert!(self.life.end().is_some() && self.now <= latest);
    }
}

#[test]
fn no_order_of_events_breaks_the_promises_of_the_machine() {
    let mut opened = 0;
    let mut paused = 0;
    for seed in 0..20_000 {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..200 {
                world.step();
            }
            world.stop();
            (world.open, world.published.contains(&"paused"))
        });
        let (was_open, was_paused) = run.unwrap_or_else(|_| panic!("seed {seed}"));
        opened += u32::from(was_open);
        paused += u32::from(was_paused);
    }
    // The surroundings reach the later phases.
    assert!(opened > 5000 && paused > 1000, "{opened} {paused}");
}
