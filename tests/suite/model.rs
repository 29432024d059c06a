//! A model of sandboxes, and four clients at a time whose results must agree with it.
//!
//! In each round four clients do something at once, each with one of ten sandboxes; some are
//! killed, and some kill a process of a sandbox: its machine, its supervisor or its network. Then
//! there is quiet. What the clients said and what is there must be what some order of them leads to
//! in the model; the list, the locks, the processes and the files must say the same; and what was
//! synced in a guest must be in it. In between the disk is full, or its file system fails and is
//! read-only from then on, where tests/run has made one for that.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Home, Process, Random, Running, ground, stage, wait_until};

const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
const CLIENTS: usize = 4;

/// Number of operations.
const OPERATIONS: usize = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Created,
    Running,
    Stopped,
    Crashed,
}

/// A sandbox as the model has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sandbox {
    state: State,
    label: Option<String>,
}

impl Sandbox {
    fn becomes(&self, state: State) -> Option<Sandbox> {
        let label = self.label.clone();
        Some(Sandbox { state, label })
    }
}

/// An operation of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Operation {
    Create,
    Start,
    Exec,
    Stop,
    Remove { force: bool },
    Label(String),
    Inspect,
    Kill(Victim),
}

/// The process of a sandbox that is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Machine,
    Supervisor,
    Network,
}

use Operation::{Create, Exec, Inspect, Kill, Label, Remove, Start, Stop};

impl Operation {
    /// One of them. Those that take seconds are few, but not too few.
    fn any(random: &mut Random, number: usize) -> Operation {
        match random.below(100) {
            0..22 => Create,
            22..42 => Label(number.to_string()),
            42..54 => Inspect,
            54..64 => Remove { force: false },
            64..68 => Remove { force: true },
            68..76 => Start,
            76..84 => Exec,
            84..91 => Stop,
            91..94 => Kill(Victim::Machine),
            94..97 => Kill(Victim::Network),
            _ => Kill(Victim::Supervisor),
        }
    }

    /// One of those that need no machine.
    fn light(random: &mut Random, number: usize) -> Operation {
        match random.below(4) {
            0 => Create,
            1 => Label(number.to_string()),
            2 => Inspect,
            _ => Remove { force: false },
        }
    }

