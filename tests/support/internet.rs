//! A sandbox on a host whose Internet is the test's: every address there is, is one that hears what
//! comes. What a policy lets through therefore arrives somewhere, and what does not arrive was
//! refused.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::{Home, Link, Outcome, Running, command, stage, wait_until};

/// A place that is reached last, so that all before it is over: its port is listened at.
const LAST: &str = "203.0.113.9";

/// A record of the name server's: owner, type, data.
pub(crate) type Record = (&'static str, u16, Vec<u8>);

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
pub(crate) const HTTPS: u16 = 65;

/// The record of an IPv4 address.
pub(crate) fn a(owner: &'static str, address: [u8; 4]) -> Record {
    (owner, A, address.to_vec())
}

/// A name as messages have it.
pub(crate) fn encoded(name: &str) -> Vec<u8> {
    let labels = name
        .split('.')
        .flat_map(|label| [vec![label.len() as u8], label.as_bytes().to_vec()].concat());
    labels.chain([0]).collect()
}

/// An answer of the name server's.
pub(crate) fn answers(records: &[Record]) -> Value {
    let record = |(owner, kind, data): &Record| json!([owner, kind, 3600, digits(data)]);
    json!({ "records": records.iter().map(record).collect::<Vec<_>>() })
}

pub(crate) fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The Internet, and a sandbox `x` of busybox in it.
pub(crate) struct Internet {
    /// See internet.py.
    server: RefCell<Running>,
    pub(crate) home: Home,
    pub(crate) link: Link,
}

impl Internet {
    /// Without names.
    pub(crate) fn with(policy: &[&str]) -> Internet {
        Internet::of(json!({}), policy)
    }

    /// With names, and what they lead to.
    pub(crate) fn of(names: Value, policy: &[&str]) -> Internet {
        let home = Home::with_busybox();
        // The test's user stays who it is, and is free to arrange a network that nobody else has.
        let mut unshare = home.program("unshare");
        unshare.args(["--user", "--map-current-user", "--keep-caps", "--net"]);
        unshare.args(["python3", "-c", include_str!("internet.py")]);
        unshare.arg(names.to_string());
        let mut server = Running::start(unshare);
        server.read_until("ready\n");
        let mut internet = Internet { server: RefCell::new(server), home, link: Link::default() };
        let words = ["run", "-d", "--name", "x", "--dns-nameserver", "127.0.0.1"];
        let words = [&words[..], policy, &["busybox:test"]].concat();
        internet.run(words, b"").done();
        let program = stage("msb-test-guest");
        let program = program.to_str().unwrap();
        internet.run(["cp", program, "x:/guest"], b"").done();
        internet.link = internet.look_at_link();
        internet
    }

    /// `msb` with arguments, in this network.
    pub(crate) fn msb<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Command {
        let mut command = self.home.program("nsenter");
        let pid = self.server.borrow().pid().to_string();
        command.args(["--preserve-credentials", "--user", "--net", "-t", &pid]);
        command.arg(self.home.prefix.join("bin/msb")).args(args);
        command
    }

    /// Runs `msb` to its end.
    #[track_caller]
    pub(crate) fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
        &self,
        args: I,
        input: &[u8],
    ) -> Outcome {
        command::run(self.msb(args), input)
    }

    /// Takes the routes away: nothing is reachable.
    pub(crate) fn remove_routes(&self) {
        let mut server = self.server.borrow_mut();
        let pid = rustix::process::Pid::from_raw(server.pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
        server.read_until("removed\n");
    }

    /// Gives the sandbox another policy.
    pub(crate) fn modify(&self, policy: &[&str]) {
        self.run([&["modify", "x"], policy].concat(), b"").done();
    }

    /// The guest's place on its wire.
    fn look_at_link(&self) -> Link {
        let text = self.run(["inspect", "x", "--format", "json"], b"").done();
        let document: Value = serde_json::from_str(&text).unwrap();
        let address = |family: &str, of: &str| -> IpAddr {
            document["network"][family][of].as_str().unwrap().parse().unwrap()
        };
        let mac = serde_json::from_value(document["network"]["guest_mac"].clone());
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (address("v4", "guest"), address("v6", "guest"))
        else {
            panic!("{document}");
        };
        Link { mac: mac.unwrap(), v4, v6, gateway: address("v4", "gateway") }
    }

    /// The guest makes attempts to reach somebody, as `msb-test-guest call` takes them; what it
    /// says of each.
    #[track_caller]
    pub(crate) fn call<S: AsRef<str>>(&self, attempts: &[S]) -> Vec<String> {
        let lines: String =
            attempts.iter().map(|attempt| format!("{}\n", attempt.as_ref())).collect();
        let call = ["exec", "-i", "x", "--", "/guest", "call"];
        let said = self.run(call, lines.as_bytes()).done();
        said.lines().map(str::to_owned).collect()
    }

    /// The guest's root sends frames, all of them so many times.
    #[track_caller]
    pub(crate) fn send(&self, frames: &[Vec<u8>], times: u16) {
        self.sending(frames, (times, None)).join().unwrap().done();
    }

    /// Begins to do so. The number of the round stands at a place of each frame, if one is given.
    pub(crate) fn sending(
        &self,
        frames: &[Vec<u8>],
        (times, place): (u16, Option<usize>),
    ) -> JoinHandle<Outcome> {
        let framed: Vec<u8> = frames
            .iter()
            .flat_map(|frame| [&(frame.len() as u16).to_be_bytes()[..], frame].concat())
            .collect();
        let send = ["exec", "-i", "x", "--", "/guest", "send-frames", "eth0"];
        let mut command = self.msb(send);
        command.arg(times.to_string());
        command.args(place.map(|place| place.to_string()));
        std::thread::spawn(move || command::run(command, &framed))
    }

    /// The lines of net.log, but for those of the last attempts of [`Internet::log_from`].
    pub(crate) fn log(&self) -> Vec<Value> {
        let mut events = self.whole_log();
        events.retain(|event| !is_last(event));
        events
    }

    fn whole_log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        // A line whose end is not written yet is for later.
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        let lines = text[..end].lines();
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.home.state().join("sandboxes/x/net.log")
    }

    /// The lines of net.log from number `from` on, when all that the guest has done by now is in
    /// there: it makes one more attempt, and the log has an order.
    #[track_caller]
    pub(crate) fn log_from(&self, from: usize) -> Vec<Value> {
        let begins = |event: &Value| is_last(event) && event["type"] != "close";
        let count = |events: &[Value]| events.iter().filter(|event| begins(event)).count();
        let before = count(&self.whole_log());
        // Once, but for a log that has no room after a flood.
        wait_until("the last attempt is in the log", || {
            self.call(&[format!("tcp {LAST}:9")]);
            count(&self.whole_log()) > before
        });
        let mut events = self.whole_log();
        events.truncate(events.iter().rposition(begins).unwrap());
        events.retain(|event| !is_last(event));
        events.split_off(from)
    }

    /// Returns the attempts that arrived, in their order, without the last ones of
    /// [`Internet::log_from`].
    pub(crate) fn heard(&self) -> Vec<String> {
        let mut server = self.server.borrow_mut();
        server.write("\n");
        let heard: Vec<String> = serde_json::from_str(&server.read_until("\n")).unwrap();
        heard.into_iter().filter(|line| !line.contains(LAST)).collect()
    }

    /// Returns the verdicts of `msb net explain` on cases, with the policy of the sandbox.
    #[track_caller]
    pub(crate) fn explain(&self, cases: &[Value]) -> Vec<Value> {
        let lines: String = cases.iter().map(|case| format!("{case}\n")).collect();
        let explain = "net explain --sandbox x --lines --format json";
        let said = self.run(explain.split(' '), lines.as_bytes()).done();
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn is_last(event: &Value) -> bool {
    event["remote"].as_str().is_some_and(|remote| remote.contains(LAST))
}

impl Drop for Internet {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.run(["stop", "--force", "--quiet", "x"], b"").done();
            // Its process knows the home, which is about to be looked at for such.
            let mut server = self.server.borrow_mut();
            server.stdin.take();
        }
    }
}
