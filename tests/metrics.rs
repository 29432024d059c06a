//! What sandboxes cost: shown, exported to receivers that others have written, and compared with known work.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Home, Request, Running, Server, answer, stage, wait_until};

/// Names, kinds, units and types of the reference's metrics; the ninth and later ones are ours.
const NAMES: [(&str, &str, &str, &str); 6] = [
    ("microsandbox.cpu.utilization", "gauge", "1", "as_double"),
    ("microsandbox.memory.usage", "gauge", "By", "as_int"),
    ("microsandbox.memory.limit", "gauge", "By", "as_int"),
    ("microsandbox.disk.bytes_read", "gauge", "By", "as_int"),
    ("microsandbox.disk.bytes_written", "gauge", "By", "as_int"),
    ("microsandbox.uptime", "gauge", "s", "as_double"),
];

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A sandbox that does nothing, with samples often enough for a test.
fn start(home: &Home, name: &str, more: &[&str]) {
    let mut args = vec!["run", "--detach", "--name", name];
    args.extend(more);
    args.extend(["busybox:test", "--", "sleep", "100000"]);
    home.run(args).done();
}

fn remove(home: &Home, names: &[&str]) {
    let mut args = vec!["rm", "--force"];
    args.extend(names);
    home.run(args).done();
}

/// `msb metrics NAME --format json`.
fn figures(home: &Home, name: &str) -> Value {
    parse(&home.run(["metrics", name, "--format", "json"]).done())
}

/// The figures of a sandbox whose guest has spoken after now, twice: what happened before is in them.
fn fresh_figures(home: &Home, name: &str) -> Value {
    // Each sample costs some, so each has another number of them.
    let mut seen = BTreeSet::new();
    let mut last = Value::Null;
    wait_until("two more samples", || {
        last = figures(home, name);
        seen.insert(last["wakeups"].as_u64().unwrap_or(0));
        seen.len() > 3
    });
    last
}

/// A receiver of OTLP; see support/otlp_receiver.py. It prints what it gets.
struct Receiver {
    port: u16,
    requests: Arc<Mutex<Vec<Value>>>,
    _running: Running,
}

impl Receiver {
    fn start(protocol: &str, port: u16) -> Receiver {
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-c", include_str!("support/otlp_receiver.py"), protocol])
            .arg(port.to_string())
            .env("PYTHONPATH", stage("metrics/python"));
        let mut running = Running::start(command);
        let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
        let port = parse(&lines.next().unwrap().unwrap()).as_u64().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&requests);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                collected.lock().unwrap().push(parse(&line));
            }
        });
        Receiver {
            port: port as u16,
            requests,
            _running: running,
        }
    }

    fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap().clone()
    }

    fn points(&self) -> Vec<Value> {
        let requests = self.requests();
        let all = requests
            .iter()
            .flat_map(|request| request["points"].as_array().unwrap().clone());
        all.collect()
    }

    /// The values of a metric, in the order of their times.
    fn values(&self, name: &str) -> Vec<Value> {
        let mut points = self.points();
        points.retain(|point| point["name"] == name);
        points.sort_by_key(|point| point["time"].as_u64());
        points
    }
}

/// A program that runs along, and what it says on standard error.
struct Along {
    running: Running,
    log: PathBuf,
}