    fn arguments(&self, name: &str) -> Vec<String> {
        let label;
        let words: &[&str] = match self {
            Create => &["create", "--no-start", "-m", "128", "--name", name, "busybox:test"],
            Start => &["start", name],
            Exec => &["exec", name, "--", "true"],
            Stop => &["stop", name],
            Remove { force: false } => &["rm", name],
            Remove { force: true } => &["rm", "--force", name],
            Label(value) => {
                label = format!("v={value}");
                &["modify", name, "--label", &label]
            }
            Inspect => &["inspect", name],
            Kill(_) => &[],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Returns whether the operation may end a start or a command that runs at the same time.
    fn disturbs(&self) -> bool {
        matches!(self, Stop | Remove { force: true } | Kill(_))
    }
}

/// An operation of a client, and its result.
#[derive(Clone, Debug)]
struct Done {
    operation: Operation,
    code: i32,
    /// Its output, for messages.
    said: String,
}

const KILLED: i32 = 137;

/// Under which conditions a round takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ground {
    Firm,
    /// Changes of the disk may fail, and then have no effect.
    Failing,
}

/// Returns the states that an operation with the exit code `code` may lead to. `others`: what else
/// was done with the sandbox in this round.
fn steps(
    before: &Option<Sandbox>,
    done: &Done,
    others: &[Done],
    ground: Ground,
) -> Vec<Option<Sandbox>> {
    let same = before.clone();
    let disturbed = others.iter().any(|other| other.operation.disturbs() || other.code == KILLED);
    let moved = disturbed || others.iter().any(|other| other.operation == Start);
    let mut results: Vec<(i32, Option<Sandbox>)> = match (&done.operation, before) {
        (Create, None) => vec![(0, Some(Sandbox { state: State::Created, label: None }))],
        (Create, Some(_)) => vec![(4, same.clone())],
        // Failures of a command in the guest, and of ours in its stead, are 125.
        (Exec, Some(sandbox)) if sandbox.state == State::Running => vec![(0, same.clone())],
        (Exec, _) => vec![(125, same.clone())],
        (Kill(_), Some(sandbox)) if sandbox.state == State::Running => {
            vec![(0, sandbox.becomes(State::Crashed))]
        }
        (Kill(_), _) => vec![(1, same.clone())],
        (_, None) => vec![(3, None)],
        (Start, Some(sandbox)) => vec![(0, sandbox.becomes(State::Running))],
        (Stop, Some(sandbox)) if sandbox.state == State::Running => {
            vec![(0, sandbox.becomes(State::Stopped))]
        }
        (Stop | Inspect, Some(_)) => vec![(0, same.clone())],
        (Remove { force: false }, Some(sandbox)) if sandbox.state == State::Running => {
            vec![(4, same.clone())]
        }
        (Remove { .. }, Some(_)) => vec![(0, None)],
        (Label(value), Some(sandbox)) => {
            let label = Some(value.clone());
            vec![(0, Some(Sandbox { label, ..sandbox.clone() }))]
        }
    };
    match (&done.operation, before) {
        // It is taken down on its way up.
        (Start, Some(sandbox)) if disturbed => {
            results.push((1, sandbox.becomes(State::Stopped)));
            results.push((1, sandbox.becomes(State::Crashed)));
        }
        (Exec, _) if disturbed => results.push((125, same.clone())),
        // What was on its way up or down anyway.
        (Kill(_), _) if moved => {
            results.push((0, same.clone()));
            results.push((1, same.clone()));
        }
        _ => {}
    }
    if done.code == KILLED {
        // It had done all of its work, a part, or none.
        let after = results.iter().map(|(_, after)| after.clone());
        let mut after: Vec<_> = after.chain([same.clone()]).collect();
        if let (Remove { force: true }, Some(sandbox)) = (&done.operation, before) {
            after.push(sandbox.becomes(State::Stopped));
        }
        return after;
    }
    if ground == Ground::Failing {
        results.push((1, same));
    }
    let fitting = results.into_iter().filter(|(code, _)| *code == done.code);
    fitting.map(|(_, after)| after).collect()
}

/// Returns whether some order of the operations leads from one state to another.
fn leads(
    from: &Option<Sandbox>,
    to: &Option<Sandbox>,
    round: &[Done],
    done: &mut Vec<usize>,
    ground: Ground,
) -> bool {
    if done.len() == round.len() {
        return from == to;
    }
    for next in 0..round.len() {
        if done.contains(&next) {
            continue;
        }
        let others: Vec<Done> = round
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != next)
            .map(|(_, done)| done.clone())
            .collect();
        done.push(next);
        let found = steps(from, &round[next], &others, ground)
            .iter()
            .any(|after| leads(after, to, round, done, ground));
        done.pop();
        if found {
            return true;
        }
    }
    false
}

/// The supervisors of a home, by the sandboxes' names.
fn supervisors(home: &Home) -> BTreeMap<String, Process> {
    let all = home.processes().into_iter().filter(|process| process.name == "msb-supervisor");
    all.filter_map(|process| Some((process.command_line.split(' ').nth(1)?.to_owned(), process)))
        .collect()
}

/// The process that started another.
fn parent(process: &Process) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
}

