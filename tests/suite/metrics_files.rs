//! Collectors with sample files, events and clients that are made by hand. There is no sandbox
//! here: the sample files are made, and kept, by the real writer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::otlp::{Along, Receiver, free_port, parse};
use crate::support::{Home, Running, Terminal, stage, wait_until};

/// Sample files of `sandbox-0000` and so on, in a state directory, kept as long as this lives.
fn sandboxes(state: &Path, count: u32) -> Running {
    let mut command = Command::new(stage("sample-files"));
    command
        .arg(state)
        .args([&count.to_string(), "3600"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut running = Running::start_as_is(command);
    running.read_until("ready\n");
    running
}

fn signal(running: &Running, signal: Signal) {
    kill_process(Pid::from_raw(running.pid()).unwrap(), signal).unwrap();
}

fn say_that_one_crashed(home: &Home) {
    let path = home.state().join("events.log");
    let mut file = std::fs::File::options().append(true).open(path).unwrap();
    let line = json!({"t": "2026-11-23T14:00:00Z", "type": "crashed", "sandbox": "web", "reason": "out_of_memory", "exit_code": 137});
    writeln!(file, "{line}").unwrap();
}

/// The body of the answer to a scrape.
fn scrape(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200 ").then_some(answer)
}

/// Returns whether the peer has closed a connection.
fn is_closed(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = stream.read(&mut [0]);
    !matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn silent_clients_hold_up_neither_a_scrape_nor_the_end() {
    let home = Home::new();
    let port = free_port();
    let listen = format!("127.0.0.1:{port}");
    let args = ["prom", "--log-level", "debug", "--listen", &listen];
    let serve = || {
        let serving = Along::start(&home, &args);
        wait_until("the begin", || serving.said().contains("listening at"));
        serving
    };
    // A silent client has a few seconds. A machine so busy that they are over is no answer: then
    // once more.
    let serving = serve();
    wait_until("a scrape while all of its time is left to a silent client", || {
        // More than are served at once: the oldest of them has to go.
        let silent: Vec<TcpStream> =
            (0..40).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
        let page = scrape(port).unwrap();
        assert!(page.ends_with("microsandbox_sandboxes 0\n"), "{page}");
        !is_closed(silent.last().unwrap())
    });
    serving.stop();
    wait_until("an end while all of its time is left to a silent client", || {
        let serving = serve();
        let _silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // The one behind it was served, so it was there.
        scrape(port).unwrap();
        !serving.stop().contains("cannot answer")
    });
}

#[test]
fn a_file_for_prometheus_that_was_never_written_is_no_failure_at_the_end() {
    let home = Home::new();
    let path = home.directory.join("nowhere/msb.prom");
    let writing = Along::start(&home, &["prom", "--textfile", path.to_str().unwrap()]);
    wait_until("a try that fails", || writing.said().contains("nowhere"));
    // It ends well.
    writing.stop();
}

#[test]
fn ends_are_lines_and_counters() {
    let home = Home::new();
    std::fs::create_dir_all(home.state()).unwrap();
    std::fs::write(home.state().join("events.log"), "").unwrap();
    let port = free_port();
    let serving = Along::start(&home, &["prom", "--listen", &format!("127.0.0.1:{port}")]);
    wait_until("the begin", || serving.said().contains("listening at"));
    let mut lines = home.start(["metrics", "jsonl", "--collect-interval", "100ms"]);
    assert_eq!(parse(&lines.read_until("\n"))["type"], "collected");
    say_that_one_crashed(&home);
    say_that_one_crashed(&home);
    let mut exits = Vec::new();
    while exits.len() < 2 {
        let line = parse(&lines.read_until("\n"));
        if line["type"] == "exit" {
            exits.push(line);
        }
    }
    let exit = json!({"type": "exit", "timestamp": "2026-11-23T14:00:00+00:00", "name": "web",
        "state": "Crashed", "reason": "out_of_memory", "exit_code": 137});
    assert_eq!(exits, [exit.clone(), exit]);
    signal(&lines, Signal::TERM);
    assert_eq!(lines.finish().code, 0);
    let page = scrape(port).unwrap();
    let counter = "# TYPE microsandbox_exits_total counter\n\
        microsandbox_exits_total{name=\"web\",reason=\"out_of_memory\"} 2\n";
    assert!(page.contains(counter), "{page}");
    serving.stop();
}

#[test]
fn a_table_on_a_terminal_is_drawn_over_the_one_before() {
    let home = Home::new();
    let _sandboxes = sandboxes(&home.state(), 2);
    let terminal = Terminal::open(&home);
    // A line of the table is longer than 80 characters.
    terminal.resize(140, 24);
    terminal.enter("msb metrics --watch --interval 100ms; echo code $?");
    terminal.wait_for_screen("a table with rates", |screen| {
        let lines: Vec<&str> = screen.trim_end().lines().collect();
        // Of all that were drawn one is there: without what was typed, which it was drawn over.
        lines.len() == 3
            && lines[0].starts_with("NAME ")
            && lines[0].contains("SENT/S")
            && lines[1].starts_with("sandbox-0000 ")
            && lines[2].starts_with("sandbox-0001 ")
    });
    terminal.press("C-c");
    terminal.wait_for("code 0");
}

#[test]
fn lines_for_people_have_each_sandbox_or_say_that_there_is_none() {
    let home = Home::new();
    let stdout = || home.start(["metrics", "stdout", "--collect-interval", "100ms"]);
    let end = |running: Running| {
        signal(&running, Signal::TERM);
        assert_eq!(running.finish().code, 0);
    };
    let mut none = stdout();
    for _ in 0..2 {
        assert_eq!(none.read_until("\n"), "no active sandboxes\n");
    }
    end(none);
    let _sandboxes = sandboxes(&home.state(), 2);
    let mut two = stdout();
    for name in ["sandbox-0000", "sandbox-0001", "sandbox-0000"] {
        let line = two.read_until("\n");
        let cells: Vec<&str> = line.split("  ").collect();
        assert_eq!((cells.len(), cells[1]), (11, name), "{line}");
    }
    end(two);
}

#[test]
fn an_exporter_has_its_options_from_the_command_line_and_the_environment() {
    let home = Home::new();
    let elsewhere = home.directory.join("elsewhere");
    let _sandboxes = sandboxes(&elsewhere, 1);
    let receiver = Receiver::start("http", 0);
    let endpoint = format!("http://127.0.0.1:{}", receiver.port);
    let mut command = home.msb(["metrics", "otel", "--protocol", "http", "--endpoint", &endpoint]);
    command
        .args(["--emit-pid", "--log-format", "json", "--flush-interval", "100ms"])
        .args(["--msb-home", elsewhere.to_str().unwrap()])
        .args(["--header", "x-tenant=second"])
        .env("HOSTNAME", "a-host")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a%2Cb, x-tenant=first");
    let exporting = Along::of(&home, command);
    wait_until("an export", || !receiver.requests().is_empty());
    let said = exporting.stop();
    let first = parse(said.lines().next().unwrap());
    assert_eq!(
        [&first["level"], &first["tool"], &first["message"]],
        ["info", "msb-metrics", &format!("exporting to {endpoint}")],
        "{said}"
    );
    let headers = &receiver.requests()[0]["headers"];
    // The command line has the last word.
    assert_eq!([&headers["authorization"], &headers["x-tenant"]], ["Bearer a,b", "second"]);
    let point = &receiver.values("microsandbox.memory.limit")[0];
    assert_eq!(point["attributes"]["sandbox.name"], "sandbox-0000");
    assert_eq!(point["attributes"]["sandbox.pid"], 1000);
    assert_eq!(point["resource"]["service.instance.id"], "a-host");
}

#[test]
fn garbage_in_the_file_of_a_sandbox_that_lives_is_told_and_harms_no_other() {
    const PAGE: usize = 4096;
    let home = Home::new();
    let keeper = sandboxes(&home.state(), 3);
    // It keeps the locks, and does not write over what is done here.
    signal(&keeper, Signal::STOP);
    let path = |number: u32| home.state().join(format!("run/sandbox-000{number}/samples"));
    let good = std::fs::read(path(0)).unwrap();
    let put = |number: u32, bytes: &[u8]| {
        // In place: another file would not be locked.
        let mut file = std::fs::File::options().write(true).open(path(number)).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        file.write_all(bytes).unwrap();
    };
    let rows = || {
        let outcome = home.run(["metrics", "--format", "json"]);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        let rows = parse(std::str::from_utf8(&outcome.stdout).unwrap());
        let rows = rows.as_array().unwrap().clone();
        (rows, String::from_utf8(outcome.stderr).unwrap())
    };
    let names = |rows: &[Value]| -> Vec<String> {
        let names = rows.iter().map(|row| row["name"].as_str().unwrap());
        names.map(str::to_owned).collect()
    };
    assert_eq!(rows().0.len(), 3);
    let noise: Vec<u8> =
        (0..good.len() as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut later_version = good.clone();
    later_version[8] = 99;
    let mut torn = good.clone();
    torn[16] |= 1;
    for (what, bytes) in [
        ("noise", &noise[..]),
        ("nothing", &vec![0; good.len()]),
        ("a later version", &later_version),
        ("half a write", &torn),
        ("an end in the midst", &good[..100]),
    ] {
        put(1, bytes);
        let (found, said) = rows();
        assert_eq!(names(&found), ["sandbox-0000", "sandbox-0002"], "{what}");
        let path = path(1);
        assert!(said.contains(path.to_str().unwrap()), "{what}: {said}");
    }
    put(1, &good);
    // A page of msb-net that is spoiled costs the figures of the network, which no other takes the
    // place of.
    put(2, &[&good[..PAGE], &noise[PAGE..]].concat());
    let (found, said) = rows();
    assert_eq!((found.len(), said.as_str()), (3, ""));
    for (row, is_there) in [(0, true), (2, false)] {
        let row = &found[row];
        assert_eq!(row["net_tx_bytes"].is_u64(), is_there, "{row}");
        assert_eq!(row["memory_limit_bytes"], 1000, "{row}");
    }
    // One that was asked for by name runs, whatever its file says.
    put(1, &noise);
    let directory = home.state().join("sandboxes/sandbox-0001");
    std::fs::create_dir_all(&directory).unwrap();
    let script = format!(
        "exec 9>{}/lock && exec {} -c 'import fcntl, struct, sys
fcntl.fcntl(9, 37, struct.pack(\"hhqqi\", fcntl.F_WRLCK, 0, 0, 0, 0))
print(\"held\", flush=True)
sys.stdin.read()'",
        directory.display(),
        "/usr/bin/python3"
    );
    let mut holder = home.shell_in_background(&script);
    holder.read_until("held\n");
    let outcome = home.run(["metrics", "sandbox-0001"]);
    let said = String::from_utf8(outcome.stderr).unwrap();
    assert_eq!(outcome.code, 1, "{said}");
    let words = format!(
        "msb metrics: error: cannot read the samples in '{}': unknown format or version\n",
        path(1).display()
    );
    assert_eq!(said, words);
    assert_eq!(holder.finish().code, 0);
    signal(&keeper, Signal::CONT);
}

#[test]
fn what_users_set_for_samples_is_that_of_new_sandboxes() {
    let home = Home::with_busybox();
    for (number, (defaults, more, interval)) in [
        (json!({"metrics_sample_interval_ms": 700}), &[][..], json!(700)),
        (json!({"disable_metrics_sample": true}), &[], json!(0)),
        (
            json!({"metrics_sample_interval_ms": 700}),
            &["--metrics-sample-interval", "300ms"],
            json!(300),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let config = json!({"sandbox_defaults": defaults}).to_string();
        std::fs::write(home.state().join("config.json"), config).unwrap();
        let name = format!("web-{number}");
        let args = [&["create", "--no-start", "--name", &name], more, &["busybox:test"]].concat();
        home.run(args).done();
        let path = home.state().join("sandboxes").join(&name).join("spec.json");
        let spec = parse(&std::fs::read_to_string(path).unwrap());
        assert_eq!(spec["metrics"]["sample_interval_ms"], interval, "{spec}");
    }
}
