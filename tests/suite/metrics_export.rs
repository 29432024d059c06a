//! Exporters whose collector is away, slow, wrong or false. There is no sandbox here: what is
//! exported are lines.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::otlp::{Receiver, free_port, otel};
use crate::support::{Home, Request, Server, answer, wait_until};

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

#[test]
fn collections_that_waited_through_an_outage_arrive_as_so_many_points() {
    for protocol in ["http", "grpc"] {
        let home = Home::new();
        let port = free_port();
        let endpoint = format!("http://127.0.0.1:{port}/v1/metrics");
        let args = ["--stdin", "--protocol", protocol, "--flush-interval", "200ms"];
        let mut exporting =
            otel(&home, &endpoint, &[&args[..], &["--exclude-label-key", "secret"]].concat());
        exporting.running.write(&lines(10));
        // Nobody listens.
        let waiting = "export failed, 10 collections queued";
        wait_until("a try that fails", || exporting.said().contains(waiting));
        let receiver = Receiver::start(protocol, port);
        wait_until("all of them", || receiver.requests().len() >= 10);
        exporting.finish();
        let values = receiver.values("microsandbox.memory.usage");
        let found: Vec<u64> = values.iter().map(|point| point["value"].as_u64().unwrap()).collect();
        assert_eq!(found, (1000..1010).collect::<Vec<u64>>());
        let times: BTreeSet<u64> =
            values.iter().map(|point| point["time"].as_u64().unwrap()).collect();
        assert_eq!(times.len(), 10);
        assert!(values.iter().all(|point| point["attributes"]["secret"].is_null()));
        assert!(values.iter().all(|point| point["attributes"]["team"] == "ml"));
        let failures = receiver.values("microsandbox.collector.exports.failure");
        assert!(failures.last().unwrap()["value"].as_u64().unwrap() > 0);
    }
}

#[test]
fn receivers_that_refuse_stall_or_break_off_lose_nothing() {
    type Act = fn(&Request, &mut TcpStream);
    let troubles: [(&str, Act); 5] = [
        ("503", |_, stream| answer(stream, "503 Busy", &[("Retry-After", "1")], b"later")),
        ("429", |_, stream| answer(stream, "429 Slow Down", &[("Retry-After", "1")], b"")),
        ("302", |_, stream| {
            answer(stream, "302 Found", &[("Location", "http://127.0.0.1:1/")], b"")
        }),
        ("incomplete response", |_, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        }),
        ("timed out", |_, _| std::thread::sleep(std::time::Duration::from_secs(5))),
    ];
    for (word, act) in troubles {
        let home = Home::new();
        let times = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&times);
        let server = Server::start(move |request, stream| {
            let length = request.header("content-length").unwrap().parse().unwrap();
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let first = {
                let mut seen = seen.lock().unwrap();
                seen.push(Instant::now());
                seen.len() == 1
            };
            if first {
                act(request, stream);
            } else {
                answer(stream, "200 OK", &[], b"");
            }
        });
        let endpoint = format!("http://{}/v1/metrics", server.host());
        let mut exporting = otel(&home, &endpoint, &[&["--protocol", "http"], &HASTE[..]].concat());
        exporting.running.write(&lines(3));
        // The one that failed, and each of the three.
        wait_until(word, || server.requests().len() >= 4);
        let stderr = exporting.finish();
        assert!(stderr.contains(word), "{word}: {stderr}");
        assert_eq!(server.requests().len(), 4, "{word}: {stderr}");
        let times = times.lock().unwrap();
        let wish = Duration::from_secs(if word.parse::<u16>().is_ok_and(|code| code > 400) {
            1
        } else {
            0
        });
        assert!(times[1] - times[0] >= wish, "{word}: it was asked again too soon");
    }
}

/// Exports what waits at once, and has little patience.
const HASTE: [&str; 5] = ["--stdin", "--flush-interval", "100ms", "--export-timeout", "3s"];

