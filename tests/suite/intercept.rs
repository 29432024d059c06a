//! TLS interception and secrets, from inside a guest, against servers of the host.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Guests, Home, Process, Running, stage, wait_until};

/// The value, which must be nowhere but in requests to its host.
const CANARY: &str = "c4n4ry-of-the-secret";

/// Servers of the host; see tests/support/tls_servers.py.
struct Servers {
    _process: Running,
    ports: BTreeMap<String, String>,
}

impl Servers {
    fn start(home: &Home) -> Servers {
        let mut command = home.program("/usr/bin/python3");
        command.args(["-c", include_str!("../support/tls_servers.py")]).arg(&home.directory);
        let mut process = Running::start(command);
        let lines = process.read_until("ready");
        let words = lines.lines().filter_map(|line| line.split_once(' '));
        let ports = words.map(|(name, port)| (name.to_owned(), port.to_owned())).collect();
        Servers { _process: process, ports }
    }
}

/// A guest with curl and Python, whose secret TOKEN is bound to a.test.
struct World {
    /// First, since it ends before the home, which looks for processes that are left.
    servers: Servers,
    guests: Guests,
}

impl World {
    fn start() -> World {
        let home = Home::new();
        let tar = stage("net/traveller.tar");
        let image = "traveller:test";
        home.run(["image", "import", "-q", "-i", tar.to_str().unwrap(), image]).done();
        let servers = Servers::start(&home);
        let ports = ["a.test", "e.test", "s.test"].map(|name| servers.ports[name].clone());
        let nameserver = format!("127.0.0.1:{}", servers.ports["dns"]);
        let mut create =
            home.msb(["run", "-d", "--name", "x", "-m", "512M", "--net", "public,host"]);
        create.args(["--dns-nameserver", &nameserver, "--tls-intercept-port", &ports.join(",")]);
        create.arg("--tls-upstream-ca-cert").arg(home.directory.join("ca.pem"));
        create.args(["--secret", "TOKEN@a.test", image]);
        create.env("TOKEN", CANARY);
        Running::start(create).finish().is(0, "x\n", "");
        let document = home.run(["inspect", "x", "--format", "json"]).done();
        let document: Value = serde_json::from_str(&document).unwrap();
        let gateway = document["network"]["v4"]["gateway"].as_str().unwrap().to_owned();
        fs::write(home.directory.join("address"), gateway).unwrap();
        World { guests: Guests::running(home), servers }
    }

    /// Runs a script in the guest, with `$A`, `$E` and `$S` as the servers' ports.
    fn script(&self, script: &str) -> String {
        let port = |name: &str| self.servers.ports[name].as_str();
        let set = format!("A={} E={} S={}", port("a.test"), port("e.test"), port("s.test"));
        let script = format!("{set}; {script}");
        let outcome = self.guests.run(["exec", "x", "--", "sh", "-c", &script]);
        String::from_utf8_lossy(&[outcome.stdout, outcome.stderr].concat()).into_owned()
    }

    /// Returns what a server has read since the last call.
    fn seen(&self, server: &str) -> String {
        let path = self.guests.directory.join(format!("{server}.log"));
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        text
    }

    fn events(&self) -> String {
        fs::read_to_string(self.guests.state().join("sandboxes/x/net.log")).unwrap()
    }

    /// The process of the interception: a child of the supervisor, which others may not look into.
    fn interceptor(&self) -> Process {
        let supervisor = self.guests.processes();
        let supervisor =
            supervisor.iter().find(|process| process.name == "msb-supervisor").unwrap();
        let children = format!("/proc/{0}/task/{0}/children", supervisor.pid);
        let pids = fs::read_to_string(children).unwrap();
        let is = |pid: &&str| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name == "msb-intercept\n")
        };
        let pid = pids.split_whitespace().find(is).unwrap().parse().unwrap();
        Process { pid, name: "msb-intercept".to_owned(), command_line: String::new() }
    }
}

/// Whether a file, or one below a directory, holds the value. The disk of the guest counts.
fn holds_canary(path: &Path) -> bool {
    let script = format!("grep -rqs --binary-files=text {CANARY} '{}'", path.display());
    std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success()
}

