//! The host under a policy, by the addresses that it has now; and a log under another policy.

use std::net::{TcpListener, UdpSocket};

use crate::support::Home;

fn in_guest(home: &Home, policy: &[&str], script: &str) -> String {
    let mut args = vec!["run"];
    args.extend(policy);
    args.extend(["busybox:test", "--", "sh", "-c", script]);
    home.run(args).done()
}

#[test]
fn the_host_is_refused_by_each_of_its_addresses_until_a_rule_allows_it() {
    let home = Home::with_busybox();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    // The host's address towards others; nothing is sent.
    let outward = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = outward.connect("192.0.2.1:9").and_then(|()| outward.local_addr());
    let own = own.map_or_else(|_| "127.0.0.1".to_owned(), |address| address.ip().to_string());
    let script = format!(
        "gateway=$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p'); \
         for address in $gateway {own} 127.0.0.2; do nc -w 5 $address {port} </dev/null >/dev/null 2>&1 && echo $address; done; \
         nslookup host.microsandbox.internal 2>&1 | grep -c NXDOMAIN"
    );
    let printed = in_guest(&home, &[], &script);
    assert!(printed.trim().parse::<u32>().is_ok_and(|count| count > 0), "{printed}");
    assert!(listener.accept().is_err(), "the guest came through");
    // The guest's side ends when ours does.
    listener.set_nonblocking(false).unwrap();
    let caller = std::thread::spawn(move || listener.accept().map(drop));
    let script = format!("nc -w 5 host.microsandbox.internal {port} </dev/null && echo connected");
    assert_eq!(in_guest(&home, &["--net", "host"], &script), "connected\n");
    assert!(caller.join().unwrap().is_ok());
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
        home.run_with([&["net", "replay", "-"][..], policy].concat(), log.as_bytes())
    };
    replay(&[]).is(0, "", "0 of 3 differ\n");
    replay(&["--net-rule", "allow@example.com"]).is(
        0,
        "line 4: dns example.org 1.1.1.1: deny: no rule matches (was allow)\n",
        "1 of 3 differ\n",
    );
    replay(&["--net", "private"]).is(
        0,
        "line 1: tcp 93.184.216.34:443: deny: no rule matches (was allow)\n\
         line 3: tcp 10.0.0.1:80: allow: rule 1, allow@private (was deny)\n",
        "2 of 3 differ\n",
    );
}
