//! Attempts to get a value to another host, or a request past the judgement. The server records
//! what arrives.

use tokio::net::TcpListener;

use super::*;

/// A request of `e.test`, which is not bound, with these headers and this body of JSON.
fn elsewhere(headers: &[(&str, &str)], body: &str) -> Request<Body> {
    let mut made = request(b"http/1.1", "e.test", "/").method("POST");
    for (name, value) in headers {
        made = made.header(*name, *value);
    }
    made.header("content-type", "application/json").body(text(body)).unwrap()
}

#[test]
fn encoded_forms_of_a_placeholder_are_found_elsewhere() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        // Base64 of "$MSB_KEY" at its three alignments, as a part of longer texts.
        let aligned = ["JE1TQl9LRVk=", "eCRNU0JfS0VZeQ==", "eHgkTVNCX0tFWXl5"];
        let mut attempts: Vec<(Vec<(&str, &str)>, &str)> = vec![
            (vec![("x", "%24MSB_KEY")], ""),
            (vec![], "{\"k\":\"\\u0024MSB_KEY\"}"),
            (vec![], "k=%24MSB_KEY"),
            (vec![("authorization", "Basic dXNlcjokTVNCX0tFWQ==")], ""),
            (vec![("cookie", "a=1; b=$MSB_KEY")], ""),
        ];
        attempts.extend(aligned.iter().map(|form| (vec![("x", *form)], "")));
        for (headers, body) in attempts {
            let made = elsewhere(&headers, body);
            let (status, _, answer) = world.send(b"http/1.1", "e.test", made).await;
            assert_eq!(status, 403, "{headers:?} {body:?} {answer:?}");
            let seen = world.seen().concat();
            assert!(seen.is_empty() || seen.ends_with("incomplete"), "{seen}");
        }
        // Encoded twice, or in letters that need no encoding, it is not found; the server gets what
        // the guest has sent.
        for form in ["%2524MSB_KEY", "%24%4D%53%42_KEY"] {
            let made = elsewhere(&[("x", form)], "");
            assert_eq!(world.send(b"http/1.1", "e.test", made).await.0, 200);
            let seen = world.seen().concat();
            assert!(seen.contains(form) && !seen.contains(VALUE), "{seen}");
        }
    });
}

#[test]
fn a_placeholder_that_comes_byte_by_byte_is_found() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        for (host, status) in [("e.test", "HTTP/1.1 403"), ("a.test", "HTTP/1.1 200")] {
            let server = world.serve(Some(b"http/1.1"), host).await;
            let guest = world.connect(server, (host, host), true, &[b"http/1.1"]);
            let mut guest = guest.await.unwrap();
            let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Key: $MSB_KEY\r\n\r\n");
            for byte in head.as_bytes() {
                guest.write_all(&[*byte]).await.unwrap();
                guest.flush().await.unwrap();
            }
            let mut answer = vec![0; 4096];
            let count = guest.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..count]);
            assert!(answer.starts_with(status), "{answer}");
        }
        let seen = world.seen();
        assert!(seen.len() == 1 && seen[0].contains(VALUE), "{seen:?}");
    });
}

#[test]
fn spellings_of_the_same_host_are_the_same_and_others_are_not() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        for (host, status) in [
            ("a.test", "200"),
            ("A.Test", "200"),
            ("a.test:443", "200"),
            ("a.test:444", "421"),
            ("a.test.e.test", "421"),
            ("e.test, a.test", "421"),
            ("a.test/e.test", "421"),
            ("[::1]", "421"),
            ("192.0.2.1", "421"),
            ("", "421"),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Key: $MSB_KEY\r\n\r\n");
            let answer = raw(&world, head.as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host:?} {answer:?}");
            assert_eq!(world.seen().len(), usize::from(status == "200"), "{host:?}");
        }
    });
}

