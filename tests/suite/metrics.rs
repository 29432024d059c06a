//! Resource usage of sandboxes: shown, exported to receivers that others have written, and compared
//! with known work.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::otlp::{Along, Receiver, free_port, otel, parse};
use crate::support::{Home, Running, stage, wait_until};

/// Names, kinds, units and types of the metrics that every sandbox has. The first six are the
/// reference's.
const NAMES: [(&str, &str, &str, &str); 19] = [
    ("microsandbox.cpu.utilization", "gauge", "1", "as_double"),
    ("microsandbox.memory.usage", "gauge", "By", "as_int"),
    ("microsandbox.memory.limit", "gauge", "By", "as_int"),
    ("microsandbox.disk.bytes_read", "gauge", "By", "as_int"),
    ("microsandbox.disk.bytes_written", "gauge", "By", "as_int"),
    ("microsandbox.uptime", "gauge", "s", "as_double"),
    ("microsandbox.cpu.count", "gauge", "{cpu}", "as_int"),
    ("microsandbox.cpu.time", "sum", "s", "as_double"),
    ("microsandbox.guest.cpu.time", "sum", "s", "as_double"),
    ("microsandbox.host.cpu.time", "sum", "s", "as_double"),
    ("microsandbox.host.wakeups", "sum", "{wakeup}", "as_int"),
    ("microsandbox.memory.available", "gauge", "By", "as_int"),
    ("microsandbox.memory.resident", "gauge", "By", "as_int"),
    ("microsandbox.disk.size", "gauge", "By", "as_int"),
    ("microsandbox.disk.used", "gauge", "By", "as_int"),
    ("microsandbox.disk.allocated", "gauge", "By", "as_int"),
    ("microsandbox.processes", "gauge", "{process}", "as_int"),
    ("microsandbox.oom_kills", "sum", "{process}", "as_int"),
    // Debian's kernel accounts for pressure.
    ("microsandbox.pressure.time", "sum", "s", "as_double"),
];
/// The same, of sandboxes with a network. The first two are the reference's.
const NET_NAMES: [(&str, &str, &str, &str); 7] = [
    ("microsandbox.network.bytes_received", "gauge", "By", "as_int"),
    ("microsandbox.network.bytes_sent", "gauge", "By", "as_int"),
    ("microsandbox.network.packets_received", "sum", "{packet}", "as_int"),
    ("microsandbox.network.packets_sent", "sum", "{packet}", "as_int"),
    ("microsandbox.network.connections", "sum", "{connection}", "as_int"),
    ("microsandbox.network.denied", "sum", "{connection}", "as_int"),
    ("microsandbox.network.open", "gauge", "{connection}", "as_int"),
];

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
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

/// The figures of a sandbox whose guest has spoken after now, twice: what happened before is in
/// them.
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
        "msb metrics: error: there is no sandbox 'nope'\nmsb metrics: hint: `msb ls` lists them\n",
    );
    assert!(!home.state().exists());
}

#[test]
fn a_sandbox_shows_figures_of_its_guest_and_of_the_host() {
    let home = Home::with_busybox();
    start(&home, "web", &["--metrics-sample-interval", "500ms"]);
    wait_until("figures of the guest", || figures(&home, "web")["processes"].is_u64());
    let found = fresh_figures(&home, "web");
    for field in [
        "cpu_percent",
        "memory_bytes",
        "memory_limit_bytes",
        "memory_available_bytes",
        "memory_resident_bytes",
        "disk_read_bytes",
        "disk_write_bytes",
        "disk_size_bytes",
        "disk_used_bytes",
        "disk_allocated_bytes",
        "cpu_secs",
        "guest_cpu_secs",
        "host_cpu_secs",
        "uptime_secs",
        "wakeups",
        "processes",
        "pid",
    ] {
        assert!(number(&found, field) > 0.0, "{field}: {found}");
    }
    // Where the guest's kernel counts whom it killed there is a figure of it, and nowhere else.
    let counts = home.run(["exec", "web", "--", "grep", "-q", "^oom_kill ", "/proc/vmstat"]);
    let oom_kills = found["oom_kills"].as_u64();
    assert_eq!(oom_kills, (counts.code == 0).then_some(0), "{found}");
    assert!(number(&found, "cpu_secs") <= number(&found, "host_cpu_secs"));
    assert!(number(&found, "disk_used_bytes") < number(&found, "disk_size_bytes"));
    // Where the guest's kernel accounts for pressure there are figures of it, and nowhere else.
    let accounts = home.run(["exec", "web", "--", "test", "-e", "/proc/pressure/io"]);
    for field in [
        "pressure_cpu_some_secs",
        "pressure_memory_some_secs",
        "pressure_memory_full_secs",
        "pressure_io_some_secs",
        "pressure_io_full_secs",
    ] {
        assert_eq!(found[field].is_f64(), accounts.code == 0, "{field}: {found}");
    }
    remove(&home, &["web"]);
}