#[test]
fn grpc_receivers_that_stall_refuse_or_break_off_lose_nothing() {
    let home = Home::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let mut exporting = otel(&home, &endpoint, &HASTE);
    exporting.running.write(&lines(3));
    // One that takes the connection and the first words, and hangs up.
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 24]).unwrap();
    drop((stream, listener));
    wait_until("a try that fails", || exporting.said().contains("3 collections queued"));
    let troubles = ["stall", "UNAVAILABLE", "RESOURCE_EXHAUSTED"];
    let receiver = Receiver::with("grpc", port, &troubles);
    // On a busy machine an answer may be too late without anybody's will: then a collection comes
    // twice.
    let arrived = || -> BTreeSet<u64> {
        let values = receiver.values("microsandbox.memory.usage");
        values.iter().map(|point| point["value"].as_u64().unwrap()).collect()
    };
    wait_until("all of them", || arrived().len() == 3);
    let stderr = exporting.finish();
    for words in ["timed out", "Unavailable: not now", "ResourceExhausted: not now"] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    assert_eq!(arrived(), BTreeSet::from([1000, 1001, 1002]), "{stderr}");
    assert_eq!(receiver.last("microsandbox.collector.collections.dropped"), 0);
    assert!(receiver.last("microsandbox.collector.exports.failure") >= 4, "{stderr}");
}

#[test]
fn what_was_collected_is_exported_once_more_at_the_end() {
    for protocol in ["http", "grpc"] {
        let home = Home::new();
        let receiver = Receiver::start(protocol, 0);
        let endpoint = format!("http://127.0.0.1:{}", receiver.port);
        let args = ["--protocol", protocol, "--flush-interval", "1h"];
        let exporting = otel(&home, &endpoint, &args);
        wait_until("the begin", || exporting.said().contains("exporting to"));
        let stderr = exporting.stop();
        // That of the begin, and that of the end.
        wait_until(&stderr, || receiver.requests().len() >= 2);
        assert!(!stderr.contains("not exported"), "{stderr}");
        assert!(!home.state().exists());
    }
}

/// Makes an authority and another one, and certificates of the first, for 127.0.0.1 and for another
/// address.
fn make_certificates(home: &Home) {
    let script = "new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
        for name in ca other; do
            openssl req -x509 $new -days 2 -subj /CN=$name -keyout $name.key -out $name.pem \
                -addext basicConstraints=critical,CA:TRUE || exit
        done 2>&1
        for address in 127.0.0.1 192.0.2.1; do
            openssl req $new -subj /CN=collector -keyout $address.key -out request &&
                echo subjectAltName=IP:$address >san &&
                openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san \
                    -out $address.pem || exit
        done 2>&1";
    home.shell(script).done();
}

#[test]
fn a_collector_is_trusted_by_its_certificate_only() {
    let home = Home::new();
    make_certificates(&home);
    let file = |name: &str| home.directory.join(name).to_str().unwrap().to_owned();
    let (own, other) = (file("ca.pem"), file("other.pem"));
    let receiver = |protocol, of: &str| {
        let (certificate, key) = (file(&format!("{of}.pem")), file(&format!("{of}.key")));
        Receiver::with(protocol, 0, &["--tls", &certificate, &key])
    };
    for protocol in ["http", "grpc"] {
        let [right, of_another] = ["127.0.0.1", "192.0.2.1"].map(|of| receiver(protocol, of));
        let export = |to: &Receiver, more: &[&str]| {
            let endpoint = format!("https://127.0.0.1:{}/v1/metrics", to.port);
            let args = [&["--protocol", protocol], &HASTE[..], more].concat();
            let mut exporting = otel(&home, &endpoint, &args);
            exporting.running.write(&lines(1));
            exporting.finish()
        };
        let stderr = export(&right, &["--ca-cert", &own]);
        wait_until(&stderr, || right.values("microsandbox.memory.usage").len() == 1);
        // The system knows the authority as little as another authority does; and a name is a name.
        for (to, more) in [
            (&right, &[][..]),
            (&right, &["--ca-cert", &other]),
            (&of_another, &["--ca-cert", &own]),
        ] {
            let stderr = export(to, more);
            assert!(
                stderr.contains("certificate verification failed: "),
                "{protocol} {more:?}: {stderr}"
            );
            assert!(stderr.contains("1 collections were not exported"), "{stderr}");
        }
        assert_eq!((right.requests().len(), of_another.requests().len()), (1, 0));
    }
    std::fs::write(home.directory.join("nonsense"), "nonsense").unwrap();
    for protocol in ["http", "grpc"] {
        for name in ["nonsense", "nowhere"] {
            let path = file(name);
            let endpoint = ["--endpoint", "https://127.0.0.1:1/", "--ca-cert", &path];
            let args = [&["metrics", "otel", "--protocol", protocol], &endpoint[..]].concat();
            let outcome = home.run(args);
            let stderr = String::from_utf8(outcome.stderr).unwrap();
            assert_eq!(outcome.code, 1, "{protocol} {name}: {stderr}");
            assert!(stderr.contains(&format!("'{path}'")), "{protocol} {name}: {stderr}");
        }
    }
}