impl Along {
    /// `msb-metrics` with arguments.
    fn start(home: &Home, args: &[&str]) -> Along {
        let mut command = home.msb(["metrics"]);
        let log = home.folder.join("said");
        let file = std::fs::File::create(&log).unwrap();
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(file);
        Along {
            running: Running::start_as_is(command),
            log,
        }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it as a service manager does; it ends well. Gives what it said.
    fn stop(self) -> String {
        kill_process(Pid::from_raw(self.running.pid()).unwrap(), Signal::TERM).unwrap();
        self.finish()
    }

    /// Closes its input, and waits for its end.
    fn finish(self) -> String {
        let outcome = self.running.finish();
        let said = std::fs::read_to_string(&self.log).unwrap();
        assert_eq!(outcome.code, 0, "{said}");
        said
    }
}

/// `msb-metrics otel`.
fn otel(home: &Home, endpoint: &str, more: &[&str]) -> Along {
    Along::start(home, &[&["otel", "--endpoint", endpoint], more].concat())
}

/// Lines of `msb-metrics jsonl`: so many collections, a second apart, of one sandbox.
fn lines(count: u64) -> String {
    let line = |second: u64| {
        let timestamp = format!("2026-11-23T14:00:{second:02}Z");
        let sample = json!({
            "type": "sample", "name": "web", "timestamp": timestamp, "memory_bytes": 1000 + second,
            "id": 5, "run_id": 6, "started_at": "2026-11-23T13:00:00Z", "labels": {"team": "ml", "secret": "x"},
        });
        let end = json!({"type": "collected", "timestamp": timestamp, "sandboxes": 1});
        format!("{sample}\n{end}\n")
    };
    (0..count).map(line).collect()
}

/// A port that nobody listens at.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn where_there_is_no_state_nothing_is_made_and_nothing_is_shown() {
    let home = Home::new();
    home.run(["metrics"]).is(0, "", "no running sandboxes\n");
    home.run(["metrics", "--format", "json"]).is(0, "[]\n", "");
    let line = home.run(["metrics", "jsonl", "--count", "1"]).done();
    assert_eq!(parse(&line)["sandboxes"], 0);
    home.run(["metrics", "nope"]).is(
        3,
        "",
        "msb-metrics: error: there is no sandbox 'nope'\nmsb-metrics: hint: `msb ls` lists them\n",
    );
    assert!(!home.state().exists());
}

#[test]
fn three_sandboxes_are_seen_by_receivers_that_others_have_written() {
    let home = Home::with_busybox();
    let names = ["a", "b", "c"];
    for name in names {
        let label = format!("name.of/it={name}");
        let mut more = vec!["--label", &label, "--label", "team=ml"];
        more.extend(["--metrics-sample-interval", "500ms"]);
        if name == "c" {
            more.extend(["--net", "none"]);
        }
        start(&home, name, &more);
    }
    wait_until("figures of all guests", || {
        names
            .iter()
            .all(|name| figures(&home, name)["processes"].is_u64())
    });
    shown(&home);
    for protocol in ["http", "grpc"] {
        for compression in ["none", "gzip"] {
            exported(&home, protocol, compression);
        }
    }
    exported_to_victoria_metrics(&home);
    scraped(&home);
    remove(&home, &names);
}