#[test]
fn tunnels_and_other_protocols_inside_tls_are_refused() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        let connect = "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\nX-Key: $MSB_KEY\r\n\r\n";
        let answer = raw(&world, connect.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        assert_eq!(world.seen().len(), 0);
        // HTTP/2 without TLS's own negotiation is not asked for in the guest's name.
        let upgrade = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, HTTP2-Settings\r\n\
            Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n";
        let answer = raw(&world, upgrade.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let seen = world.seen().concat().to_ascii_lowercase();
        assert!(!seen.contains("h2c") && !seen.contains("http2-settings"), "{seen}");
    });
}

#[test]
fn a_second_host_on_a_connection_of_http2_is_misdirected() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        let server = world.serve(Some(b"h2"), "a.test").await;
        let guest = world.connect(server, ("a.test", "a.test"), true, &[b"h2"]).await.unwrap();
        let handshake =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(guest));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        for (host, status) in [("a.test", 200), ("e.test", 421), ("a.test", 200)] {
            let made = request(b"h2", host, "/").header("x-key", "$MSB_KEY");
            let answer = sender.send_request(made.body(text("")).unwrap()).await.unwrap();
            assert_eq!(answer.status(), status, "{host}");
        }
        assert_eq!(world.seen().len(), 2);
    });
}

#[test]
fn placeholders_that_begin_alike_are_replaced_each_by_its_own_value() {
    run(async {
        let world = World::new(&["API@a.test", "API_KEY@a.test"]);
        let made = request(b"http/1.1", "a.test", "/");
        let made = made.header("x-key", "$MSB_API$MSB_API_KEY,$MSB_API_").body(text("")).unwrap();
        assert_eq!(world.send(b"http/1.1", "a.test", made).await.0, 200);
        let seen = world.seen().concat();
        assert!(seen.contains(&format!("\"{VALUE}{VALUE},{VALUE}_\"")), "{seen}");
        // Only one of them is bound to this host.
        let world = World::new(&["API@a.test", "API_KEY@e.test"]);
        let made = request(b"http/1.1", "a.test", "/").header("x-key", "$MSB_API_KEY");
        let (status, _, answer) =
            world.send(b"http/1.1", "a.test", made.body(text("")).unwrap()).await;
        assert_eq!(status, 403);
        assert!(answer.unwrap().contains("secret API_KEY"));
    });
}

#[test]
fn a_body_without_placeholders_passes_byte_for_byte() {
    run(async {
        let world = World::new(&["KEY:body@a.test"]);
        let body: String =
            (0..1_000_000_u32).map(|index| char::from(b' ' + (index % 95) as u8)).collect();
        for protocol in BOTH {
            let made = request(protocol, "a.test", "/").method("POST");
            let made = made.header("content-type", "text/plain").body(text(&body)).unwrap();
            assert_eq!(world.send(protocol, "a.test", made).await.0, 200);
            assert!(world.seen().concat().ends_with(&body));
        }
    });
}

#[test]
fn an_answer_that_ends_early_is_seen_to_be_cut() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let config = world.server.server(&"a.test".parse().unwrap(), Some(b"http/1.1")).unwrap();
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let mut stream = TlsAcceptor::from(config).accept(socket).await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal";
            stream.write_all(half).await.unwrap();
            stream.flush().await.unwrap();
            // The socket is closed without the end of TLS.
        });
        let guest =
            world.connect(socket, ("a.test", "a.test"), true, &[b"http/1.1"]).await.unwrap();
        let made = request(b"http/1.1", "a.test", "/").body(text("")).unwrap();
        let (status, _, body) = exchange(guest, false, made).await;
        assert_eq!((status, body), (200, None));
    });
}

#[test]
fn the_authority_and_the_placeholders_of_another_sandbox_mean_nothing() {
    run(async {
        let (world, other) =
            (World::new(&["KEY@a.test"]), World::new(&["KEY:placeholder=OTHER@a.test"]));
        assert_ne!(
            world.interceptor.authority.certificate_pem(),
            other.interceptor.authority.certificate_pem()
        );
        let made = request(b"http/1.1", "a.test", "/").header("x-key", "$MSB_KEY");
        assert_eq!(other.send(b"http/1.1", "a.test", made.body(text("")).unwrap()).await.0, 200);
        let seen = other.seen().concat();
        assert!(seen.contains("$MSB_KEY") && !seen.contains(VALUE), "{seen}");
    });
}