#[test]
fn a_lack_of_memory_and_an_end_are_told_to_receivers() {
    let home = Home::with_busybox();
    start(&home, "web", &["--memory", "192M"]);
    let program = stage("msb-test-guest");
    let receiver = Receiver::start("grpc", 0);
    let endpoint = format!("http://127.0.0.1:{}", receiver.port);
    let often = ["--collect-interval", "200ms", "--flush-interval", "200ms"];
    let exporting = otel(&home, &endpoint, &often);
    let oom_kills = || {
        let points = receiver.values("microsandbox.oom_kills");
        points.last().and_then(|point| point["value"].as_u64())
    };
    wait_until("figures", || oom_kills() == Some(0));
    home.run(["cp", program.to_str().unwrap(), "web:/holder"]).done();
    let outcome = home.run(["exec", "web", "--", "/holder", "hold", "1000"]);
    assert_eq!(outcome.code, 137, "{outcome:?}");
    wait_until("one process that was killed", || oom_kills() == Some(1));
    home.machine().signal(Signal::KILL);
    let mut exits = Vec::new();
    wait_until("the end of the machine", || {
        exits = receiver.values("microsandbox.exits");
        !exits.is_empty()
    });
    assert_eq!(home.sandboxes(), [("web".to_owned(), "Crashed".to_owned())]);
    let reason = &home.list()[0]["reason"];
    assert_eq!(exits[0]["attributes"], json!({"sandbox.name": "web", "reason": reason}));
    assert_eq!((&exits[0]["value"], &exits[0]["kind"]), (&json!(1), &json!("sum")));
    // What is dead is not exported any more.
    let has_figures = |request: &Value| {
        let points = request["points"].as_array().unwrap();
        points.iter().any(|point| point["name"] == "microsandbox.uptime")
    };
    wait_until("requests without figures", || {
        let requests = receiver.requests();
        requests.iter().rev().take(3).all(|request| !has_figures(request))
    });
    exporting.stop();
    assert!(!has_figures(receiver.requests().last().unwrap()));
    remove(&home, &["web"]);
}

#[test]
fn the_unit_of_systemd_is_what_systemd_wants() {
    let home = Home::new();
    let unit = stage("prefix/share/systemd/user/msb-metrics.service");
    let text = std::fs::read_to_string(&unit).unwrap();
    let program = stage("prefix/bin/msb-metrics");
    let begin = format!("\nExecStart=\"{}\" otel ", program.display());
    assert!(text.contains(&begin), "{text}");
    let script =
        format!("XDG_RUNTIME_DIR=$PWD systemd-analyze verify --user --man=no '{}'", unit.display());
    home.shell(&script).is(0, "", "");
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
        names.iter().all(|name| figures(&home, name)["processes"].is_u64())
    });
    shown(&home);
    for protocol in ["http", "grpc"] {
        for compression in ["none", "gzip"] {
            exported(&home, protocol, compression);
        }
    }
    piped(&home);
    exported_to_victoria_metrics(&home);
    scraped(&home);
    remove(&home, &names);
}

