//! Guests that start from the memory of one that has booted.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use crate::kill::{all_is_well, run_with_traced_supervisor, traced_calls};
use crate::support::{Home, Running, full_disk, open_files, stage, wait_until};

/// A state directory without any state, with busybox.
fn home() -> Home {
    let home = Home::new();
    home.load("busybox.docker.tar");
    home
}

/// The states that are kept.
fn states(home: &Home) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.state().join("boot")).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "state"))
        .collect();
    paths.sort();
    paths
}

/// Files of states that are not finished.
fn unfinished(home: &Home) -> usize {
    let entries = fs::read_dir(home.state().join("boot")).into_iter().flatten();
    entries
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b".new-"))
        .count()
}

/// Returns the status that the supervisor has written for a sandbox.
#[track_caller]
fn status(home: &Home, name: &str) -> serde_json::Value {
    let path = home.state().join("sandboxes").join(name).join("status.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Returns the kind of a sandbox's start.
#[track_caller]
fn started(home: &Home, name: &str) -> String {
    let boot = &status(home, name)["boot"];
    boot.as_str().unwrap_or("?").to_owned()
}

const TRUE: [&str; 4] = ["run", "busybox:test", "--", "true"];

/// Starts a sandbox with options, asks it for something, and returns how it was started.
#[track_caller]
fn start(home: &Home, name: &str, options: &[&str]) -> String {
    let words = [&["run", "-d", "--name", name], options, &["busybox:test"]].concat();
    home.run(words).done();
    assert_eq!(home.run(["exec", name, "--", "echo", "up"]).done(), "up\n");
    started(home, name)
}

#[test]
fn the_first_start_leaves_a_state_and_every_later_one_goes_on_from_it() {
    let home = home();
    home.run(TRUE).done();
    let made = states(&home);
    assert_eq!(made.len(), 1);
    let read = || (fs::read(&made[0]).unwrap(), fs::metadata(&made[0]).unwrap().ino());
    let before = read();
    assert_eq!(fs::metadata(&made[0]).unwrap().mode() & 0o777, 0o600);
    assert_eq!(start(&home, "x", &[]), "memory");
    let shown = home.run(["inspect", "x"]).done();
    assert!(shown.contains("from memory"), "{shown}");
    // The machine has no way to the file: what it has open is its own.
    let machine = home.machine();
    let files = open_files(&machine);
    assert!(
        !files.is_empty() && !files.iter().any(|path| path.starts_with(home.state().join("boot"))),
        "{files:?}"
    );
    for _ in 0..3 {
        home.run(TRUE).done();
    }
    assert!(read() == before, "the state was changed");
    home.run(["rm", "-f", "x"]).done();
    assert_eq!((states(&home), unfinished(&home)), (made, 0));
}

#[test]
fn what_a_guest_prints_goes_to_its_log_and_never_waits() {
    let home = home();
    for name in ["first", "second"] {
        assert_eq!(start(&home, name, &[]), "memory");
        // More than all buffers on the way hold.
        let print = "seq 100000 >/dev/console; echo printed >/dev/console";
        home.run(["exec", name, "--", "sh", "-c", print]).done();
        let log = home.state().join("sandboxes").join(name).join("console.log");
        wait_until("it is in the log", || {
            String::from_utf8_lossy(&fs::read(&log).unwrap()).contains("printed")
        });
        home.run(["rm", "-f", name]).done();
    }
}

#[test]
fn every_kind_of_machine_starts_from_memory_with_all_that_it_has() {
    let home = home();
    let shared = home.directory.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "shared\n").unwrap();
    let share = format!("{}:/shared", shared.display());
    home.run(["volume", "create", "data", "--kind", "disk"]).done();
    let kinds: [(&str, &[&str], &str, &str); 5] = [
        ("net", &[], "cat /sys/class/net/eth0/address | wc -c", "18\n"),
        ("no-net", &["--net", "none"], "ls /sys/class/net", "lo\n"),
        ("share", &["-v", &share], "cat /shared/file", "shared\n"),
        ("disks", &["-v", "data:/data"], "df -m /data | tail -n 1 | grep -c /dev/vd", "1\n"),
        ("two", &["--cpus", "2", "-m", "1G"], "nproc", "2\n"),
    ];
    for (kind, options, command, expected) in kinds {
        for round in ["a", "b"] {
            let name = format!("{kind}-{round}");
            assert_eq!(start(&home, &name, options), "memory", "{name}");
            let outcome = home.run(["exec", &name, "--", "sh", "-c", command]);
            assert_eq!(outcome.done(), expected, "{name}");
            home.run(["stop", &name]).done();
            assert_eq!(status(&home, &name)["clean"], true, "{name}");
        }
    }
    assert_eq!(states(&home).len(), kinds.len());
}

/// Prints what must differ between two guests of one state, a value on a line: identities, random
/// numbers, keys, the address space of a new program, and the initial sequence number of a TCP
/// connection whose four addresses are the same in all guests.
const MUST_DIFFER: &str = r#"
import os, socket, subprocess
print(open('/etc/machine-id').read().strip())
print(open('/proc/sys/kernel/random/boot_id').read().strip())
print(os.getrandom(32).hex())
print(open('/dev/random', 'rb').read(32).hex())
print(socket.gethostname())
print(open('/sys/class/net/eth0/address').read().strip())
stacks = [line.split('-')[0] for line in open('/proc/self/maps') if '[stack]' in line]
print(stacks[0])
subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', '/root/key'], check=True)
print(open('/root/key.pub').read().split()[1])
server = socket.create_server(('127.0.0.1', 4001))
client = socket.socket()
client.bind(('127.0.0.1', 4000))
client.connect(('127.0.0.1', 4001))
# linux/tcp.h: TCP_REPAIR, TCP_REPAIR_QUEUE (2 is TCP_SEND_QUEUE), TCP_QUEUE_SEQ
client.setsockopt(socket.IPPROTO_TCP, 19, 1)
client.setsockopt(socket.IPPROTO_TCP, 20, 2)
print(client.getsockopt(socket.IPPROTO_TCP, 21) & 0xffffffff)
"#;

/// Prints what guests of one state have in common, as msb-run(1) says: addresses of the kernel and
/// of the agent.
const IN_COMMON: &str = r#"
print([line.split()[0] for line in open('/proc/kallsyms') if line.split()[2] == '_text'])
print(open('/proc/1/maps').readline().split('-')[0])
"#;

/// Also, none of a hundred starts changes the state.
#[test]
fn fifty_guests_of_one_state_are_alike_only_in_what_the_page_lists() {
    const GUESTS: usize = 50;
    let home = Home::new();
    let tar = stage("ssh/workshop.tar");
    home.run(["image", "import", "-q", "-i", tar.to_str().unwrap(), "workshop:test"]).done();
    let run_true = ["run", "-m", "256M", "workshop:test", "--", "true"];
    home.run(run_true).done();
    let state = states(&home).remove(0);
    let before = fs::read(&state).unwrap();
    let both = format!("{MUST_DIFFER}\nprint('--')\n{IN_COMMON}");
    let (mut different, mut common): (Vec<HashSet<String>>, HashSet<String>) = Default::default();
    for number in 0..GUESTS {
        let name = format!("g{number}");
        home.run(["run", "-d", "-m", "256M", "--name", &name, "workshop:test"]).done();
        assert_eq!(started(&home, &name), "memory");
        let said = home.run(["exec", &name, "--", "python3", "-c", &both]).done();
        let (differ, same) = said.split_once("--\n").unwrap();
        different.resize(differ.lines().count(), HashSet::new());
        for (values, line) in different.iter_mut().zip(differ.lines()) {
            values.insert(line.to_owned());
        }
        common.insert(same.to_owned());
        home.run(["rm", "-f", &name]).done();
        home.run(run_true).done();
    }
    assert_eq!(different.len(), 9);
    for values in &different {
        assert_eq!(values.len(), GUESTS, "{values:?}");
    }
    assert_eq!(common.len(), 1, "{common:?}");
    assert!(fs::read(&state).unwrap() == before, "the state was changed");
    let page = home.shell("man msb-run | col -bx | tr -s ' \\n' ' '").done();
    for listed in ["addresses of the kernel", "addresses and the stack canary of the agent"] {
        assert!(page.contains(listed), "the page does not list: {listed}");
    }
}

#[test]
fn a_guest_from_an_old_state_has_the_time_of_now() {
    let home = home();
    home.run(TRUE).done();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(start(&home, "x", &[]), "memory");
    let guest: u64 = home.run(["exec", "x", "--", "date", "+%s"]).done().trim().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(guest) <= 2, "{guest} in the guest, {now} here");
    // Monotonic time goes on with the right speed.
    let uptime = "cut -d' ' -f1 /proc/uptime; sleep 2; cut -d' ' -f1 /proc/uptime";
    let times = home.run(["exec", "x", "--", "sh", "-c", uptime]).done();
    let times: Vec<f64> = times.lines().map(|line| line.parse().unwrap()).collect();
    assert!((1.9..4.0).contains(&(times[1] - times[0])), "{times:?}");
    home.run(["rm", "-f", "x"]).done();
}