#[test]
fn labels_and_sandboxes_are_chosen() {
    let home = Home::new();
    let label = |receiver: &Receiver, key: &str| {
        let points = receiver.values("microsandbox.memory.usage");
        points.first().map(|point| point["attributes"][key].clone())
    };
    for (more, team) in [
        (&["--label", "team=ml"][..], Some(json!("ml"))),
        (&["--no-labels"], Some(json!(null))),
        (&["--exclude-label-key", "team"], Some(json!(null))),
        (&["--label", "team=ml", "--no-labels"], Some(json!(null))),
        (&["--label", "team=web"], None),
    ] {
        let receiver = Receiver::start("http", 0);
        let endpoint = format!("http://127.0.0.1:{}", receiver.port);
        let args = [&["--protocol", "http"], &HASTE[..], more].concat();
        let mut exporting = otel(&home, &endpoint, &args);
        exporting.running.write(&lines(1));
        let stderr = exporting.finish();
        wait_until(&stderr, || receiver.requests().len() == 1);
        assert_eq!(label(&receiver, "team"), team, "{more:?}");
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
    wait_until("a full buffer", || exporting.said().contains("3 collections queued"));
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
    assert!(stderr.contains("the collector rejected: HTTP status 400: no such tenant"), "{stderr}");
}

#[test]
fn a_collector_that_hangs_does_not_hold_up_the_end() {
    let home = Home::new();
    // Connections are taken by the kernel, and by nobody else.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    for protocol in ["http", "grpc"] {
        let args = ["--protocol", protocol, "--flush-interval", "100ms", "--export-timeout", "1s"];
        let exporting = otel(&home, &endpoint, &args);
        wait_until("the begin", || exporting.said().contains("exporting to"));
        let stderr = exporting.stop();
        assert!(stderr.contains("not exported"), "{stderr}");
    }
}

/// The points of a request that are of the sandbox.
fn sample_of(request: &Value) -> Vec<Value> {
    let points = request["points"].as_array().unwrap();
    let of_sandbox = |point: &&Value| point["name"] == "microsandbox.memory.usage";
    points.iter().filter(of_sandbox).cloned().collect()
}

#[test]
fn a_collection_that_was_not_taken_comes_again_unchanged() {
    for (protocol, troubles) in [
        ("http", &["503", "429", "cut", "reset", "stall"][..]),
        ("grpc", &["UNAVAILABLE", "RESOURCE_EXHAUSTED", "stall"]),
    ] {
        let home = Home::new();
        let receiver = Receiver::with(protocol, 0, troubles);
        let endpoint = format!("http://127.0.0.1:{}", receiver.port);
        let args = [&["--protocol", protocol], &HASTE[..]].concat();
        let mut exporting = otel(&home, &endpoint, &args);
        exporting.running.write(&lines(3));
        let arrived = || -> BTreeSet<u64> {
            let values = receiver.values("microsandbox.memory.usage");
            values.iter().map(|point| point["value"].as_u64().unwrap()).collect()
        };
        wait_until("all of them", || arrived().len() == 3);
        let stderr = exporting.finish();
        let troubled = receiver.troubled();
        let words: Vec<&str> =
            troubled.iter().map(|request| request["trouble"].as_str().unwrap()).collect();
        assert_eq!(words, troubles, "{stderr}");
        let first = sample_of(&receiver.requests()[0]);
        assert_eq!(first[0]["value"], 1000);
        for request in troubled.iter().filter(|of| of["trouble"] != "reset") {
            assert_eq!(sample_of(request), first, "{request}");
        }
        assert_eq!(arrived(), BTreeSet::from([1000, 1001, 1002]), "{stderr}");
        assert_eq!(receiver.last("microsandbox.collector.collections.dropped"), 0);
        assert!(
            receiver.last("microsandbox.collector.exports.failure") >= troubles.len() as u64,
            "{stderr}"
        );
    }
}