fn shown(home: &Home) {
    let table = home.run(["metrics", "--sort", "memory"]).done();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.starts_with("NAME "), "{table}");
    let array = parse(&home.run(["metrics", "--format", "json", "--label", "name.of/it=b"]).done());
    let [one] = &array.as_array().unwrap()[..] else {
        panic!("{array}");
    };
    assert_eq!((&one["name"], &one["labels"]["purpose"]), (&json!("b"), &json!("test")));
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
        assert_eq!((&sample["type"], &sample["name"]), (&json!("sample"), &json!("a")));
        assert_eq!(parse(&watch.read_until("\n"))["type"], "collected");
    }
    kill_process(Pid::from_raw(watch.pid()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(watch.finish().code, 0);
}

fn exported(home: &Home, protocol: &str, compression: &str) {
    let receiver = Receiver::start(protocol, 0);
    // The path is used as it is, whatever a standard one would be.
    let path = if protocol == "http" { "/some/where?x=1" } else { "" };
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
    for metric in NAMES {
        has(&receiver, metric, &["a", "b", "c"]);
    }
    // What a sandbox does not have is not exported.
    for metric in NET_NAMES {
        has(&receiver, metric, &["a", "b"]);
    }
    let pressure = receiver.values("microsandbox.pressure.time");
    let pair = |point: &Value| {
        let text = |key: &str| point["attributes"][key].as_str().unwrap().to_owned();
        (text("resource"), text("stalled"))
    };
    let pairs: BTreeSet<(String, String)> = pressure.iter().map(pair).collect();
    assert_eq!(pairs.len(), 5, "{pairs:?}");
    counters_never_fall(&receiver);
}

/// A metric is what it should be, with all attributes and labels, for these sandboxes and no other.
fn has(receiver: &Receiver, (name, kind, unit, class): (&str, &str, &str, &str), of: &[&str]) {
    assert_eq!(receiver.sandboxes(name), set(of), "{name}");
    for point in &receiver.values(name) {
        let found = ["kind", "unit", "type", "scope"].map(|key| &point[key]);
        assert_eq!(found, [kind, unit, class, "microsandbox-metrics-collector"], "{point}");
        assert_eq!(point["resource"]["service.name"], "mine");
        let attributes = &point["attributes"];
        assert_eq!(attributes["name.of/it"], attributes["sandbox.name"]);
        assert_eq!(attributes["purpose"], "test", "the image's label");
        assert!(attributes["sandbox.id"].is_u64() && attributes["sandbox.run_id"].is_u64());
        assert!(attributes["team"].is_null() && attributes["sandbox.pid"].is_null());
    }
}

/// Counters have the start of the sandbox, and never fall.
fn counters_never_fall(receiver: &Receiver) {
    let mut last = BTreeMap::new();
    let counters = NAMES.iter().chain(&NET_NAMES).filter(|metric| metric.1 == "sum");
    for point in counters.flat_map(|(name, ..)| receiver.values(name)) {
        assert_eq!(
            (&point["monotonic"], &point["temporality"]),
            (&json!(true), &json!(2)),
            "{point}"
        );
        assert!(point["start"].as_u64().unwrap() < point["time"].as_u64().unwrap());
        let value = point["value"].as_f64().unwrap();
        let series = format!("{} {}", point["name"], point["attributes"]);
        let before = last.insert(series, value).unwrap_or(0.0);
        assert!(value >= before, "{before}, then {point}");
    }
}

/// Collector and exporter may be two processes, and a filter between them.
fn piped(home: &Home) {
    let receiver = Receiver::start("http", 0);
    let script = format!(
        "msb-metrics jsonl --count 2 --label name.of/it=b | tee lines |
            msb-metrics otel --stdin --no-labels --protocol http --endpoint http://127.0.0.1:{}",
        receiver.port
    );
    home.shell(&script).done();
    wait_until("two requests", || receiver.requests().len() == 2);
    let points = receiver.values("microsandbox.memory.usage");
    let lines = std::fs::read_to_string(home.directory.join("lines")).unwrap();
    let lines = lines.lines().map(parse);
    let of_lines: Vec<Value> = lines.map(|mut line| line["memory_bytes"].take()).collect();
    let [one, Value::Null, two, Value::Null] = &of_lines[..] else {
        panic!("{of_lines:?}");
    };
    assert_eq!([&points[0]["value"], &points[1]["value"]], [one, two]);
    let id = &points[0]["attributes"]["sandbox.id"];
    assert_eq!(points[0]["attributes"], json!({"sandbox.name": "b", "sandbox.id": id}));
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
        .arg(format!("-storageDataPath={}", home.directory.join("vm").display()))
        .args(["-opentelemetry.usePrometheusNaming", "-loggerLevel=ERROR"]);
    let database = Running::start(command);
    wait_until("VictoriaMetrics", || http_get(port, "/health").is_some());
    let endpoint = format!("http://127.0.0.1:{port}/opentelemetry/v1/metrics");
    let args = ["--protocol", "http", "--compression", "gzip", "--flush-interval", "300ms"];
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
    let config = home.directory.join("prometheus.yml");
    let scrape = format!(
        "scrape_configs:\n- job_name: msb\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['{listen}']\n"
    );
    std::fs::write(&config, scrape).unwrap();
    let mut command = home.program(stage("metrics/prometheus"));
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", home.directory.join("tsdb").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{theirs}"))
        .arg("--log.level=error");
    let prometheus = Running::start(command);
    let query = "/api/v1/query?query=microsandbox_memory_usage_bytes";
    let mut found = Value::Null;
    wait_until("Prometheus to have scraped three sandboxes", || {
        let answer = http_get(theirs, query).unwrap_or_default();
        found = serde_json::from_str(&answer).unwrap_or_default();
        found["data"]["result"].as_array().is_some_and(|all| all.len() == 3)
    });
    let labels = &found["data"]["result"][0]["metric"];
    assert_eq!(labels["label_name_of_it"], labels["name"]);
    // What its own parser thinks of the kinds.
    let kinds =
        parse(&http_get(theirs, "/api/v1/metadata?metric=microsandbox_cpu_seconds_total").unwrap());
    assert_eq!(kinds["data"]["microsandbox_cpu_seconds_total"][0]["type"], "counter");
    drop(prometheus);
    assert!(http_get(ours, "/nowhere").unwrap().contains("/metrics"));
    serving.stop();
    let file = home.directory.join("msb.prom");
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
        "msb metrics: error: metrics are off for the sandbox 'off'\n\
         msb metrics: hint: enable them from the next start: msb modify off --metrics-sample-interval 10s\n",
    );
    let mut coded = home.msb(["metrics", "off"]);
    coded.env("MSB_ERRORS", "json");
    let outcome = Running::start(coded).finish();
    assert_eq!(parse(std::str::from_utf8(&outcome.stderr).unwrap())["code"], "MetricsDisabled");
    home.run(["metrics"]).is(0, "", "no running sandboxes\n");
    home.run(["modify", "off", "--metrics-sample-interval", "300ms"]).done();
    home.run(["restart", "off"]).done();
    wait_until("figures", || figures(&home, "off")["processes"].is_u64());
    assert_eq!(figures(&home, "off")["sample_interval_ms"], 300);
    let first = figures(&home, "off");
    // Killed with all that is its own: the file stays, and counts no more.
    let samples = home.state().join("run/off/samples");
    let before = std::fs::read(&samples).unwrap();
    home.kill_all();
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
    // Without a network: msb-net maps its page, and would be the victim of what is done here in its
    // place.
    start(&home, "web", &["--metrics-sample-interval", "200ms", "--net", "none"]);
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
    std::fs::create_dir_all(run.join("directory/samples")).unwrap();
    std::fs::write(run.join("a file"), "x").unwrap();
    let outcome = home.run(["metrics", "--format", "json"]);
    let rows = parse(std::str::from_utf8(&outcome.stdout).unwrap());
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    assert!(String::from_utf8(outcome.stderr).unwrap().contains("link/samples'"));
    remove(&home, &["web"]);
}