/// A change of the bytes of a file.
type Damage = Box<dyn Fn(&mut Vec<u8>)>;

#[test]
fn a_state_that_is_damaged_costs_a_note_and_a_boot_and_is_made_again() {
    let home = home();
    home.run(TRUE).done();
    let path = states(&home).remove(0);
    let whole = fs::read(&path).unwrap();
    let header_at = u64::from_le_bytes(whole[16..24].try_into().unwrap()) as usize;
    let damages: [(&str, Damage); 5] = [
        ("cut", Box::new(|bytes| bytes.truncate(bytes.len() / 2))),
        ("empty", Box::new(Vec::clear)),
        ("another file", Box::new(|bytes| bytes[..16].fill(b'x'))),
        ("a header that is none", Box::new(move |bytes| bytes[header_at] = b'[')),
        // The state of the devices is what lies before the header.
        (
            "garbage for QEMU",
            Box::new(move |bytes| bytes[header_at - 30_000..header_at].fill(0xee)),
        ),
    ];
    for (what, damage) in damages {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        let outcome = home.run(["run", "busybox:test", "--", "echo", "up"]);
        assert_eq!(outcome.done(), "up\n", "{what}");
        let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert_eq!(said.matches("cannot start from memory").count(), 1, "{what}: {said}");
        // Once: the next one makes it again, or has it already.
        assert_eq!(start(&home, "x", &[]), "memory", "{what}");
        home.run(["rm", "-f", "x"]).done();
        wait_for_one_state(&home);
    }
}