/// Kills a process of a sandbox, and waits until its supervisor is gone, too. 0 when there was one,
/// else 1.
fn kill(home: &Home, name: &str, victim: Victim) -> i32 {
    let Some(supervisor) = supervisors(home).remove(name) else {
        return 1;
    };
    let child = |is: fn(&Process) -> bool| {
        let mut processes = home.processes().into_iter();
        processes.find(|process| is(process) && parent(process) == Some(supervisor.pid))
    };
    let victim = match victim {
        Victim::Machine => child(Process::is_machine),
        Victim::Network => child(|process| process.name == "msb-net"),
        Victim::Supervisor => Some(supervisor.clone()),
    };
    let Some(victim) = victim else {
        return 1;
    };
    victim.signal(Signal::KILL);
    wait_until("the end of its supervisor", || !supervisor.is_alive());
    0
}

/// Does something with a sandbox. `fuse`: when the client is killed, if it is.
fn perform(home: &Home, name: &str, operation: &Operation, fuse: Option<Duration>) -> Done {
    let (code, said) = match operation {
        Kill(victim) => (kill(home, name, *victim), String::new()),
        _ => {
            let client = home.start(operation.arguments(name));
            if let Some(fuse) = fuse {
                std::thread::sleep(fuse);
                let _ = kill_process(Pid::from_raw(client.pid()).unwrap(), Signal::KILL);
            }
            let outcome = Running::finish(client);
            (outcome.code, String::from_utf8_lossy(&outcome.stderr).into_owned())
        }
    };
    let operation = operation.clone();
    Done { operation, code, said }
}

/// Returns the sandboxes after all operations have ended.
fn observe(home: &Home) -> BTreeMap<String, Sandbox> {
    let mut seen = BTreeMap::new();
    wait_until("all sandboxes rest", || {
        let list = home.list();
        let rows = list.as_array().unwrap().iter().map(|row| {
            let state = match row["status"].as_str().unwrap() {
                "Created" => State::Created,
                "Running" => State::Running,
                "Stopped" => State::Stopped,
                "Crashed" => State::Crashed,
                // Still on its way.
                "Starting" | "Stopping" => return None,
                other => panic!("{other}: {row}"),
            };
            let label = row["labels"]["v"].as_str().map(str::to_owned);
            Some((row["name"].as_str().unwrap().to_owned(), Sandbox { state, label }))
        });
        let rows: Option<BTreeMap<_, _>> = rows.collect();
        // A machine whose supervisor was killed is dying; until it is gone, the sandbox runs.
        let Some(rows) =
            rows.filter(|rows| running(rows) == supervisors(home).into_keys().collect())
        else {
            return false;
        };
        seen = rows;
        true
    });
    seen
}

fn running(sandboxes: &BTreeMap<String, Sandbox>) -> BTreeSet<String> {
    let running = sandboxes.iter().filter(|(_, sandbox)| sandbox.state == State::Running);
    running.map(|(name, _)| name.clone()).collect()
}

/// Returns whether a lock is held. A shared one can be asked for on a disk that is read-only, too.
fn is_held(path: &Path) -> bool {
    let file = File::open(path).unwrap();
    fcntl_lock(&file, FlockOperation::NonBlockingLockShared).is_err()
}

/// The processes, the locks and the files are those of these sandboxes, and no others.
#[track_caller]
fn all_agrees(home: &Home, sandboxes: &BTreeMap<String, Sandbox>, what: &str) {
    let running = running(sandboxes);
    wait_until(&format!("a machine for each that runs: {what}"), || {
        let processes = home.processes();
        let count =
            |is: fn(&Process) -> bool| processes.iter().filter(|process| is(process)).count();
        let known = ["msb-supervisor", "msb-net"];
        count(Process::is_machine) == running.len()
            && processes.iter().all(|one| one.is_machine() || known.contains(&one.name.as_str()))
            && processes.iter().filter(|one| one.name == "msb-net").count() == running.len()
    });
    let root = home.state().join("sandboxes");
    let directories =
        fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let directories: BTreeSet<String> = directories.filter(|name| !name.starts_with('.')).collect();
    assert_eq!(directories, sandboxes.keys().cloned().collect(), "{what}");
    for (name, sandbox) in sandboxes {
        let directory = root.join(name);
        for file in ["spec.json", "status.json", "upper.img"] {
            assert!(directory.join(file).is_file(), "{what}: {name} has no {file}");
        }
        let held = is_held(&directory.join("lock"));
        assert_eq!(held, sandbox.state == State::Running, "{what}: the lock of {name}");
    }
}

