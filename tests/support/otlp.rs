//! Exports, and those who receive them.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Home, Running, stage};

/// A line, or a document.
pub(crate) fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A port that nobody listens at.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A receiver of OTLP; see support/otlp_receiver.py. It prints what it gets.
pub(crate) struct Receiver {
    pub(crate) port: u16,
    requests: Arc<Mutex<Vec<Value>>>,
    troubled: Arc<Mutex<Vec<Value>>>,
    _running: Running,
}

impl Receiver {
    /// At a port; 0 is any. `protocol`: http or grpc.
    pub(crate) fn start(protocol: &str, port: u16) -> Receiver {
        Receiver::with(protocol, port, &[])
    }

    /// The same, with more arguments.
    pub(crate) fn with(protocol: &str, port: u16, more: &[&str]) -> Receiver {
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-c", include_str!("otlp_receiver.py"), protocol])
            .arg(port.to_string())
            .args(more)
            .env("PYTHONPATH", stage("metrics/python"));
        let mut running = Running::start(command);
        let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
        let port = parse(&lines.next().unwrap().unwrap()).as_u64().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let troubled = Arc::new(Mutex::new(Vec::new()));
        let (taken, not_taken) = (Arc::clone(&requests), Arc::clone(&troubled));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let request = parse(&line);
                let of = if request["trouble"].is_null() { &taken } else { &not_taken };
                of.lock().unwrap().push(request);
            }
        });
        Receiver { port: port as u16, requests, troubled, _running: running }
    }

    /// Requests that had a trouble, so far.
    pub(crate) fn troubled(&self) -> Vec<Value> {
        self.troubled.lock().unwrap().clone()
    }

    /// Returns the requests that were accepted so far.
    pub(crate) fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap().clone()
    }

    /// All points of all requests.
    pub(crate) fn points(&self) -> Vec<Value> {
        let requests = self.requests();
        let all = requests.iter().flat_map(|request| request["points"].as_array().unwrap().clone());
        all.collect()
    }

    /// The values of a metric, in the order of their times.
    pub(crate) fn values(&self, name: &str) -> Vec<Value> {
        let mut points = self.points();
        points.retain(|point| point["name"] == name);
        points.sort_by_key(|point| point["time"].as_u64());
        points
    }

    /// The sandboxes that have points of a metric.
    pub(crate) fn sandboxes(&self, name: &str) -> BTreeSet<String> {
        let points = self.values(name);
        let names = points.iter().map(|point| &point["attributes"]["sandbox.name"]);
        names.filter_map(|name| Some(name.as_str()?.to_owned())).collect()
    }

    /// The last value of a counter of the exporter's own.
    pub(crate) fn last(&self, name: &str) -> u64 {
        let points = self.values(name);
        points.last().and_then(|point| point["value"].as_u64()).unwrap()
    }
}

/// A program that runs along, and what it says on standard error.
pub(crate) struct Along {
    pub(crate) running: Running,
    log: PathBuf,
}

impl Along {
    /// `msb-metrics` with arguments.
    pub(crate) fn start(home: &Home, args: &[&str]) -> Along {
        let mut command = home.msb(["metrics"]);
        command.args(args);
        Along::of(home, command)
    }

    /// A command that is ready to be started.
    pub(crate) fn of(home: &Home, mut command: Command) -> Along {
        let log = home.directory.join("said");
        let file = std::fs::File::create(&log).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(file);
        Along { running: Running::start_as_is(command), log }
    }

    /// Returns its log so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it as a service manager does; it ends well. Gives what it said.
    pub(crate) fn stop(self) -> String {
        kill_process(Pid::from_raw(self.running.pid()).unwrap(), Signal::TERM).unwrap();
        self.finish()
    }

    /// Closes its input, and waits for its end.
    pub(crate) fn finish(self) -> String {
        let outcome = self.running.finish();
        let said = std::fs::read_to_string(&self.log).unwrap();
        assert_eq!(outcome.code, 0, "{said}");
        said
    }
}

/// `msb-metrics otel`.
pub(crate) fn otel(home: &Home, endpoint: &str, more: &[&str]) -> Along {
    Along::start(home, &[&["otel", "--endpoint", endpoint], more].concat())
}