#[test]
fn a_state_of_a_host_with_another_counter_is_not_used() {
    let home = home();
    home.run(TRUE).done();
    let path = states(&home).remove(0);
    let whole = fs::read(&path).unwrap();
    let header_at = u64::from_le_bytes(whole[16..24].try_into().unwrap());
    let header = String::from_utf8(whole[header_at as usize..].to_vec()).unwrap();
    let field = "\"tsc_khz\":";
    let at = header.find(field).unwrap() + field.len();
    let digits = header[at..].find(',').unwrap();
    let rate: u64 = header[at..at + digits].parse().unwrap();
    let other = format!("{:0>digits$}", rate * 9 / 10, digits = digits);
    let file = fs::File::options().write(true).open(&path).unwrap();
    let changed = header.replacen(&header[at..at + digits], other.trim_start_matches('0'), 1);
    let changed = format!("{changed:<length$}", length = header.len());
    file.write_all_at(changed.as_bytes(), header_at).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    let outcome = home.run(TRUE);
    outcome.is(0, "", "");
    assert_ne!(fs::metadata(&path).unwrap().ino(), inode, "it was not made again");
    assert_eq!(start(&home, "x", &[]), "memory");
    home.run(["rm", "-f", "x"]).done();
}

#[test]
fn who_does_not_want_it_boots() {
    let home = home();
    assert_eq!(start(&home, "option", &["--cold"]), "cold");
    assert_eq!(start(&home, "restricted", &["--security", "restricted"]), "cold");
    let environment = "MSB_BOOT=cold msb run -d --name environment busybox:test";
    home.shell(environment).done();
    assert_eq!(started(&home, "environment"), "cold");
    fs::write(home.state().join("config.json"), "{\"boot\":\"cold\"}").unwrap();
    assert_eq!(start(&home, "config", &[]), "cold");
    assert!(states(&home).is_empty());
    let asked = ["--security", "restricted", "--from-memory"];
    assert_eq!(start(&home, "asked", &asked), "memory");
    home.run(["rm", "-f", "option", "restricted", "environment", "config", "asked"]).done();
    home.shell("MSB_BOOT=lukewarm msb run busybox:test -- true").is(
        125,
        "",
        "msb run: error: invalid value of MSB_BOOT: 'lukewarm'\nmsb run: hint: values are auto, cold and memory\n",
    );
}

/// Waits until there is one state, and none that is being made: a supervisor publishes it after the
/// end of its sandbox.
fn wait_for_one_state(home: &Home) {
    wait_until("one whole state", || (states(home).len(), unfinished(home)) == (1, 0));
}

#[test]
fn of_many_first_starts_at_once_one_leaves_the_state_and_all_run() {
    let home = home();
    let script = "for i in $(seq 12); do msb run -m 256M busybox:test -- echo $i & done; wait";
    let mut lines: Vec<String> = home.shell(script).done().lines().map(str::to_owned).collect();
    lines.sort_by_key(|line| line.parse::<u32>().unwrap());
    assert_eq!(lines, (1..=12).map(|number| number.to_string()).collect::<Vec<_>>());
    wait_for_one_state(&home);
}

