//! The network of a guest: what it reaches, who reaches it, and how it ends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Guests, Home, Outcome, Random, stage, wait_until};

/// The guest's name for its host.
const HOST: &str = "host.microsandbox.internal";

/// The host's side of one connection: reads to its end, and only then answers with what it has
/// read.
fn mirror(address: &str) -> (u16, JoinHandle<usize>) {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).unwrap();
        socket.write_all(&bytes).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        bytes.len()
    });
    (port, thread)
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    Random::new(7).fill(&mut bytes);
    bytes
}

fn stderr(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stderr).into_owned()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A guest that may reach its host, under the name `x`.
fn guest(more: &[&str]) -> Guests {
    let words = ["--net", "host"];
    Guests::with(&[&words[..], more].concat())
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let guests = guest(&[]);
    let bytes = random_bytes(3_000_000);
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (port, thread) = mirror(address);
        let family = if address.starts_with('[') { "6" } else { "4" };
        let gateway = gateway(&guests, family);
        let outcome =
            guests.run_with(["exec", "-i", "x", "--", "nc", &gateway, &port.to_string()], &bytes);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert_eq!(thread.join().unwrap(), bytes.len());
        assert!(outcome.stdout == bytes, "IPv{family}: other bytes came back");
    }
}

/// The gateway, as `msb inspect` has it.
fn gateway(home: &Home, family: &str) -> String {
    let text = home.run(["inspect", "x", "--format", "json"]).done();
    let document: Value = serde_json::from_str(&text).unwrap();
    document["network"][format!("v{family}")]["gateway"].as_str().unwrap().to_owned()
}