fn shown(home: &Home) {
    let table = home.run(["metrics", "--sort", "memory"]).done();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.starts_with("NAME "), "{table}");
    let array = parse(
        &home
            .run(["metrics", "--format", "json", "--label", "name.of/it=b"])
            .done(),
    );
    let [one] = &array.as_array().unwrap()[..] else {
        panic!("{array}");
    };
    assert_eq!(
        (&one["name"], &one["labels"]["purpose"]),
        (&json!("b"), &json!("test"))
    );
    assert!(one["memory_bytes"].as_u64().unwrap() > 1 << 20);
    assert_eq!(one["memory_limit_bytes"], 512 << 20);
    assert!(one["net_open"].is_u64(), "{one}");
    // A sandbox without a network has no figures of one: missing, and not zero.
    let without = figures(home, "c");
    for field in ["net_rx_bytes", "net_connections", "net_open"] {
        assert!(without[field].is_null(), "{field}: {without}");
    }
    let mut watch = home.start(["metrics", "a", "--watch", "--format", "json"]);
    for _ in 0..2 {
        let sample = parse(&watch.read_until("\n"));
        assert_eq!(
            (&sample["type"], &sample["name"]),
            (&json!("sample"), &json!("a"))
        );
        assert_eq!(parse(&watch.read_until("\n"))["type"], "collected");
    }
    kill_process(Pid::from_raw(watch.pid()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(watch.finish().code, 0);
}

fn exported(home: &Home, protocol: &str, compression: &str) {
    let receiver = Receiver::start(protocol, 0);
    // The path is used as it is, whatever a standard one would be.
    let path = if protocol == "http" {
        "/some/where?x=1"
    } else {
        ""
    };
    let endpoint = format!("http://127.0.0.1:{}{path}", receiver.port);
    let args = [
        ["--protocol", protocol],
        ["--compression", compression],
        ["--header", "X-Tenant=a=b"],
        ["--resource", "service.name=mine"],
        ["--exclude-label-key", "team"],
        ["--flush-interval", "500ms"],
    ];
    let mut args = args.concat();
    args.push("--emit-run-id");
    let exporting = otel(home, &endpoint, &args);
    wait_until("three collections", || receiver.requests().len() > 2);
    exporting.stop();
    let request = &receiver.requests()[0];
    assert_eq!(request["headers"]["x-tenant"], "a=b");
    if protocol == "http" {
        assert_eq!(request["path"], path);
        let encoding = request["headers"]["content-encoding"].as_str();
        assert_eq!(encoding.unwrap_or("none"), compression);
    }
    for (name, kind, unit, class) in NAMES {
        let points = receiver.values(name);
        let sandboxes: BTreeSet<&str> = points
            .iter()
            .map(|point| point["attributes"]["sandbox.name"].as_str().unwrap())
            .collect();
        assert_eq!(sandboxes, BTreeSet::from(["a", "b", "c"]), "{name}");
        for point in &points {
            assert_eq!(point["kind"], kind, "{point}");
            assert_eq!(point["unit"], unit, "{point}");
            assert_eq!(point["type"], class, "{point}");
            let attributes = &point["attributes"];
            assert_eq!(attributes["name.of/it"], attributes["sandbox.name"]);
            assert_eq!(attributes["purpose"], "test", "the image's label");
            assert!(attributes["sandbox.id"].is_u64() && attributes["sandbox.run_id"].is_u64());
            assert!(attributes["team"].is_null() && attributes["sandbox.pid"].is_null());
            assert_eq!(point["resource"]["service.name"], "mine");
            assert_eq!(point["scope"], "microsandbox-metrics-collector");
        }
    }
    // What a sandbox does not have is not exported.
    for name in [
        "microsandbox.network.bytes_received",
        "microsandbox.network.bytes_sent",
    ] {
        let points = receiver.values(name);
        let with = |name| {
            points
                .iter()
                .any(|p| p["attributes"]["sandbox.name"] == name)
        };
        assert_eq!(
            [with("a"), with("b"), with("c")],
            [true, true, false],
            "{name}"
        );
    }
    // Counters have the start of the sandbox, and never fall.
    let mut last = BTreeMap::new();
    for point in receiver.values("microsandbox.cpu.time") {
        assert_eq!(
            (&point["monotonic"], &point["temporality"]),
            (&json!(true), &json!(2))
        );
        assert!(point["start"].as_u64().unwrap() < point["time"].as_u64().unwrap());
        let name = point["attributes"]["sandbox.name"]
            .as_str()
            .unwrap()
            .to_owned();
        let value = point["value"].as_f64().unwrap();
        let before = last.insert(name, value).unwrap_or(0.0);
        assert!(value >= before && value > 0.0);
    }
}

fn http_get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}

fn exported_to_victoria_metrics(home: &Home) {
    let port = free_port();
    let mut command = home.program(stage("metrics/victoria-metrics"));
    command
        .arg(format!("-httpListenAddr=127.0.0.1:{port}"))
        .arg(format!(
            "-storageDataPath={}",
            home.folder.join("vm").display()
        ))
        .args(["-opentelemetry.usePrometheusNaming", "-loggerLevel=ERROR"]);
    let database = Running::start(command);
    wait_until("VictoriaMetrics", || http_get(port, "/health").is_some());
    let endpoint = format!("http://127.0.0.1:{port}/opentelemetry/v1/metrics");
    let args = [
        "--protocol",
        "http",
        "--compression",
        "gzip",
        "--flush-interval",
        "300ms",
    ];
    let exporting = otel(home, &endpoint, &args);
    let mut found = String::new();
    wait_until("series of all sandboxes", || {
        http_get(port, "/internal/force_flush");
        let path = "/api/v1/export?match[]=microsandbox_cpu_time_seconds_total";
        found = http_get(port, path).unwrap_or_default();
        found.lines().count() == 3
    });
    let series = parse(found.lines().next().unwrap());
    assert_eq!(series["metric"]["team"], "ml", "{series}");
    exporting.stop();
    drop(database);
}

