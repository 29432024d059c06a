//! The log of a network: connections with their bytes, denials with their rules, and ports; and
//! what would become of it all under another policy.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;

use serde_json::{Value, json};

use crate::support::{Guests, stage, wait_until};

/// The guest's name for its host.
const HOST: &str = "host.microsandbox.internal";

/// Whole lines of net.log.
fn events(guests: &Guests) -> Vec<Value> {
    let path = guests.state().join("sandboxes/x/net.log");
    let text = fs::read_to_string(path).unwrap_or_default();
    let end = text.rfind('\n').map_or(0, |end| end + 1);
    let lines = text[..end].lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits for the one event that is so.
#[track_caller]
fn event(guests: &Guests, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait_until(what, || events(guests).iter().any(&is_so));
    let mut found = events(guests);
    found.retain(is_so);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The gateway's IPv4 address.
fn gateway(guests: &Guests) -> String {
    let text = guests.run(["inspect", "x", "--format", "json"]).done();
    let document: Value = serde_json::from_str(&text).unwrap();
    document["network"]["v4"]["gateway"].as_str().unwrap().to_owned()
}

#[test]
fn a_connection_that_ends_is_logged_with_the_bytes_that_went_each_way() {
    let guests = Guests::with(&["--net", "host"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).unwrap();
        socket.write_all(b"goodbye").unwrap();
    });
    let call = ["exec", "-i", "x", "--", "nc", &gateway(&guests), &port.to_string()];
    let outcome = guests.run_with(call, &[b'x'; 1_234_567]);
    outcome.is(0, "goodbye", "");
    server.join().unwrap();
    let of = |kind: &'static str| {
        move |event: &Value| {
            let remote = event["remote"].as_str().unwrap_or_default();
            event["type"] == kind && remote.ends_with(&format!(":{port}"))
        }
    };
    let close = event(&guests, "the end is logged", of("close"));
    let open = event(&guests, "the begin is logged", of("open"));
    assert_eq!(close["id"], open["id"]);
    let fields = ["protocol", "bytes_up", "bytes_down", "how"].map(|field| close[field].clone());
    assert_eq!(json!(fields), json!(["tcp", 1_234_567, 7, "closed"]));
}

#[test]
fn datagrams_are_counted_until_the_policy_ends_their_flow() {
    let guests = Guests::with(&["--net", "host"]);
    let program = stage("msb-test-guest");
    guests.run(["cp", program.to_str().unwrap(), "x:/guest"]).done();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let server = thread::spawn(move || {
        let mut buffer = [0; 100];
        let (count, peer) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(b"12345", peer).unwrap();
        count
    });
    let attempt = format!("udp {}:{port} 616263\n", gateway(&guests));
    let call = ["exec", "-i", "x", "--", "/guest", "call"];
    guests.run_with(call, attempt.as_bytes()).is(0, "answered 3132333435\n", "");
    assert_eq!(server.join().unwrap(), 3);
    guests.run(["modify", "x", "--net", "public"]).done();
    let close = event(&guests, "the end is logged", |event| event["type"] == "close");
    let fields = ["protocol", "bytes_up", "bytes_down", "how"].map(|field| close[field].clone());
    assert_eq!(json!(fields), json!(["udp", 3, 5, "denied"]));
}

#[test]
fn what_is_refused_is_logged_with_the_number_of_its_rule() {
    let rules = "allow@192.168.9.9,deny@10.0.0.0/8,allow@any:udp,deny@host:tcp:1-1000,allow@host";
    let guests = Guests::with(&["--net-rule", rules]);
    let script = "nc 10.1.1.1 80 </dev/null; nc $0 999 </dev/null; nc 11.1.1.1 80 </dev/null; true";
    guests.run(["exec", "x", "--", "sh", "-c", script, HOST]).done();
    wait_until("three are logged", || events(&guests).len() >= 3);
    let told = events(&guests);
    let told = told.iter().filter(|event| event["type"] == "deny");
    let rules: Vec<(&Value, &Value)> =
        told.map(|event| (&event["rule"], &event["reason"])).collect();
    assert_eq!(json!(rules), json!([[2, "rule"], [4, "rule"], [null, "default"]]));
    let text = guests.run(["metrics", "x", "--format", "json"]).done();
    let figures: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(figures["net_denied"], 3);
}

