//! Standard input, output and error: bytes go through unchanged, at once, and in constant memory.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::{Guests, Home, Random, Running};

const GIB: u64 = 1 << 30;
/// Most memory for each of our programs on the host, in KiB: a few windows, and the program itself.
const PEAK_KIB_MAX: u64 = 64 * 1024;

#[test]
fn a_gibibyte_of_random_bytes_comes_back_unchanged_and_memory_stays_flat() {
    let home = Home::with_busybox();
    let mut running = home.start(["run", "--interactive", "busybox:test", "--", "cat"]);
    let (mut stdin, mut stdout) = (running.stdin.take().unwrap(), running.stdout.take().unwrap());
    let done = AtomicBool::new(false);
    let peaks = std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut random, mut buffer) = (Random::new(1), vec![0; 1 << 20]);
            for _ in 0..GIB >> 20 {
                random.fill(&mut buffer);
                stdin.write_all(&buffer).unwrap();
            }
        });
        let watcher = scope.spawn(|| watch_memory(&home, &done));
        read_back(&mut stdout);
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    running.finish().is(0, "", "");
    assert!(peaks.len() >= 2, "the client and the supervisor were seen: {peaks:?}");
    assert!(peaks.values().all(|kib| *kib < PEAK_KIB_MAX), "peak memory in KiB: {peaks:?}");
    println!("peak memory in KiB: {peaks:?}");
}

fn read_back(stdout: &mut impl Read) {
    let (mut random, mut expected, mut found) =
        (Random::new(1), vec![0; 1 << 20], vec![0; 1 << 20]);
    for mebibyte in 0..GIB >> 20 {
        random.fill(&mut expected);
        stdout.read_exact(&mut found).unwrap();
        assert!(expected == found, "mebibyte {mebibyte} is not what was sent");
    }
    assert_eq!(stdout.read(&mut found).unwrap(), 0, "nothing comes after it");
}

/// The peak of each of our programs, by process and name. The machine itself is left out.
fn watch_memory(home: &Home, done: &AtomicBool) -> HashMap<(i32, String), u64> {
    let mut peaks = HashMap::new();
    while !done.load(Ordering::Relaxed) {
        for process in home.processes() {
            if process.name.starts_with("msb")
                && let Some(kib) = process.peak_kib()
            {
                peaks.insert((process.pid, process.name), kib);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    peaks
}

#[test]
fn output_is_there_the_moment_it_is_written() {
    let home = Home::with_busybox();
    let mut running = home.start([
        "run",
        "-i",
        "busybox:test",
        "--",
        "sh",
        "-c",
        "echo one; read x; printf two; read y; echo $x $y",
    ]);
    // Each answer is awaited before the next is given: a buffer anywhere would hang here.
    assert_eq!(running.read_until("\n"), "one\n");
    running.write("a\n");
    assert_eq!(running.read_until("two"), "two");
    running.write("b\n");
    running.finish().is(0, "a b\n", "");
}

#[test]
fn output_and_errors_stay_apart() {
    let home = Home::with_busybox();
    home.run(["run", "busybox:test", "--", "sh", "-c", "echo out; echo err >&2"])
        .is(0, "out\n", "err\n");
}

#[test]
fn a_command_without_input_finds_it_empty() {
    let home = Home::with_busybox();
    home.run_with(["run", "--no-stdin", "busybox:test", "--", "cat"], b"not for it").is(0, "", "");
}

#[test]
fn a_command_whose_input_is_the_null_device_has_that_of_the_guest() {
    let home = Home::with_busybox();
    let input = "msb run --no-tty busybox:test -- sh -c 'readlink /proc/self/fd/0; cat'";
    home.shell(&format!("{input} </dev/null")).is(0, "/dev/null\n", "");
    home.shell(&format!("echo passed on | {input} | tail -n 1")).is(0, "passed on\n", "");
    // Not for what looks like it and is none.
    home.shell(&format!("printf x >null; {input} <null | tail -n 1")).is(0, "x", "");
}

#[test]
fn run_works_as_a_filter_in_a_pipeline() {
    let home = Home::with_busybox();
    home.shell("printf 'b\\na\\n' | msb run -i busybox:test -- sort | tr a-z A-Z")
        .is(0, "A\nB\n", "");
}

#[test]
fn a_pipeline_that_is_closed_early_ends_quietly() {
    let home = Home::with_busybox();
    let outcome = home.shell("msb run busybox:test -- yes | head -1; echo ${PIPESTATUS[0]} >&2");
    // The command dies of the closed pipe, as it would without us; or we do.
    assert!(
        ["141\n", "0\n"].contains(&String::from_utf8_lossy(&outcome.stderr).as_ref()),
        "{outcome:?}"
    );
    assert_eq!(outcome.done(), "y\n");
}

#[test]
fn the_first_line_does_not_wait_for_the_last() {
    let home = Home::with_busybox();
    let mut command = home.program("bash");
    command.args(["-c", "msb run busybox:test -- sh -c 'echo first; sleep 1000' | head -1"]);
    let mut pipeline = Running::start(command);
    assert_eq!(pipeline.read_until("\n"), "first\n");
    // As everywhere, a program that writes nothing more does not learn that nobody reads. It is
    // told to end.
    for client in home.processes().iter().filter(|process| process.name == "msb-run") {
        client.signal(rustix::process::Signal::TERM);
    }
    pipeline.finish().is(0, "", "");
}

#[test]
fn run_works_with_standard_input_closed() {
    let home = Home::with_busybox();
    home.shell("msb run -i busybox:test -- sh -c 'cat; echo end' <&-").is(0, "end\n", "");
    home.shell("msb run busybox:test -- echo end <&-").is(0, "end\n", "");
}

#[test]
fn run_works_with_standard_output_closed() {
    let home = Home::with_busybox();
    let outcome = home.shell("msb run busybox:test -- sh -c 'echo lost; exit 4' >&-");
    assert!([4, 125].contains(&outcome.code), "{outcome:?}");
    let outcome = home.shell("msb run busybox:test -- sh -c 'exit 4' <&- >&- 2>&-");
    outcome.is(4, "", "");
}

#[test]
fn exec_streams_both_ways_while_the_main_command_runs() {
    let home = Guests::shared();
    let mut cat = home.start(["exec", "-i", "x", "--", "cat"]);
    for line in ["one\n", "two\n"] {
        cat.write(line);
        assert_eq!(cat.read_until("\n"), line);
    }
    // Another one, at the same time.
    home.run_with(["exec", "-i", "x", "--", "sha256sum"], &[0; 3_000_000]).is(
        0,
        "35bce4eae54ec8e6cc2868baa8d157914d6ae2858811b4cc0c078c94460fa26f  -\n",
        "",
    );
    cat.finish().is(0, "", "");
}

#[test]
fn a_slow_reader_holds_up_nobody_else() {
    let home = Guests::shared();
    let mut command = home.msb(["exec", "x", "--", "yes"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let slow = Running::start_as_is(command);
    for _ in 0..3 {
        home.run(["exec", "x", "--", "echo", "quick"]).is(0, "quick\n", "");
    }
    drop(slow);
}