#[test]
fn what_is_refused_for_good_is_counted_as_dropped_and_all_else_arrives() {
    for (protocol, refusal) in [("http", "400"), ("grpc", "INVALID_ARGUMENT")] {
        let home = Home::new();
        let receiver = Receiver::with(protocol, 0, &[refusal]);
        let endpoint = format!("http://127.0.0.1:{}", receiver.port);
        // One export, at the end of the input: so all three are there before the first is refused.
        let args = ["--stdin", "--protocol", protocol, "--flush-interval", "1h"];
        let mut exporting = otel(&home, &endpoint, &args);
        exporting.running.write(&lines(3));
        let stderr = exporting.finish();
        wait_until(&stderr, || receiver.requests().len() == 2);
        let values = receiver.values("microsandbox.memory.usage");
        let values: Vec<&Value> = values.iter().map(|point| &point["value"]).collect();
        assert_eq!(values, [1001, 1002], "{stderr}");
        assert_eq!(sample_of(&receiver.troubled()[0])[0]["value"], 1000);
        let last = |name: &str| receiver.last(&format!("microsandbox.collector.{name}"));
        assert_eq!(last("collections.dropped"), 1);
        assert_eq!(last("exports.failure"), 1);
    }
}

#[test]
fn an_exporter_tells_of_itself() {
    let home = Home::new();
    let begin = SystemTime::now();
    let receiver = Receiver::start("http", 0);
    let endpoint = format!("http://127.0.0.1:{}", receiver.port);
    let args = ["--stdin", "--protocol", "http", "--flush-interval", "1h"];
    let mut exporting = otel(&home, &endpoint, &args);
    exporting.running.write(&lines(3));
    let stderr = exporting.finish();
    wait_until(&stderr, || receiver.requests().len() == 3);
    let is = |point: &Value, kind: &str, unit: &str, class: &str| {
        let found = ["kind", "unit", "type"].map(|key| &point[key]);
        assert_eq!(found, [kind, unit, class], "{point}");
    };
    for (name, expected) in [
        // What was there when the request was made.
        ("exports.success", [0, 1, 2]),
        ("exports.failure", [0, 0, 0]),
        ("collections.dropped", [0, 0, 0]),
    ] {
        let points = receiver.values(&format!("microsandbox.collector.{name}"));
        let values: Vec<&Value> = points.iter().map(|point| &point["value"]).collect();
        assert_eq!(values, expected, "{name}");
        for point in &points {
            is(point, "sum", "1", "as_int");
            assert_eq!(point["monotonic"], true);
            assert_eq!(point["attributes"], json!({}));
        }
    }
    let points = receiver.values("microsandbox.collector.last_success_timestamp");
    // Before the first there is none.
    assert_eq!(points.len(), 2);
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let mut earliest = seconds(begin);
    for point in &points {
        is(point, "gauge", "s", "as_double");
        let value = point["value"].as_f64().unwrap();
        assert!(value >= earliest, "{point}");
        earliest = value;
    }
    assert!(earliest <= seconds(SystemTime::now()));
}

#[test]
fn a_counter_falls_with_a_new_start_time_only() {
    let home = Home::new();
    let receiver = Receiver::start("http", 0);
    let endpoint = format!("http://127.0.0.1:{}", receiver.port);
    let args = ["--stdin", "--protocol", "http", "--emit-run-id"];
    let mut exporting = otel(&home, &endpoint, &args);
    let starts = ["2026-11-23T13:00:00Z", "2026-11-23T14:00:02Z"];
    for (second, (life, used)) in [(0, 50.5), (0, 51.5), (1, 0.5), (1, 1.5)].iter().enumerate() {
        let timestamp = format!("2026-11-23T14:00:{:02}Z", second + 1);
        let sample = json!({
            "type": "sample", "name": "web", "timestamp": timestamp, "cpu_secs": used, "memory_bytes": 5,
            "id": 5, "run_id": 6 + life, "started_at": starts[*life], "labels": {},
        });
        let end = json!({"type": "collected", "timestamp": timestamp, "sandboxes": 1});
        exporting.running.write(&format!("{sample}\n{end}\n"));
    }
    let stderr = exporting.finish();
    wait_until(&stderr, || receiver.requests().len() == 4);
    let points = receiver.values("microsandbox.cpu.time");
    let of = |key: &str| -> Vec<Value> { points.iter().map(|point| point[key].clone()).collect() };
    assert_eq!(of("value"), [50.5, 51.5, 0.5, 1.5]);
    let second = 1_000_000_000_u64;
    let first_start = of("start")[0].as_u64().unwrap();
    let second_start = first_start + 3602 * second;
    assert_eq!(of("start"), [first_start, first_start, second_start, second_start]);
    assert_eq!(of("time")[0], first_start + 3601 * second);
    let lives = points.iter().map(|point| &point["attributes"]["sandbox.run_id"]);
    assert_eq!(lives.collect::<Vec<_>>(), [6, 6, 7, 7]);
    // A gauge has no start.
    assert_eq!(receiver.values("microsandbox.memory.usage")[0]["start"], 0);
}