#[test]
fn whoever_is_killed_while_a_state_is_made_leaves_nothing_that_is_used() {
    let home = home();
    for round in 0..4 {
        let mut first = home.start(TRUE);
        // At another moment each time, from the boot to the flush of the file.
        if round == 3 {
            let _ = &mut first;
            wait_until("the file is begun", || unfinished(&home) + states(&home).len() > 0);
        } else {
            std::thread::sleep(Duration::from_millis(150 + 900 * round));
        }
        home.kill_all();
        drop(first);
        // Either it is there and whole, or the next one makes it.
        assert_eq!(start(&home, "x", &[]), "memory", "{round}");
        home.run(["rm", "-f", "x"]).done();
        wait_for_one_state(&home);
        fs::remove_file(&states(&home)[0]).unwrap();
    }
}

#[test]
fn a_supervisor_killed_at_any_change_of_the_disk_while_it_makes_a_state_leaves_none_in_part() {
    let home = home();
    let args = ["run", "busybox:test", "--", "echo", "up"];
    run_with_traced_supervisor(&home, None, &args).is(0, "up\n", "");
    for call in traced_calls(&home) {
        let what = format!("the supervisor {call}");
        for state in states(&home) {
            fs::remove_file(state).unwrap();
        }
        let outcome = run_with_traced_supervisor(&home, Some(&call), &args);
        assert!([0, 125].contains(&outcome.code), "{what}: {outcome:?}");
        all_is_well(&home, &what);
        // A state that is there is whole; the next start makes one where there is none, and removes
        // what is left of another.
        assert_eq!(start(&home, "x", &[]), "memory", "{what}");
        home.run(["rm", "-f", "x"]).done();
        wait_for_one_state(&home);
    }
}

#[test]
fn where_no_state_can_be_kept_guests_boot() {
    let (_alone, full) = full_disk();
    let home = home();
    let boot = home.state().join("boot");
    std::os::unix::fs::symlink(&full, &boot).unwrap();
    assert_eq!(start(&home, "x", &[]), "cold");
    assert_eq!((states(&home).len(), unfinished(&home)), (0, 0));
    home.run(["rm", "-f", "x"]).done();
    fs::remove_file(&boot).unwrap();
    for entry in fs::read_dir(&full).unwrap().flatten() {
        fs::remove_file(entry.path()).unwrap();
    }
}

#[test]
fn a_machine_that_dies_on_its_way_to_the_boot_is_replaced_by_one_that_boots() {
    let home = home();
    home.run(TRUE).done();
    let running = home.start(["run", "busybox:test", "--", "echo", "up"]);
    wait_until("there is a machine", || !home.machines().is_empty());
    for machine in home.machines() {
        machine.signal(rustix::process::Signal::KILL);
    }
    let outcome = running.finish();
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(outcome.stdout, b"up\n");
}

#[test]
fn a_host_on_which_no_state_can_be_made_is_told_so_once() {
    let home = home();
    let programs = home.directory.join("programs");
    fs::create_dir(&programs).unwrap();
    let qemu = programs.join("qemu-system-x86_64");
    // Only the machine whose state is taken has placeholders.
    let script = "#!/bin/sh\ncase \"$*\" in *driver=null-co*) exit 1 ;; esac\nexec /usr/bin/qemu-system-x86_64 \"$@\"\n";
    fs::write(&qemu, script).unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    for notes in [1, 0, 0] {
        let mut run = home.msb(["run", "busybox:test", "--", "echo", "up"]);
        run.env("PATH", format!("{}:{}", programs.display(), home.path()));
        let outcome = Running::start(run).finish();
        assert_eq!(outcome.done(), "up\n");
        let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert_eq!(said.matches("cannot start from memory").count(), notes, "{said}");
    }
    assert!(states(&home).is_empty());
}

#[test]
fn states_are_counted_and_removed_with_images() {
    let home = home();
    home.run(TRUE).done();
    let usage: serde_json::Value =
        serde_json::from_str(&home.run(["image", "df", "--format", "json"]).done()).unwrap();
    assert!(usage["boot_bytes"].as_u64().unwrap() > 16 << 20, "{usage}");
    let doctor = home.run(["doctor"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("boot states"), "{doctor:?}");
    home.run(["image", "prune", "--yes", "--quiet", "--dangling"]).done();
    home.run(["image", "prune", "--yes", "--quiet"]).done();
    assert_eq!(states(&home).len(), 1);
    // Which is the time when it was used last.
    let file = fs::File::options().write(true).open(&states(&home)[0]).unwrap();
    let days = Duration::from_secs(2 * 24 * 60 * 60);
    file.set_modified(std::time::SystemTime::now() - days).unwrap();
    let removed: serde_json::Value =
        serde_json::from_str(&home.run(["image", "prune", "--yes", "--format", "json"]).done())
            .unwrap();
    assert_eq!(removed["boot_states_removed"], 1, "{removed}");
    assert!(states(&home).is_empty());
}