/// The world, and what the model has of it.
struct World {
    home: Home,
    sandboxes: BTreeMap<String, Sandbox>,
    /// Data that was written and synced in a sandbox, if known.
    notes: BTreeMap<&'static str, String>,
    random: Random,
    done: usize,
}

impl World {
    /// A round on firm ground: four clients, some of whom are killed.
    fn round(&mut self) {
        let number = self.done;
        let plans = (0..CLIENTS).map(|client| {
            let name = NAMES[self.random.below(NAMES.len() as u64) as usize];
            let operation = Operation::any(&mut self.random, number + client);
            let fuse =
                (self.random.below(8) == 0).then(|| Duration::from_millis(self.random.below(40)));
            (name, operation, fuse)
        });
        let plans = plans.collect();
        self.play(plans, Ground::Firm);
    }

    /// A round while the disk takes nothing.
    fn failing_round(&mut self) {
        let number = self.done;
        let plans = (0..CLIENTS).map(|client| {
            let name = NAMES[self.random.below(NAMES.len() as u64) as usize];
            (name, Operation::light(&mut self.random, number + client), None)
        });
        let plans = plans.collect();
        self.play(plans, Ground::Failing);
    }

    fn play(&mut self, plans: Vec<(&'static str, Operation, Option<Duration>)>, ground: Ground) {
        let home = &self.home;
        let round: Vec<(&'static str, Done)> = std::thread::scope(|scope| {
            let clients: Vec<_> = plans
                .iter()
                .map(|(name, operation, fuse)| {
                    (*name, scope.spawn(move || perform(home, name, operation, *fuse)))
                })
                .collect();
            clients.into_iter().map(|(name, client)| (name, client.join().unwrap())).collect()
        });
        self.done += round.len();
        let now = observe(home);
        let lines = round.iter().map(|(name, done)| {
            let Done { operation, code, said } = done;
            format!("\n{name}: {operation:?} ended with {code}: {said}")
        });
        let lines: String = lines.collect();
        let what = format!("after {} operations, {ground:?}: {lines}", self.done);
        for name in NAMES {
            let own: Vec<Done> =
                round.iter().filter(|(of, _)| *of == name).map(|(_, done)| done.clone()).collect();
            let (before, after) = (self.sandboxes.get(name).cloned(), now.get(name).cloned());
            let possible = leads(&before, &after, &own, &mut Vec::new(), ground);
            assert!(possible, "{name} was {before:?} and is {after:?}; {what}");
        }
        all_agrees(home, &now, &what);
        self.sandboxes = now;
        self.look_at_notes(&round, ground, &what);
    }