fn scraped(home: &Home) {
    let (ours, theirs) = (free_port(), free_port());
    let listen = format!("127.0.0.1:{ours}");
    let serving = Along::start(home, &["prom", "--listen", &listen]);
    let config = home.folder.join("prometheus.yml");
    let scrape = format!(
        "scrape_configs:\n- job_name: msb\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['{listen}']\n"
    );
    std::fs::write(&config, scrape).unwrap();
    let mut command = home.program(stage("metrics/prometheus"));
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            home.folder.join("tsdb").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{theirs}"))
        .arg("--log.level=error");
    let prometheus = Running::start(command);
    let query = "/api/v1/query?query=microsandbox_memory_usage_bytes";
    let mut found = Value::Null;
    wait_until("Prometheus to have scraped three sandboxes", || {
        let answer = http_get(theirs, query).unwrap_or_default();
        found = serde_json::from_str(&answer).unwrap_or_default();
        found["data"]["result"]
            .as_array()
            .is_some_and(|all| all.len() == 3)
    });
    let labels = &found["data"]["result"][0]["metric"];
    assert_eq!(labels["label_name_of_it"], labels["name"]);
    // What its own parser thinks of the kinds.
    let kinds = parse(
        &http_get(
            theirs,
            "/api/v1/metadata?metric=microsandbox_cpu_seconds_total",
        )
        .unwrap(),
    );
    assert_eq!(
        kinds["data"]["microsandbox_cpu_seconds_total"][0]["type"],
        "counter"
    );
    drop(prometheus);
    assert!(http_get(ours, "/nowhere").unwrap().contains("/metrics"));
    serving.stop();
    let file = home.folder.join("msb.prom");
    let path = file.to_str().unwrap();
    let args = ["prom", "--collect-interval", "200ms", "--textfile", path];
    let writing = Along::start(home, &args);
    wait_until("the file", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("microsandbox_sandboxes 3"))
    });
    writing.stop();
    assert!(!file.exists(), "it would look alive");
}

#[test]
fn a_sandbox_without_samples_says_so_and_one_that_is_dead_never_looks_alive() {
    let home = Home::with_busybox();
    start(&home, "off", &["--disable-metrics-sample"]);
    home.run(["metrics", "off"]).is(
        4,
        "",
        "msb-metrics: error: no samples are taken of the sandbox 'off'\n\
         msb-metrics: hint: turn them on for its next start: msb modify off --metrics-sample-interval 10s\n",
    );
    let mut coded = home.msb(["metrics", "off"]);
    coded.env("MSB_ERRORS", "json");
    let outcome = Running::start(coded).finish();
    assert_eq!(
        parse(std::str::from_utf8(&outcome.stderr).unwrap())["code"],
        "MetricsDisabled"
    );
    home.run(["metrics"]).is(0, "", "no running sandboxes\n");
    home.run(["modify", "off", "--metrics-sample-interval", "300ms"])
        .done();
    home.run(["restart", "off"]).done();
    wait_until("figures", || figures(&home, "off")["processes"].is_u64());
    assert_eq!(figures(&home, "off")["sample_interval_ms"], 300);
    let first = figures(&home, "off");
    // Killed with all that is its own: the file stays, and counts no more.
    let samples = home.state().join("run/off/samples");
    let before = std::fs::read(&samples).unwrap();
    for process in home.processes() {
        process.signal(Signal::KILL);
    }
    wait_until("the end", || home.sandboxes()[0].1 == "Crashed");
    assert_eq!(std::fs::read(&samples).unwrap().len(), before.len());
    home.run(["metrics", "--format", "json"]).is(0, "[]\n", "");
    assert_eq!(home.run(["metrics", "off"]).code, 4);
    // The next life begins to count anew, and says when.
    home.run(["start", "off"]).done();
    let second = figures(&home, "off");
    assert_eq!(first["id"], second["id"]);
    assert!(second["run_id"].as_u64() > first["run_id"].as_u64());
    remove(&home, &["off"]);
}