#[test]
fn a_secret_reaches_its_host_and_stays_out_of_the_guest() {
    let world = World::start();
    let bearer = "curl -sS -H \"Authorization: Bearer $TOKEN\"";
    assert_eq!(world.script("echo $TOKEN"), "$MSB_TOKEN\n");
    // To its host, by programs that find authorities in different ways.
    assert_eq!(world.script(&format!("{bearer} https://a.test:$A/")), "served\n");
    assert!(world.seen("a.test").contains(&format!("Authorization: Bearer {CANARY}\n")));
    let python = "python3 -c \"import os,sys,urllib.request as r; \
        q=r.Request('https://a.test:'+sys.argv[1],headers={'X-Key':os.environ['TOKEN']}); print(r.urlopen(q).read())\" $A";
    assert_eq!(world.script(python), "b'served\\n'\n");
    assert!(world.seen("a.test").contains(CANARY));
    assert_eq!(world.script("curl -sS -u user:$TOKEN https://a.test:$A/"), "served\n");
    assert!(world.seen("a.test").contains("Authorization: Basic "));
    let git = world.script("git ls-remote https://a.test:$A/repository 2>&1");
    assert!(!git.contains("certificate"), "{git}");
    assert!(world.seen("a.test").contains("User-Agent: git/"));
    // To others: refused with the reason, and nothing arrives.
    let refused = world.script(&format!("{bearer} -w '%{{http_code}}' https://e.test:$E/"));
    assert!(refused.contains("secret TOKEN is in the header authorization"), "{refused}");
    assert!(refused.ends_with("403"), "{refused}");
    let body = world.script("curl -sS -d \"{\\\"k\\\":\\\"$TOKEN\\\"}\" https://e.test:$E/");
    assert!(body.contains("is in the body"), "{body}");
    assert!(
        world.script("curl -sS \"https://e.test:$E/?k=%24MSB_TOKEN\"").contains("in the query")
    );
    assert!(!world.seen("e.test").contains("MSB_TOKEN"));
    assert_eq!(world.script("curl -sS https://e.test:$E/"), "served\n");
    let host = world.script(&format!("{bearer} -H 'Host: e.test' https://a.test:$A/"));
    assert!(host.contains("its Host header names another host"), "{host}");
    let unverified = world.script(&format!("{bearer} -k https://s.test:$S/"));
    assert!(unverified.contains("unknown issuer; --tls-upstream-ca-cert"), "{unverified}");
    let elsewhere =
        world.script(&format!("{bearer} --connect-to a.test:$A:e.test:$E https://a.test:$A/"));
    assert!(elsewhere.contains("not valid for this name"), "{elsewhere}");
    let address = world.script("getent hosts a.test | cut -d' ' -f1");
    let direct = format!("{bearer} --resolve c.test:$A:{} https://c.test:$A/", address.trim());
    assert!(world.script(&direct).contains("not valid for this name"));
    assert_eq!(world.seen("a.test") + &world.seen("s.test"), "");
    // What is no TLS, and QUIC, is denied.
    assert!(world.script("curl -sS http://a.test:$A/").contains("curl: ("));
    world.script(
        "echo x | timeout 1 bash -c \"cat >/dev/udp/$(getent hosts a.test | cut -d' ' -f1)/$A\"",
    );
    // Echoes.
    let back = world.script(&format!("{bearer} -i https://a.test:$A/header"));
    assert!(back.contains("X-Back: Bearer $MSB_TOKEN"), "{back}");
    assert!(!world.script(&format!("{bearer} https://a.test:$A/echo")).contains(CANARY));
    let _ = world.seen("a.test");
    let events = world.events();
    for event in [
        r#""what":"elsewhere","where":"header authorization""#,
        r#""what":"echo","where":"answer body""#,
        r#""reason":"not-tls""#,
        r#""reason":"intercepted-quic""#,
        r#""status":403"#,
    ] {
        assert!(events.contains(event), "{event}: {events}");
    }
    // The value is nowhere: not in the guest, in the state directory, or what a process shows.
    let inside =
        "grep -rqs c4n4ry-of /etc /run /root /tmp /proc/1/environ /proc/self/environ; echo $?";
    assert_eq!(world.script(inside), "1\n");
    assert!(!holds_canary(&world.guests.state()));
    for process in world.guests.processes() {
        for file in ["environ", "cmdline"] {
            let text = fs::read(format!("/proc/{}/{file}", process.pid)).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains(CANARY), "{} {file}", process.name);
        }
    }
    let interceptor = world.interceptor();
    for file in ["environ", "mem"] {
        let read = fs::File::open(format!("/proc/{}/{file}", interceptor.pid));
        assert!(read.is_err() || rustix::process::geteuid().is_root(), "{file}");
    }
    let shown = world.guests.run(["inspect", "x"]).done();
    assert!(shown.contains("intercept:calls") && !shown.contains(CANARY), "{shown}");
    // The same authority and one block of certificates after a restart, which needs the value.
    let block =
        "grep -c 'msb: begin' /etc/ssl/certs/ca-certificates.crt; md5sum </run/msb/tls/ca.pem";
    let before = world.script(block);
    assert!(before.starts_with("1\n"), "{before}");
    let boot_id = || world.script("cat /proc/sys/kernel/random/boot_id");
    let booted = boot_id();
    let failed = world.guests.run(["restart", "x"]);
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(
        failed.code != 0 && error.contains("cannot read secret TOKEN from env:TOKEN"),
        "{error}"
    );
    assert_eq!(boot_id(), booted);
    let mut restart = world.guests.msb(["restart", "x"]);
    restart.env("TOKEN", CANARY);
    assert_eq!(Running::start(restart).finish().code, 0);
    assert_ne!(boot_id(), booted);
    assert_eq!(world.script(block), before);
    assert_eq!(world.script(&format!("{bearer} https://a.test:$A/")), "served\n");
    // Without the process of the interception nothing passes, and the sandbox ends.
    world.interceptor().signal(Signal::KILL);
    wait_until("the end of the sandbox", || {
        world.guests.sandboxes().iter().all(|(_, status)| !status.eq_ignore_ascii_case("running"))
    });
    let shown = world.guests.run(["inspect", "x"]).done();
    assert!(shown.contains("the interception process was killed by signal 9"), "{shown}");
    assert!(!holds_canary(&world.guests.state()));
    // Without interception, the guest trusts the authority no longer.
    let refused = world.guests.run(["modify", "x", "--no-tls-intercept"]);
    assert!(refused.code == 2, "{refused:?}");
    world.guests.run(["modify", "x", "--no-tls-intercept", "--secret-rm", "TOKEN"]).done();
    world.guests.run(["start", "x"]).done();
    assert_eq!(world.script("test -e /run/msb/tls/ca.pem || echo $TOKEN none"), "none\n");
    assert!(world.script(block).starts_with("0\n"));
    assert!(world.script("ls /usr/local/share/ca-certificates").is_empty());
    assert!(world.script("curl -sS https://a.test:$A/ 2>&1").contains("certificate"));
}