/// Within three of a hundred.
#[track_caller]
fn agrees(what: &str, found: f64, known: f64) {
    assert!((found - known).abs() <= 0.03 * known, "{what}: {found}, known to be {known}");
}

fn number(figures: &Value, field: &str) -> f64 {
    figures[field].as_f64().unwrap_or_else(|| panic!("{field}: {figures}"))
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

/// Bytes that the guest sends, and gets: those of the frames, without their headers.
fn network_agrees(home: &Home) {
    const BYTES: u64 = 32 << 20;
    // Of a frame: Ethernet's, IPv4's and TCP's without options.
    const HEADERS: f64 = 14.0 + 20.0 + 20.0;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let taken = std::io::copy(&mut (&socket).take(BYTES), &mut std::io::sink()).unwrap();
        socket.write_all(&vec![7; BYTES as usize]).unwrap();
        taken
    });
    let before = fresh_figures(home, "web");
    let count = BYTES >> 20;
    let script = format!(
        "dd if=/dev/zero bs=1M count={count} | nc host.microsandbox.internal {port} | wc -c"
    );
    let outcome = home.run(["exec", "web", "--", "sh", "-c", &script]);
    let found = outcome.done();
    assert_eq!((host.join().unwrap(), found.trim()), (BYTES, "33554432"));
    let after = fresh_figures(home, "web");
    for way in ["tx", "rx"] {
        let more = |field: &str| number(&after, field) - number(&before, field);
        let headers = more(&format!("net_{way}_packets")) * HEADERS;
        let moved = more(&format!("net_{way}_bytes"));
        agrees(way, moved - headers, BYTES as f64);
    }
    let more = number(&after, "net_connections") - number(&before, "net_connections");
    assert_eq!(more, 1.0);
}

#[test]
fn figures_agree_with_known_work() {
    let home = Home::with_busybox();
    // A sample costs the guest a little time too: few of them, beside much work.
    let often = ["--metrics-sample-interval", "1s"];
    start(&home, "web", &[&often[..], &["--net", "host"]].concat());
    wait_until("figures", || figures(&home, "web")["processes"].is_u64());
    let shell = |script: &str| {
        let outcome = home.run(["exec", "web", "--", "sh", "-c", script]);
        String::from_utf8(outcome.stdout).unwrap() + &String::from_utf8(outcome.stderr).unwrap()
    };

    // CPU: what a burner says of itself, by getrusage(2), and what the host says of the threads.
    let program = stage("msb-test-guest");
    home.run(["cp", program.to_str().unwrap(), "web:/burner"]).done();
    let before = fresh_figures(&home, "web");
    let burned: f64 = shell("/burner burn 12").trim().parse().unwrap();
    let after = fresh_figures(&home, "web");
    let pid = after["pid"].as_u64().unwrap();
    agrees("the host's view", number(&after, "cpu_secs"), vcpu_seconds(pid));
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
    network_agrees(&home);
    remove(&home, &["web"]);
}