#[test]
fn lines_that_are_none_of_metrics_are_told_once_and_passed_over() {
    let home = Home::new();
    let receiver = Receiver::start("http", 0);
    let endpoint = format!("http://127.0.0.1:{}", receiver.port);
    let args = ["--stdin", "--protocol", "http"];
    let mut exporting = otel(&home, &endpoint, &args);
    let ours = lines(2);
    let ours: Vec<&str> = ours.lines().collect();
    let [one, end, two, _] = ours[..] else {
        panic!("{ours:?}");
    };
    let input = [
        "a word of somebody else",
        one,
        r#"{"type":"later","x":1}"#,
        end,
        two,
        // The last line has no end.
        &two[..50],
    ];
    exporting.running.write(&input.join("\n"));
    let stderr = exporting.finish();
    wait_until(&stderr, || receiver.requests().len() == 2);
    let values = receiver.values("microsandbox.memory.usage");
    let values: Vec<&Value> = values.iter().map(|point| &point["value"]).collect();
    assert_eq!(values, [1000, 1001], "{stderr}");
    let told: Vec<&str> = stderr.lines().filter(|line| line.contains("skipp")).collect();
    let [first, all] = told[..] else {
        panic!("{stderr}");
    };
    assert!(first.contains("warning: skipping line 1 and"), "{first}");
    assert_eq!(all, "msb metrics: warning: skipped 3 lines");
}

/// Reads a client's HTTP/2 up to the begin of its first body (RFC 9113, 4.1 and 6.1): the first
/// bytes of that.
fn first_body(stream: &mut TcpStream) -> [u8; 16] {
    const DATA: u8 = 0;
    // The server's settings: all as they are by default.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    stream.read_exact(&mut [0; 24]).unwrap();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        if head[3] == DATA {
            let mut begin = [0; 16];
            stream.read_exact(&mut begin).unwrap();
            return begin;
        }
        let mut rest = vec![0; length as usize];
        stream.read_exact(&mut rest).unwrap();
    }
}

#[test]
fn a_request_over_grpc_is_compressed_and_one_that_was_cut_off_comes_again() {
    for compression in ["none", "gzip"] {
        let home = Home::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = format!("http://127.0.0.1:{port}");
        let args = [&["--compression", compression], &HASTE[..]].concat();
        let mut exporting = otel(&home, &endpoint, &args);
        // So long that it is on its way in several frames.
        let long = lines(1).replace("\"ml\"", &format!("\"{}\"", "long ".repeat(20_000)));
        exporting.running.write(&long);
        let (mut stream, _) = listener.accept().unwrap();
        // A flag, the length, and the message, which gzip begins in its own way (RFC 1952).
        let begin = first_body(&mut stream);
        let packed = compression == "gzip";
        assert_eq!((begin[0], begin[5..7] == [0x1f, 0x8b]), (packed.into(), packed));
        let length = u32::from_be_bytes([begin[1], begin[2], begin[3], begin[4]]);
        assert_eq!(length < 50_000, packed);
        // With bytes that nobody has read: a reset, in the midst of the body.
        drop((stream, listener));
        wait_until("a try that fails", || exporting.said().contains("1 collections queued"));
        let receiver = Receiver::start("grpc", port);
        wait_until("it", || !receiver.requests().is_empty());
        exporting.finish();
        let points = sample_of(&receiver.requests()[0]);
        assert_eq!(points[0]["value"], 1000);
        assert_eq!(points[0]["attributes"]["team"].as_str().unwrap().len(), 100_000);
    }
}

#[test]
fn what_cannot_be_is_refused_at_the_start() {
    let home = Home::new();
    for (args, words) in [
        (&["otel"][..], "--endpoint"),
        (
            &["otel", "--endpoint", "nonsense", "--protocol", "http"],
            "invalid HTTP endpoint 'nonsense'",
        ),
        (&["otel", "--endpoint", "ftp://x"], "invalid gRPC endpoint 'ftp://x'"),
        (&["otel", "--endpoint", "http://x", "--header", "a"], "KEY=VALUE"),
        (&["otel", "--endpoint", "http://x", "--max-buffered", "0"], "a number from 1"),
        (
            &["otel", "--endpoint", "http://x", "--collect-interval", "1ms"],
            "must be at least 100ms",
        ),
        (&["otel", "--endpoint", "http://x", "--export-timeout", "8d"], "must be at most 7d"),
        (
            &["otel", "--endpoint", "http://x", "--flush-interval", "9999999999d"],
            "must be at most 7d",
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