#[test]
fn ports_are_logged_when_they_are_published_and_when_they_are_no_more() {
    let [first, second] = [free_port(), free_port()];
    let guests = Guests::with(&["-p", &format!("{first}:80")]);
    guests.run(["modify", "x", "-p", &format!("{second}:81/udp")]).done();
    guests.run(["modify", "x", "--port-rm", &format!("{first}:80")]).done();
    // What changes nothing of the ports tells nothing of them.
    guests.run(["modify", "x", "--net", "all"]).done();
    let port = |change: &str, host: u16, guest: u16, transport: &str| json!({ "type": "port", "change": change, "host": format!("127.0.0.1:{host}"), "guest": guest, "transport": transport });
    let ports = || {
        let mut ports = events(&guests);
        ports.retain(|event| event["type"] == "port");
        ports
    };
    wait_until("the last change is logged", || ports().len() >= 3);
    let expected = [
        port("published", first, 80, "tcp"),
        port("published", second, 81, "udp"),
        port("removed", first, 80, "tcp"),
    ];
    assert_eq!(ports(), expected);
}

#[test]
fn who_comes_to_a_published_port_needs_the_policy_too() {
    let port = free_port();
    let guests = Guests::with(&["-p", &format!("{port}:80"), "--net-default-ingress", "deny"]);
    let serve = "while :; do echo hello | nc -l -p 80; done";
    let _server = guests.start(["exec", "x", "--", "sh", "-c", serve]);
    let mut said = String::new();
    let heard = TcpStream::connect(("127.0.0.1", port))
        .and_then(|mut socket| socket.read_to_string(&mut said));
    assert!(heard.is_err() || said.is_empty(), "{said}");
    let deny = event(&guests, "it is logged", |event| event["type"] == "deny");
    let fields =
        ["direction", "protocol", "address", "port", "reason"].map(|field| deny[field].clone());
    assert_eq!(json!(fields), json!(["ingress", "tcp", "127.0.0.1", 80, "default"]));
    let explained =
        guests.run(["net", "explain", "--sandbox", "x", "--ingress", "tcp", "127.0.0.1:80"]);
    assert!(explained.done().contains(": deny: "));
    // The same one comes in when it may.
    guests.run(["modify", "x", "--net", "public"]).done();
    wait_until("the port leads into the guest", || {
        let mut said = String::new();
        let heard = TcpStream::connect(("127.0.0.1", port))
            .and_then(|mut socket| socket.read_to_string(&mut said));
        heard.is_ok() && said == "hello\n"
    });
}

#[test]
fn the_log_of_a_guest_is_held_against_another_policy() {
    let guests = Guests::with(&["--net", "host"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let gateway = gateway(&guests);
    let script = "nc $0 $1 </dev/null & nc 10.1.1.1 80 </dev/null; nslookup -type=a example.com >/dev/null; kill $!; true";
    guests.run(["exec", "x", "--", "sh", "-c", script, &gateway, &port.to_string()]).done();
    let question = |event: &Value| event["type"] == "dns" && event["name"] == "example.com";
    event(&guests, "the question is logged", question);
    let policy = json!({ "rules": ["allow@private", "allow@example.com"], "egress": "deny", "ingress": "allow" });
    let file = guests.directory.join("new.json");
    fs::write(&file, policy.to_string()).unwrap();
    let log = guests.state().join("sandboxes/x/net.log");
    let place =
        |is_so: &dyn Fn(&Value) -> bool| 1 + events(&guests).iter().position(is_so).unwrap();
    let opened = place(&|event| event["type"] == "open");
    let denied = place(&|event| event["type"] == "deny");
    let asked = place(&question);
    let mut expected = [
        (opened, format!("tcp {gateway}:{port}: deny: no rule matches (was allow)")),
        (denied, "tcp 10.1.1.1:80: allow: rule 1, allow@private (was deny)".to_owned()),
        (asked, "dns example.com: allow: rule 2, allow@domain=example.com (was deny)".to_owned()),
    ];
    expected.sort();
    let expected: String =
        expected.iter().map(|(line, text)| format!("line {line}: {text}\n")).collect();
    let (log, file) = (log.to_str().unwrap(), file.to_str().unwrap());
    let replay = ["net", "replay", log, "--policy", file, "--gateway", &gateway];
    guests.run(replay).is(0, &expected, "3 of 3 differ\n");
    // Under its own policy nothing differs.
    guests.run(["net", "replay", log, "--sandbox", "x"]).is(0, "", "0 of 3 differ\n");
}
