//! What a guest may reach: attempts to pass by the policy, each from inside a real guest, with what `msb net explain` says
//! of the same case. And names: what the guest learns of which answer.

use std::net::{TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::support::Home;

/// A name server on the loopback interface that answers with what it is told, and remembers what it was asked.
struct Names {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

/// A record of an answer: owner, type, data.
type Record = (&'static str, u16, Vec<u8>);

const A: u16 = 1;
const CNAME: u16 = 5;

fn a(owner: &'static str, address: [u8; 4]) -> Record {
    (owner, A, address.to_vec())
}

fn encoded(name: &str) -> Vec<u8> {
    let labels = name
        .split('.')
        .flat_map(|label| [vec![label.len() as u8], label.as_bytes().to_vec()].concat());
    labels.chain([0]).collect()
}

/// The name in a question, and where the question ends.
fn question(message: &[u8]) -> (String, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while message[at] != 0 {
        let end = at + 1 + usize::from(message[at]);
        labels.push(String::from_utf8_lossy(&message[at + 1..end]).to_lowercase());
        at = end;
    }
    (labels.join("."), at + 5)
}

/// An answer with those records that are of the type that was asked for, and aliases.
fn answer(message: &[u8], records: &[Record]) -> Vec<u8> {
    let (_, end) = question(message);
    let kind = u16::from_be_bytes([message[end - 4], message[end - 3]]);
    let records: Vec<&Record> = records
        .iter()
        .filter(|record| record.1 == kind || record.1 == CNAME)
        .collect();
    let mut answer = message[..end].to_vec();
    answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    for (owner, kind, data) in records {
        answer.extend(encoded(owner));
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 0]);
        answer.extend((data.len() as u16).to_be_bytes());
        answer.extend(data);
    }
    answer
}

impl Names {
    fn start(records: impl Fn(&str) -> Vec<Record> + Send + 'static) -> Names {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let names = Names {
            port: socket.local_addr().unwrap().port(),
            asked: Arc::default(),
        };
        let asked = Arc::clone(&names.asked);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((count, peer)) = socket.recv_from(&mut buffer) {
                let (name, _) = question(&buffer[..count]);
                let answer = answer(&buffer[..count], &records(&name));
                asked.lock().unwrap().push(name);
                let _ = socket.send_to(&answer, peer);
            }
        });
        names
    }

    fn server(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// What `msb net explain` says: action and reason.
fn explained(home: &Home, policy: &[&str], what: &[&str]) -> (String, String) {
    let mut args = vec!["net", "explain", "--format", "json"];
    args.extend(policy);
    args.extend(what);
    let line: Value = serde_json::from_str(&home.run(args).done()).unwrap();
    let text = |field: &str| line[field].as_str().unwrap().to_owned();
    (text("action"), text("reason"))
}

fn in_guest(home: &Home, policy: &[&str], script: &str) -> String {
    let mut args = vec!["run"];
    args.extend(policy);
    args.extend(["busybox:test", "--", "sh", "-c", script]);
    home.run(args).done()
}

/// None of these can be connected to from a guest, and `explain` says so for the same reason.
fn refused(policy: &[&str], peers: &[&str], reason: &str) {
    let home = Home::with_busybox();
    for peer in peers {
        let found = explained(&home, policy, &["tcp", peer]);
        assert_eq!(found, ("deny".to_owned(), reason.to_owned()), "{peer}");
    }
    let attempts: String = peers
        .iter()
        .map(|peer| {
            let (address, port) = peer.rsplit_once(':').unwrap();
            let address = address.trim_matches(['[', ']']);
            format!("nc -w 5 {address} {port} </dev/null >/dev/null 2>&1 && echo {peer}; ")
        })
        .collect();
    assert_eq!(
        in_guest(&home, policy, &format!("{attempts} echo end")),
        "end\n"
    );
}

#[test]
fn the_services_of_clouds_that_give_out_credentials_are_refused() {
    refused(
        &[],
        &[
            "169.254.169.254:80",
            "169.254.170.2:80",
            "100.100.100.200:80",
            "168.63.129.16:80",
            "[fd00:ec2::254]:80",
        ],
        "default",
    );
}

#[test]
fn ipv4_inside_of_ipv6_is_refused_as_what_it_is() {
    let peers = [
        "[::ffff:169.254.169.254]:80",
        "[64:ff9b::a9fe:a9fe]:80",
        "[2002:a9fe:a9fe::1]:80",
        "[2001:0:808:808::5601:5601]:80",
    ];
    refused(&[], &peers, "default");
}

#[test]
fn local_networks_and_addresses_of_special_use_are_refused() {
    let peers = [
        "10.0.0.1:80",
        "192.168.0.1:80",
        "100.64.0.1:80",
        "198.18.0.1:80",
        "240.0.0.1:80",
        "[fd00::1]:80",
    ];
    refused(&[], &peers, "default");
}

#[test]
fn name_servers_past_ours_are_refused() {
    refused(&["--net", "all"], &["1.1.1.1:853"], "other-resolver");
}

#[test]
fn an_address_that_no_allowed_name_was_found_to_have_is_refused() {
    refused(
        &["--net-rule", "allow@example.com"],
        &["93.184.216.34:443"],
        "default",
    );
}

#[test]
fn the_host_is_refused_by_each_of_its_addresses_until_a_rule_allows_it() {
    let home = Home::with_busybox();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    // The host's address towards others; nothing is sent.
    let outward = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = outward
        .connect("192.0.2.1:9")
        .and_then(|()| outward.local_addr());
    let own = own.map_or_else(
        |_| "127.0.0.1".to_owned(),
        |address| address.ip().to_string(),
    );
    let script = format!(
        "gateway=$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'); \
         for address in $gateway {own} 127.0.0.2; do nc -w 5 $address {port} </dev/null >/dev/null 2>&1 && echo $address; done; \
         nslookup host.microsandbox.internal 2>&1 | grep -c NXDOMAIN"
    );
    let printed = in_guest(&home, &[], &script);
    assert!(
        printed.trim().parse::<u32>().is_ok_and(|count| count > 0),
        "{printed}"
    );
    assert!(listener.accept().is_err(), "the guest came through");
    // The guest's side ends when ours does.
    listener.set_nonblocking(false).unwrap();
    let caller = std::thread::spawn(move || listener.accept().map(drop));
    let script = format!("nc -w 5 host.microsandbox.internal {port} </dev/null && echo connected");
    assert_eq!(in_guest(&home, &["--net", "host"], &script), "connected\n");
    assert!(caller.join().unwrap().is_ok());
}

#[test]
fn a_name_that_no_rule_allows_is_denied_and_nobody_outside_hears_of_it() {
    let names = Names::start(|_| vec![a("ok.test", [93, 184, 216, 34])]);
    let home = Home::with_busybox();
    let server = names.server();
    let policy = ["--net-rule", "allow@ok.test", "--dns-nameserver", &server];
    assert_eq!(
        explained(&home, &policy, &["dns", "secret.evil.test"]).0,
        "deny"
    );
    assert_eq!(explained(&home, &policy, &["dns", "ok.test"]).0, "allow");
    let script = "nslookup secret.evil.test 2>&1 | grep -o NXDOMAIN | head -1; nslookup ok.test | grep -o 93.184.216.34 | head -1; \
                  nslookup ok.test 8.8.8.8 | grep -o 93.184.216.34 | head -1";
    // A question to another server is answered by ours.
    assert_eq!(
        in_guest(&home, &policy, script),
        "NXDOMAIN\n93.184.216.34\n93.184.216.34\n"
    );
    let asked = names.asked();
    assert!(
        asked.iter().all(|name| name == "ok.test") && !asked.is_empty(),
        "{asked:?}"
    );
}

#[test]
fn answers_with_addresses_that_are_not_public_are_refused() {
    let names = Names::start(|name| match name {
        "rebind.test" => vec![a("rebind.test", [127, 0, 0, 1])],
        "mixed.test" => vec![
            a("mixed.test", [93, 184, 216, 34]),
            a("mixed.test", [169, 254, 169, 254]),
        ],
        "alias.test" => vec![
            ("alias.test", CNAME, encoded("inner.test")),
            a("inner.test", [10, 0, 0, 1]),
        ],
        "other.test" => vec![a("bank.test", [93, 184, 216, 34])],
        _ => vec![a("good.test", [93, 184, 216, 34])],
    });
    let home = Home::with_busybox();
    for (name, address) in [
        ("rebind.test", "127.0.0.1"),
        ("mixed.test", "169.254.169.254"),
        ("alias.test", "10.0.0.1"),
    ] {
        let found = explained(&home, &[], &["dns", name, address]);
        assert_eq!(found, ("deny".to_owned(), "rebinding".to_owned()), "{name}");
    }
    let script = "for name in rebind mixed alias; do nslookup $name.test 2>&1 | grep -o NXDOMAIN | head -1; done; \
                  nslookup other.test 2>&1 | grep -c 93.184; nslookup good.test | grep -o 93.184.216.34 | head -1";
    let printed = in_guest(&home, &["--dns-nameserver", &names.server()], script);
    assert_eq!(printed, "NXDOMAIN\nNXDOMAIN\nNXDOMAIN\n0\n93.184.216.34\n");
}

#[test]
fn questions_over_tcp_are_answered_by_the_same_rules() {
    let names = Names::start(|_| vec![a("ok.test", [93, 184, 216, 34])]);
    let home = Home::with_busybox();
    let server = names.server();
    let message = |name: &str| {
        let body = [
            &[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..],
            &encoded(name),
            &[0, 1, 0, 1],
        ]
        .concat();
        let framed = [&(body.len() as u16).to_be_bytes()[..], &body].concat();
        framed
            .iter()
            .map(|byte| format!("\\{byte:03o}"))
            .collect::<String>()
    };
    // Behind the length stand the number and the flags, whose last four bits are the code.
    let script = format!(
        "for question in '{}' '{}'; do (printf \"$question\"; sleep 1) | nc -w 5 8.8.8.8 53 | hexdump -C | head -1 | cut -d ' ' -f 5-8; done",
        message("ok.test"),
        message("evil.test")
    );
    let printed = in_guest(
        &home,
        &["--net-rule", "allow@ok.test", "--dns-nameserver", &server],
        &script,
    );
    assert_eq!(printed, "12 34 81 80\n12 34 81 83\n");
    assert_eq!(names.asked(), ["ok.test"]);
}

/// A ClientHello that asks for a name (RFC 8446, 4.1.2), as printf takes it.
fn client_hello(name: &str) -> String {
    let vector = |bytes: usize, body: &[u8]| {
        let length = (body.len() as u64).to_be_bytes();
        [&length[8 - bytes..], body].concat()
    };
    let entry = [&[0][..], &vector(2, name.as_bytes())].concat();
    let extension = [&[0, 0][..], &vector(2, &vector(2, &entry))].concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &[0, 2, 0x13, 1],
        &[1, 0],
        &vector(2, &extension),
    ]
    .concat();
    let message = [&[1][..], &vector(3, &body)].concat();
    let record = [&[22, 3, 1][..], &vector(2, &message)].concat();
    record.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

#[test]
fn what_tls_asks_for_is_looked_at_where_a_rule_is_on_a_name() {
    let home = Home::with_busybox();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let policy = ["--net-rule", "deny@evil.test,allow@host"];
    let gateway = "172.16.0.1";
    let peer = format!("{gateway}:{port}");
    let explained = |sni| {
        explained(
            &home,
            &[&policy[..], &["--gateway", gateway]].concat(),
            &["tcp", &peer, "--sni", sni],
        )
        .0
    };
    assert_eq!(
        (explained("evil.test"), explained("good.test")),
        ("deny".to_owned(), "allow".to_owned())
    );
    let heard = std::thread::spawn(move || {
        let hear = |stream: std::io::Result<std::net::TcpStream>| {
            use std::io::Read;
            let mut stream = stream.unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(60)))
                .unwrap();
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes);
            bytes.len()
        };
        listener.incoming().take(3).map(hear).collect::<Vec<_>>()
    });
    let script = format!(
        "for first in '{}' '{}' plain; do (printf \"$first\"; sleep 1) | nc -w 5 host.microsandbox.internal {port}; done; true",
        client_hello("evil.test"),
        client_hello("good.test")
    );
    in_guest(&home, &policy, &script);
    let heard = heard.join().unwrap();
    assert_eq!(
        (heard[0], heard[1] > 50, heard[2]),
        (0, true, 5),
        "{heard:?}"
    );
}