#[test]
fn a_secret_without_a_value_or_with_one_in_its_argument_starts_nothing() {
    let home = Home::with_busybox();
    for (options, error) in [
        (
            &["--secret", "CANARY=c4n4ry@a.test"][..],
            "a secret's value cannot be part of the command line",
        ),
        (
            &["--secret", "CANARY_NONE@a.test"],
            "cannot read secret CANARY_NONE from env:CANARY_NONE",
        ),
        (&["--secret", "C@a.test", "--secret-from", "C=file:/none"], "from file:/none"),
        (
            &["--secret", "C@a.test", "--secret-from", "C=cmd:printf 'c4n4ry\\001'"],
            "control characters",
        ),
        (&["--secret", "C@a.test", "--net", "none"], "without a network"),
        (&["--secret", "C@a.test", "--tls-bypass", "*.test"], "exempts from interception"),
    ] {
        let words = [&["run", "--name", "y"], options, &["busybox:test", "true"]].concat();
        let outcome = home.run(words);
        let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
        assert!(outcome.code != 0 && text.contains(error), "{options:?}: {text}");
        let shown = text.replace("printf 'c4n4ry", "");
        assert!(!shown.contains("c4n4ry"), "{options:?}: {text}");
        home.run(["rm", "-f", "y"]);
    }
}