#[test]
fn a_hostile_sample_file_harms_neither_its_sandbox_nor_a_reader() {
    let home = Home::with_busybox();
    start(&home, "web", &["--metrics-sample-interval", "200ms"]);
    wait_until("figures", || figures(&home, "web")["processes"].is_u64());
    let path = home.state().join("run/web/samples");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    // What is broken into msb-net has a descriptor of the file, and could do this.
    file.set_len(0).unwrap();
    let outcome = home.run(["metrics"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    wait_until("a file that is whole again", || {
        file.set_len(8192).unwrap();
        let outcome = home.run(["metrics", "web", "--format", "json"]);
        outcome.code == 0 && parse(&outcome.done())["processes"].is_u64()
    });
    home.run(["exec", "web", "--", "true"]).done();
    // Others, that were never made by a supervisor.
    let run = home.state().join("run");
    for (name, target) in [("link", "/dev/zero"), ("loop", "samples")] {
        std::fs::create_dir(run.join(name)).unwrap();
        std::os::unix::fs::symlink(target, run.join(name).join("samples")).unwrap();
    }
    std::fs::create_dir_all(run.join("folder/samples")).unwrap();
    std::fs::write(run.join("a file"), "x").unwrap();
    let outcome = home.run(["metrics", "--format", "json"]);
    let rows = parse(std::str::from_utf8(&outcome.stdout).unwrap());
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    assert!(
        String::from_utf8(outcome.stderr)
            .unwrap()
            .contains("link/samples'")
    );
    remove(&home, &["web"]);
}

/// Within three of a hundred.
#[track_caller]
fn agrees(what: &str, found: f64, known: f64) {
    assert!(
        (found - known).abs() <= 0.03 * known,
        "{what}: {found}, known to be {known}"
    );
}

fn number(figures: &Value, field: &str) -> f64 {
    figures[field]
        .as_f64()
        .unwrap_or_else(|| panic!("{field}: {figures}"))
}

/// The host's own count of the threads that are virtual processors, in seconds.
fn vcpu_seconds(pid: u64) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let seconds = tasks.map(|task| {
        let task = task.unwrap().path();
        let name = std::fs::read_to_string(task.join("comm")).unwrap();
        if !name.starts_with("CPU ") && !name.starts_with("fc_vcpu") {
            return 0.0;
        }
        let text = std::fs::read_to_string(task.join("schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
    });
    seconds.sum()
}

#[test]
fn figures_agree_with_known_work() {
    let home = Home::with_busybox();
    start(&home, "web", &["--metrics-sample-interval", "250ms"]);
    wait_until("figures", || figures(&home, "web")["processes"].is_u64());
    let shell = |script: &str| {
        let outcome = home.run(["exec", "web", "--", "sh", "-c", script]);
        String::from_utf8(outcome.stdout).unwrap() + &String::from_utf8(outcome.stderr).unwrap()
    };

    // CPU: what a burner says of itself, by times(2), and what the host says of the threads.
    let before = fresh_figures(&home, "web");
    let times = shell(
        "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; cat /proc/self/stat /proc/$$/stat",
    );
    let of = times
        .lines()
        .last()
        .unwrap()
        .rsplit_once(") ")
        .unwrap()
        .1
        .to_owned();
    let ticks: Vec<f64> = of
        .split(' ')
        .map(|word| word.parse().unwrap_or(0.0))
        .collect();
    let burned = (ticks[11] + ticks[12]) / 100.0;
    let after = fresh_figures(&home, "web");
    let pid = after["pid"].as_u64().unwrap();
    agrees(
        "the host's view",
        number(&after, "cpu_secs"),
        vcpu_seconds(pid),
    );
    let idle = fresh_figures(&home, "web");
    // What the guest does besides, in the same time, is not the burner's.
    let rate = (number(&idle, "guest_cpu_secs") - number(&after, "guest_cpu_secs"))
        / (number(&idle, "uptime_secs") - number(&after, "uptime_secs"));
    let elapsed = number(&after, "uptime_secs") - number(&before, "uptime_secs");
    let guest = number(&after, "guest_cpu_secs") - number(&before, "guest_cpu_secs");
    agrees("CPU time in the guest", guest - rate * elapsed, burned);

    // Disk: bytes that dd wrote, and read again past all caches.
    let before = fresh_figures(&home, "web");
    shell("dd if=/dev/zero of=/root/file bs=1M count=64 conv=fsync && sync");
    let written = fresh_figures(&home, "web");
    let moved = number(&written, "disk_write_bytes") - number(&before, "disk_write_bytes");
    agrees("bytes written", moved, 64.0 * 1048576.0);
    let used = number(&written, "disk_used_bytes") - number(&before, "disk_used_bytes");
    agrees("bytes used", used, 64.0 * 1048576.0);
    shell("echo 3 >/proc/sys/vm/drop_caches; dd if=/root/file of=/dev/null bs=1M");
    let read = fresh_figures(&home, "web");
    let moved = number(&read, "disk_read_bytes") - number(&written, "disk_read_bytes");
    agrees("bytes read", moved, 64.0 * 1048576.0);

    // Memory: a file in memory is held until it is removed.
    let before = fresh_figures(&home, "web");
    shell("dd if=/dev/zero of=/dev/shm/file bs=1M count=128");
    let held = fresh_figures(&home, "web");
    let more = number(&held, "memory_bytes") - number(&before, "memory_bytes");
    agrees("memory held", more, 128.0 * 1048576.0);
    remove(&home, &["web"]);
}

#[test]
fn collections_that_waited_through_an_outage_arrive_as_so_many_points() {
    for protocol in ["http", "grpc"] {
        let home = Home::new();
        let port = free_port();
        let endpoint = format!("http://127.0.0.1:{port}/v1/metrics");
        let args = [
            "--stdin",
            "--protocol",
            protocol,
            "--flush-interval",
            "200ms",
        ];
        let mut exporting = otel(
            &home,
            &endpoint,
            &[&args[..], &["--exclude-label-key", "secret"]].concat(),
        );
        exporting.running.write(&lines(10));
        // Nobody listens.
        let waiting = "cannot export, 10 collections wait";
        wait_until("a try that fails", || exporting.said().contains(waiting));
        let receiver = Receiver::start(protocol, port);
        wait_until("all of them", || receiver.requests().len() >= 10);
        exporting.finish();
        let values = receiver.values("microsandbox.memory.usage");
        let found: Vec<u64> = values
            .iter()
            .map(|point| point["value"].as_u64().unwrap())
            .collect();
        assert_eq!(found, (1000..1010).collect::<Vec<u64>>());
        let times: BTreeSet<u64> = values
            .iter()
            .map(|point| point["time"].as_u64().unwrap())
            .collect();
        assert_eq!(times.len(), 10);
        assert!(
            values
                .iter()
                .all(|point| point["attributes"]["secret"].is_null())
        );
        assert!(
            values
                .iter()
                .all(|point| point["attributes"]["team"] == "ml")
        );
        let failures = receiver.values("microsandbox.collector.exports.failure");
        assert!(failures.last().unwrap()["value"].as_u64().unwrap() > 0);
    }
}

#[test]
fn receivers_that_refuse_stall_or_break_off_lose_nothing() {
    type Act = fn(&Request, &mut TcpStream);
    let troubles: [(&str, Act); 5] = [
        ("503", |_, stream| {
            answer(stream, "503 Busy", &[("Retry-After", "1")], b"later")
        }),
        ("429", |_, stream| {
            answer(stream, "429 Slow Down", &[("Retry-After", "1")], b"")
        }),
        ("302", |_, stream| {
            answer(
                stream,
                "302 Found",
                &[("Location", "http://127.0.0.1:1/")],
                b"",
            )
        }),
        ("the answer broke off", |_, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        }),
        ("it took too long", |_, _| {
            std::thread::sleep(std::time::Duration::from_secs(2))
        }),
    ];
    for (word, act) in troubles {
        let home = Home::new();
        let count = AtomicUsize::new(0);
        let server = Server::start(move |request, stream| {
            let length = request.header("content-length").unwrap().parse().unwrap();
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            if count.fetch_add(1, Ordering::Relaxed) == 0 {
                act(request, stream);
            } else {
                answer(stream, "200 OK", &[], b"");
            }
        });
        let endpoint = format!("http://{}/v1/metrics", server.host());
        let args = [
            "--stdin",
            "--protocol",
            "http",
            "--flush-interval",
            "100ms",
            "--export-timeout",
            "1s",
        ];
        let mut exporting = otel(&home, &endpoint, &args);
        exporting.running.write(&lines(3));
        // The one that failed, and each of the three.
        wait_until(word, || server.requests().len() >= 4);
        let stderr = exporting.finish();
        assert!(stderr.contains(word), "{word}: {stderr}");
        assert_eq!(server.requests().len(), 4, "{word}: {stderr}");
    }
}

#[test]
fn what_does_not_fit_into_the_buffer_is_counted_and_what_is_refused_for_good_does_not_stop_the_rest()
 {
    let home = Home::new();
    let port = free_port();
    let endpoint = format!("http://127.0.0.1:{port}/v1/metrics");
    let args = [
        ["--protocol", "http"],
        ["--collect-interval", "100ms"],
        ["--flush-interval", "100ms"],
        ["--max-buffered", "3"],
    ];
    let exporting = otel(&home, &endpoint, &args.concat());
    wait_until("a full buffer", || {
        exporting.said().contains("3 collections wait")
    });
    let again = exporting.said().lines().count();
    wait_until("more", || exporting.said().lines().count() > again);
    let receiver = Receiver::start("http", port);
    wait_until("an export", || !receiver.requests().is_empty());
    exporting.stop();
    let dropped = receiver.values("microsandbox.collector.collections.dropped");
    assert!(dropped.last().unwrap()["value"].as_u64().unwrap() > 0);

    let server =
        Server::start(|_, stream| answer(stream, "400 Bad Request", &[], b"no such tenant"));
    let endpoint = format!("http://{}/", server.host());
    let mut exporting = otel(&home, &endpoint, &["--stdin", "--protocol", "http"]);
    exporting.running.write(&lines(2));
    let stderr = exporting.finish();
    assert_eq!(server.requests().len(), 2);
    assert!(
        stderr.contains("refuses it: it answered with status 400: no such tenant"),
        "{stderr}"
    );
}

#[test]
fn a_collector_that_hangs_does_not_hold_up_the_end() {
    let home = Home::new();
    // Connections are taken by the kernel, and by nobody else.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    for protocol in ["http", "grpc"] {
        let args = [
            "--protocol",
            protocol,
            "--flush-interval",
            "100ms",
            "--export-timeout",
            "1s",
        ];
        let exporting = otel(&home, &endpoint, &args);
        wait_until("the begin", || exporting.said().contains("exporting to"));
        let stderr = exporting.stop();
        assert!(stderr.contains("not exported"), "{stderr}");
    }
}

#[test]
fn what_cannot_be_is_refused_at_the_start() {
    let home = Home::new();
    for (args, words) in [
        (&["otel"][..], "--endpoint"),
        (
            &["otel", "--endpoint", "nonsense", "--protocol", "http"],
            "is no address of HTTP",
        ),
        (&["otel", "--endpoint", "ftp://x"], "is no address of gRPC"),
        (
            &["otel", "--endpoint", "http://x", "--header", "a"],
            "KEY=VALUE",
        ),
        (
            &["otel", "--endpoint", "http://x", "--max-buffered", "0"],
            "a number from 1",
        ),
        (
            &[
                "otel",
                "--endpoint",
                "http://x",
                "--collect-interval",
                "1ms",
            ],
            "100ms at least",
        ),
        (&["prom"], "--listen"),
        (&["--watch", "--sort", "beauty"], "beauty"),
    ] {
        let outcome = home.run([&["metrics"], args].concat());
        let stderr = String::from_utf8(outcome.stderr).unwrap();
        assert_eq!(outcome.code, 2, "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
}