#[test]
fn a_log_is_held_against_another_policy() {
    let home = Home::new();
    let log = concat!(
        r#"{"type":"open","id":1,"direction":"egress","protocol":"tcp","address":"93.184.216.34","port":443,"names":["example.com"],"tls":"unseen","action":"allow","rule":1,"reason":"rule"}"#,
        "\n",
        r#"{"type":"close","id":1,"protocol":"tcp"}"#,
        "\n",
        r#"{"type":"deny","direction":"egress","protocol":"tcp","address":"10.0.0.1","port":80,"tls":"unseen","action":"deny","reason":"default"}"#,
        "\n",
        r#"{"type":"dns","name":"example.org","record":"A","code":"NOERROR","answers":["1.1.1.1"],"action":"allow","rule":1,"reason":"rule"}"#,
        "\n",
    );
    let replay = |policy: &[&str]| {
        home.run_with(
            [&["net", "replay", "-"][..], policy].concat(),
            log.as_bytes(),
        )
    };
    replay(&[]).is(0, "", "0 of 3 differ\n");
    replay(&["--net-rule", "allow@example.com"]).is(
        0,
        "line 4: dns example.org 1.1.1.1: deny: no rule speaks of it (was allow)\n",
        "1 of 3 differ\n",
    );
    replay(&["--net", "private"]).is(
        0,
        "line 1: tcp 93.184.216.34:443: deny: no rule speaks of it (was allow)\n\
         line 3: tcp 10.0.0.1:80: allow: rule 1, allow@private (was deny)\n",
        "2 of 3 differ\n",
    );
}