#[test]
fn a_guest_reaches_no_host_unless_it_may() {
    let guests = Guests::with(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let outcome = guests.run(["exec", "x", "--", "nc", HOST, &port]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(stderr(&outcome).contains("Connection refused"), "{outcome:?}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "somebody came");
    let deny = events(&guests).into_iter().find(|event| event["type"] == "deny");
    assert!(deny.is_some());
}

/// The lines of net.log.
fn events(home: &Home) -> Vec<Value> {
    let path = home.state().join("sandboxes/x/net.log");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_port_where_nobody_listens_refuses() {
    let guests = guest(&[]);
    let port = free_port().to_string();
    let outcome = guests.run(["exec", "x", "--", "nc", HOST, &port]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(stderr(&outcome).contains("Connection refused"), "{outcome:?}");
}

#[test]
fn the_gateway_answers_echoes_of_any_size() {
    let guests = guest(&[]);
    for (family, size) in [("4", "56"), ("4", "60000"), ("6", "56")] {
        let gateway = gateway(&guests, family);
        let option = format!("-{family}");
        guests
            .run(["exec", "x", "--", "ping", &option, "-c", "1", "-W", "20", "-s", size, &gateway])
            .done();
    }
}

#[test]
fn a_published_port_leads_into_the_guest() {
    let port = free_port();
    let published = format!("{port}:8080");
    let guests = guest(&["-p", &published]);
    let ports = guests.run(["ps", "x", "--format", "json"]).done();
    assert!(ports.contains(&format!("127.0.0.1:{port}->8080/tcp")), "{ports}");
    let _server = guests.start(["exec", "x", "--", "nc", "-l", "-p", "8080", "-e", "cat"]);
    let bytes = random_bytes(2_000_000);
    let mut socket = echoed(port, bytes[0]);
    let mut reader = socket.try_clone().unwrap();
    let expected = bytes[1..].to_vec();
    let thread = thread::spawn(move || {
        let mut back = vec![0; expected.len()];
        reader.read_exact(&mut back).unwrap();
        back == expected
    });
    socket.write_all(&bytes[1..]).unwrap();
    assert!(thread.join().unwrap(), "other bytes came back");
}

/// A connection to a published port whose server gives back what it is sent, and has given back a
/// byte. Until the guest listens, callers are refused.
fn echoed(port: u16, byte: u8) -> TcpStream {
    loop {
        let mut back = [0];
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(mut socket) => {
                if socket.write_all(&[byte]).is_ok() && matches!(socket.read(&mut back), Ok(1)) {
                    assert_eq!(back[0], byte);
                    return socket;
                }
            }
            // With one processor the refusal can be there before the connection is ours.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn who_is_connected_through_a_published_port_uses_the_sandbox() {
    let home = Home::with_busybox();
    let port = free_port();
    let published = format!("{port}:8080");
    // Without samples too: what is looked at is not what others are shown.
    home.run([
        "run",
        "-d",
        "--name",
        "x",
        "--idle-timeout",
        "5s",
        "--disable-metrics-sample",
        "-p",
        &published,
        "busybox:test",
        "--",
        "nc",
        "-ll",
        "-p",
        "8080",
        "-e",
        "cat",
    ])
    .done();
    let mut socket = echoed(port, 1);
    // The time in which an idle one is stopped is over twice.
    thread::sleep(Duration::from_secs(11));
    assert_eq!(home.sandboxes(), [("x".into(), "Running".into())]);
    socket.write_all(&[2]).unwrap();
    let mut back = [0];
    socket.read_exact(&mut back).unwrap();
    assert_eq!(back, [2]);
    drop(socket);
    let end = home.run(["wait", "x"]).done();
    assert!(end.ends_with(" idle_timeout\n"), "{end}");
}

/// Returns the text that a published port sends to a silent client: the guest server's greeting, or
/// nothing.
fn greeting(port: u16) -> Option<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let mut said = String::new();
    socket.read_to_string(&mut said).ok()?;
    (!said.is_empty()).then_some(said)
}

#[test]
fn the_policy_and_the_ports_of_a_sandbox_that_runs_can_be_changed() {
    let guests = Guests::with(&[]);
    let modify = |args: &[&str]| guests.run([&["modify", "x"], args].concat());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().port().to_string();
    let call = ["exec", "x", "--", "nc", HOST, &target];
    assert_eq!(guests.run(call).code, 1, "the host is not public");

    // What is allowed is allowed at once.
    let changed = modify(&["--net", "public,host"]);
    assert_eq!(changed.code, 0, "{changed:?}");
    assert_eq!(stderr(&changed), "");
    let talk = guests.start(call);
    let (mut socket, _) = listener.accept().unwrap();

    // And what is not any more ends.
    modify(&["--net", "public"]).done();
    assert!(socket.read(&mut [0]).is_err(), "it was not broken off");
    talk.finish();
    assert_eq!(guests.run(call).code, 1);
    let denied = |event: &Value| event["type"] == "close" && event["how"] == "denied";
    wait_until("the log has it", || events(&guests).iter().any(denied));

    // Ports come and go; one that is in use changes nothing.
    let serve = "while :; do echo hello | nc -l -p 80; done";
    let _server = guests.start(["exec", "x", "--", "sh", "-c", serve]);
    let port = free_port();
    let published = format!("{port}:80");
    modify(&["-p", &published]).done();
    wait_until("the port leads into the guest", || greeting(port).as_deref() == Some("hello\n"));
    let busy = modify(&["-p", &format!("{target}:81"), "--net", "all"]);
    assert_eq!(busy.code, 1, "{busy:?}");
    assert!(stderr(&busy).contains("address already in use"), "{busy:?}");
    assert_eq!(guests.run(call).code, 1, "half of it was done");
    wait_until("the port is still there", || greeting(port).is_some());
    modify(&["--port-rm", &published]).done();
    let refused = TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    // It is written down, and what cannot change now waits.
    let ports = guests.run(["ps", "x", "--format", "json"]).done();
    assert!(!ports.contains(&port.to_string()), "{ports}");
    let later = modify(&["--net-ipv4-pool", "10.77.0.0/16"]);
    assert!(stderr(&later).contains("msb restart x"), "{later:?}");
}

#[test]
fn a_port_that_is_in_use_ends_the_start_and_leaves_nothing() {
    let home = Home::with_busybox();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let published = format!("{port}:80");
    let outcome = home.run(["run", "-p", &published, "busybox:test", "--", "true"]);
    assert_eq!(outcome.code, 125, "{outcome:?}");
    let said = format!("cannot publish port 127.0.0.1:{port}/tcp: address already in use");
    assert!(stderr(&outcome).contains(&said), "{outcome:?}");
    assert!(home.sandboxes().is_empty());
}

#[test]
fn datagrams_come_to_a_published_port_and_answers_go_back_up_to_sixty_kilobytes() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = {
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        other.local_addr().unwrap().port()
    };
    let guests = guest(&["-p", &format!("{port}:7000/udp")]);
    let program = stage("msb-test-guest");
    guests.run(["cp", program.to_str().unwrap(), "x:/echo"]).done();
    let _server = guests.start(["exec", "x", "--", "/echo", "echo-datagrams", "7000"]);
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut buffer = vec![0; 65536];
    for size in [60_000, 5] {
        let bytes = random_bytes(size);
        // Until the guest listens, there is no answer.
        wait_until("an answer", || {
            socket.send_to(&bytes, ("127.0.0.1", port)).unwrap();
            matches!(socket.recv_from(&mut buffer), Ok((count, _)) if count == size)
        });
        assert!(buffer[..size] == bytes, "other bytes came back");
    }
}

#[test]
fn a_reader_that_stalls_stalls_nobody() {
    let guests = guest(&[]);
    let stalled = TcpListener::bind("127.0.0.1:0").unwrap();
    let stalled_port = stalled.local_addr().unwrap().port().to_string();
    let _writer =
        guests.start(["exec", "x", "--", "sh", "-c", "nc $0 $1 </dev/zero", HOST, &stalled_port]);
    let (mut socket, _) = stalled.accept().unwrap();
    // Bytes have come, and nobody will read more of them.
    socket.read_exact(&mut [0; 4096]).unwrap();
    let bytes = random_bytes(3_000_000);
    let (port, thread) = mirror("127.0.0.1:0");
    let outcome = guests.run_with(["exec", "-i", "x", "--", "nc", HOST, &port.to_string()], &bytes);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(thread.join().unwrap(), bytes.len());
    assert!(outcome.stdout == bytes, "other bytes came back");
}

#[test]
fn a_thousand_callers_who_are_refused_leave_nothing_behind() {
    let port = free_port();
    let guests = guest(&["-p", &format!("{port}:8080")]);
    let before = descriptors(&guests);
    for _ in 0..1000 {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // Nobody listens in the guest: the end, or a reset.
        assert_ne!(socket.read(&mut [0]).ok(), Some(1));
    }
    wait_until("descriptors are closed", || descriptors(&guests) <= before);
}

#[test]
fn what_goes_over_the_network_is_counted() {
    let guests = guest(&[]);
    let (port, thread) = mirror("127.0.0.1:0");
    let bytes = random_bytes(1_000_000);
    let script = "nc $0 $1; nc $0 1 </dev/null; true";
    let port = port.to_string();
    let outcome =
        guests.run_with(["exec", "-i", "x", "--", "sh", "-c", script, HOST, &port], &bytes);
    assert!(outcome.stdout == bytes, "other bytes came back");
    thread.join().unwrap();
    let text = guests.run(["metrics", "x", "--format", "json"]).done();
    let figures: Value = serde_json::from_str(&text).unwrap();
    let figure = |name: &str| figures[name].as_u64().unwrap_or_else(|| panic!("{name}: {text}"));
    for name in ["net_rx_bytes", "net_tx_bytes"] {
        assert!((1_000_000..2_000_000).contains(&figure(name)), "{name}: {text}");
    }
    assert!(figure("net_connections") >= 1, "{text}");
    assert_eq!(figure("net_denied"), 0, "{text}");
}

#[test]
fn a_sandbox_whose_network_dies_ends_with_that_reason() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    let mut networks = home.processes();
    networks.retain(|process| process.name == "msb-net");
    assert_eq!(networks.len(), 1, "{networks:#?}");
    networks[0].signal(Signal::KILL);
    wait_until("the end", || home.sandboxes()[0].1 == "Crashed");
    let list = home.list();
    assert_eq!(list[0]["reason"], "net_failed");
    assert_eq!(list[0]["message"], "the network process was killed by signal 9");
}

#[test]
fn a_sandbox_without_a_network_has_no_interface() {
    let home = Home::with_busybox();
    home.run(["run", "--net", "none", "busybox:test", "--", "ls", "/sys/class/net"])
        .is(0, "lo\n", "");
}

/// Returns the number of open descriptors of the network's process.
fn descriptors(home: &Home) -> usize {
    let mut networks = home.processes();
    networks.retain(|process| process.name == "msb-net");
    assert_eq!(networks.len(), 1, "{networks:#?}");
    std::fs::read_dir(format!("/proc/{}/fd", networks[0].pid)).map(Iterator::count).unwrap()
}

#[test]
fn many_short_connections_leave_nothing_behind() {
    let guests = guest(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let _ = socket.unwrap().write_all(b"x");
        }
    });
    let before = descriptors(&guests);
    let script = format!("for i in $(seq 200); do nc {HOST} {port} </dev/null; done | wc -c");
    guests.run(["exec", "x", "--", "sh", "-c", &script]).is(0, "200\n", "");
    wait_until("descriptors are closed", || descriptors(&guests) <= before);
    let opened = events(&guests).iter().filter(|event| event["type"] == "open").count();
    wait_until("all are closed", || {
        let closed = events(&guests).iter().filter(|event| event["type"] == "close").count();
        closed >= 200
    });
    assert!(opened >= 200, "{opened}");
}
