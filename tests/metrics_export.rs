//! What an exporter does when its collector is away, slow, wrong or false. There is no sandbox here: what is exported are lines.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

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
            std::thread::sleep(std::time::Duration::from_secs(5))
        }),
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
        let mut exporting = otel(
            &home,
            &endpoint,
            &[&["--protocol", "http"], &HASTE[..]].concat(),
        );
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
        assert!(
            times[1] - times[0] >= wish,
            "{word}: it was asked again too soon"
        );
    }
}

/// Exports what waits at once, and has little patience.
const HASTE: [&str; 5] = [
    "--stdin",
    "--flush-interval",
    "100ms",
    "--export-timeout",
    "3s",
];

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
    wait_until("a try that fails", || {
        exporting.said().contains("3 collections wait")
    });
    let troubles = ["stall", "UNAVAILABLE", "RESOURCE_EXHAUSTED"];
    let receiver = Receiver::with("grpc", port, &troubles);
    // On a busy machine an answer may be too late without anybody's will: then a collection comes twice.
    let arrived = || -> BTreeSet<u64> {
        let values = receiver.values("microsandbox.memory.usage");
        values
            .iter()
            .map(|point| point["value"].as_u64().unwrap())
            .collect()
    };
    wait_until("all of them", || arrived().len() == 3);
    let stderr = exporting.finish();
    for words in [
        "it took too long",
        "Unavailable: not now",
        "ResourceExhausted: not now",
    ] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    assert_eq!(arrived(), BTreeSet::from([1000, 1001, 1002]), "{stderr}");
    assert_eq!(
        receiver.last("microsandbox.collector.collections.dropped"),
        0
    );
    assert!(
        receiver.last("microsandbox.collector.exports.failure") >= 4,
        "{stderr}"
    );
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

/// Makes an authority and another one, and certificates of the first, for 127.0.0.1 and for another address.
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
    let file = |name: &str| home.folder.join(name).to_str().unwrap().to_owned();
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
        wait_until(&stderr, || {
            right.values("microsandbox.memory.usage").len() == 1
        });
        // The system knows the authority as little as another authority does; and a name is a name.
        for (to, more) in [
            (&right, &[][..]),
            (&right, &["--ca-cert", &other]),
            (&of_another, &["--ca-cert", &own]),
        ] {
            let stderr = export(to, more);
            assert!(
                stderr.contains("its certificate is refused: "),
                "{protocol} {more:?}: {stderr}"
            );
            assert!(
                stderr.contains("1 collections were not exported"),
                "{stderr}"
            );
        }
        assert_eq!(
            (right.requests().len(), of_another.requests().len()),
            (1, 0)
        );
    }
    std::fs::write(home.folder.join("nonsense"), "nonsense").unwrap();
    for protocol in ["http", "grpc"] {
        for name in ["nonsense", "nowhere"] {
            let path = file(name);
            let endpoint = ["--endpoint", "https://127.0.0.1:1/", "--ca-cert", &path];
            let args = [&["metrics", "otel", "--protocol", protocol], &endpoint[..]].concat();
            let outcome = home.run(args);
            let stderr = String::from_utf8(outcome.stderr).unwrap();
            assert_eq!(outcome.code, 1, "{protocol} {name}: {stderr}");
            assert!(
                stderr.contains(&format!("'{path}'")),
                "{protocol} {name}: {stderr}"
            );
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