    /// Checks that synced data is still there after other operations, in the sandboxes that run and
    /// were used in this round. Then something else is written.
    fn look_at_notes(&mut self, round: &[(&'static str, Done)], ground: Ground, what: &str) {
        for (name, done) in round {
            let renews = matches!(done.operation, Create | Remove { .. });
            if renews && [0, KILLED].contains(&done.code) {
                // It may be another one by now.
                self.notes.remove(name);
            }
        }
        if ground == Ground::Failing {
            return;
        }
        let running = running(&self.sandboxes);
        let had_part = |name: &&str| round.iter().any(|(of, _)| of == name);
        for name in NAMES.into_iter().filter(had_part) {
            if !running.contains(name) {
                continue;
            }
            let new = format!("{}\n", self.done);
            let script = format!("cat /root/note 2>&-; echo {} >/root/note; sync", self.done);
            let found = self.home.run(["exec", name, "--", "sh", "-c", &script]);
            let found = found.done();
            if let Some(note) = self.notes.insert(name, new) {
                assert_eq!(found, note, "the note in {name}; {what}");
            }
        }
    }

    /// The disk has no room for a while.
    fn fill_the_disk(&mut self) {
        let filler = self.home.directory.join("filler");
        let mut file = File::create(&filler).unwrap();
        let block = vec![1; 64 * 1024];
        while file.write_all(&block).is_ok() {}
        while file.write_all(&[1]).is_ok() {}
        drop(file);
        self.failing_round();
        fs::remove_file(&filler).unwrap();
    }

    /// The file system finds an error in itself, and is read-only from then on. What runs can still
    /// be stopped.
    fn break_the_disk(&mut self, disk: &Disk) {
        disk.order("fail");
        self.failing_round();
        for name in running(&self.sandboxes) {
            let stopped = self.home.run(["stop", "--force", &name]);
            assert!([0, 1].contains(&stopped.code), "{stopped:?}");
        }
        assert!(self.home.leftovers().is_empty());
        disk.order("repair");
        let now = observe(&self.home);
        for (name, sandbox) in &mut self.sandboxes {
            if sandbox.state == State::Running {
                // Its end could not be written down, or just so.
                sandbox.state = now[name].state;
                assert!([State::Stopped, State::Crashed].contains(&sandbox.state), "{now:?}");
            }
        }
        assert_eq!(now, self.sandboxes);
        all_agrees(&self.home, &now, "a disk that is repaired");
    }
}

/// A file system that root has made for this test, and breaks and repairs on order; see
/// tests/support/breakable-disk.
struct Disk {
    directory: PathBuf,
}

impl Disk {
    fn find() -> Option<Disk> {
        let directory = std::env::var_os("MSB_TEST_DISK")?.into();
        Some(Disk { directory })
    }

    /// Waits until it is done.
    fn order(&self, what: &str) {
        writeln!(File::options().write(true).open(ground("disk-orders")).unwrap(), "{what}")
            .unwrap();
        let answers = File::open(ground("disk-answers")).unwrap();
        let answer = BufReader::new(answers).lines().next().unwrap().unwrap();
        assert_eq!(answer, format!("{what} done"));
    }
}

#[test]
fn four_clients_at_once_leave_what_some_order_of_them_would() {
    let disk = Disk::find();
    let home = match &disk {
        Some(disk) => Home { directory: disk.directory.join("home"), prefix: stage("prefix") },
        None => Home::new(),
    };
    let _ = fs::create_dir(&home.directory);
    home.load("busybox.docker.tar");
    let mut world = World {
        home,
        sandboxes: BTreeMap::new(),
        notes: BTreeMap::new(),
        random: Random::new(5),
        done: 0,
    };
    // Two that run, whatever chance brings.
    let ensure =
        |operation: Operation| ["a", "b"].map(|name| (name, operation.clone(), None)).to_vec();
    world.play(ensure(Create), Ground::Firm);
    world.play(ensure(Start), Ground::Firm);
    let mut rounds = 0;
    while world.done < OPERATIONS {
        world.round();
        rounds += 1;
        match (&disk, rounds % 10) {
            (Some(_), 4) => world.fill_the_disk(),
            (Some(disk), 9) => world.break_the_disk(disk),
            _ => {}
        }
    }
    // The last notes, of those that lie still, too.
    for (name, note) in &world.notes {
        world.home.run(["start", name]).done();
        world.home.run(["exec", name, "--", "cat", "/root/note"]).is(0, note, "");
        world.home.run(["stop", "--force", name]).done();
    }
    println!("{} operations in {rounds} rounds", world.done);
    for name in world.sandboxes.into_keys() {
        world.home.run(["rm", "--force", &name]).done();
    }
    assert!(world.home.leftovers().is_empty());
    // What killed clients have left goes with the next that is made.
    world.home.run(["create", "--no-start", "--name", "last", "busybox:test"]).done();
    world.home.run(["rm", "last"]).done();
    assert_eq!(world.home.snapshot("sandboxes"), Vec::<String>::new());
}
