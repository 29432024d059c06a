//! Connections between a guest and a server of the test, with real TLS and HTTP on both sides.

use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use libmsb::net::intercept::Handover;
use libmsb::net::secret::SecretSpec;
use libmsb::net::tls::TlsSpec;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::authority::Authority;
use crate::body::{Body, BodyError};
use crate::connection;
use crate::event_log::EventLog;
use crate::handover::Connection;
use crate::interceptor::Interceptor;
use crate::secrets::SecretTable;
use crate::upstream::Upstream;

mod rows;

const VALUE: &str = "s3cret/value-of-a-token";

/// A world with one server, which has a certificate for `a.test` and `e.test`.
struct World {
    interceptor: Arc<Interceptor>,
    server: Arc<Authority>,
    /// Requests that the server has read: the request line, headers and body.
    seen: Arc<Mutex<Vec<String>>>,
    events: OwnedFd,
}

impl World {
    fn new(secrets: &[&str]) -> World {
        let directory = tempfile::tempdir().unwrap();
        let (server, _) = Authority::open(None).unwrap();
        let path = directory.path().join("ca.pem");
        std::fs::write(&path, server.certificate_pem()).unwrap();
        let secrets: Vec<SecretSpec> = secrets.iter().map(|text| text.parse().unwrap()).collect();
        let values = secrets.iter().map(|secret| (secret.name.clone(), VALUE.to_owned())).collect();
        let tls = TlsSpec { secrets, upstream_ca: vec![path], ..TlsSpec::default() };
        let (events, written) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&written, true).unwrap();
        rustix::io::ioctl_fionbio(&events, true).unwrap();
        let interceptor = Interceptor {
            authority: Authority::open(None).unwrap().0,
            upstream: Upstream::open(&tls.upstream_ca).unwrap(),
            secrets: Arc::new(SecretTable::new(&tls, values).unwrap()),
            log: EventLog::new(Some(written)),
        };
        World {
            interceptor: Arc::new(interceptor),
            server: Arc::new(server),
            seen: Arc::default(),
            events,
        }
    }

    /// Events so far.
    fn events(&self) -> String {
        let mut bytes = vec![0; 65536];
        let count = rustix::io::read(&self.events, &mut bytes[..]).unwrap_or(0);
        let text = String::from_utf8(bytes[..count].to_vec()).unwrap();
        assert!(!text.contains(VALUE), "{text}");
        text
    }

    fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// Starts a server for one connection. Returns the connected socket.
    async fn serve(&self, protocol: Option<&'static [u8]>, certified: &str) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let config = self.server.server(&certified.parse().unwrap(), protocol).unwrap();
        let seen = self.seen.clone();
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(stream) = TlsAcceptor::from(config).accept(socket).await else {
                return;
            };
            let service = service_fn(move |request| respond(request, seen.clone()));
            let io = TokioIo::new(stream);
            if protocol == Some(b"h2") {
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(io, service).await;
            } else {
                let server = hyper::server::conn::http1::Builder::new();
                let _ = server.serve_connection(io, service).with_upgrades().await;
            }
        });
        socket
    }

    /// Opens an intercepted connection of the guest to a name, by TLS with these protocols.
    async fn connect(
        &self,
        server: TcpStream,
        (judged, named): (&str, &str),
        pinned: bool,
        protocols: &[&[u8]],
    ) -> std::io::Result<TlsStream<UnixStream>> {
        let (guest, theirs) = UnixStream::pair().unwrap();
        let connection = Connection {
            facts: Handover {
                id: 7,
                remote: "192.0.2.1:443".parse().unwrap(),
                sni: judged.parse().unwrap(),
                pinned,
            },
            server: server.into_std().unwrap().into(),
            guest: theirs.into_std().unwrap().into(),
        };
        tokio::spawn(connection::serve(self.interceptor.clone(), connection));
        let mut roots = RootCertStore::empty();
        let certificate = self.interceptor.authority.certificate_pem();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from(named.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, guest).await
    }

    /// Sends a request to `a.test` or `e.test` and returns status, headers and body of the answer.
    async fn send(&self, protocol: &'static [u8], host: &str, request: Request<Body>) -> Answer {
        let server = self.serve(Some(protocol), host).await;
        let guest = self.connect(server, (host, host), true, &[protocol]).await.unwrap();
        exchange(guest, protocol == b"h2", request).await
    }
}

/// Status, headers and body. The body is `None` if it was cut.
type Answer = (u16, String, Option<String>);

/// Answers as the path says, and records the request.
async fn respond(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Body>, BodyError> {
    let (mut parts, body) = request.into_parts();
    let head = format!("{} {} {:?}", parts.method, parts.uri, parts.headers);
    let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let Ok(body) = body.collect().await else {
        seen.lock().unwrap().push(format!("{head} incomplete"));
        return Err(BodyError::Cut("incomplete"));
    };
    let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    seen.lock().unwrap().push(format!("{head} {body}"));
    let key = parts.headers.get("x-key").cloned();
    let mut answer = Response::builder();
    let mut content = Bytes::from("ok");
    match parts.uri.path() {
        "/header" => answer = answer.header("x-back", key.unwrap()),
        "/body" => content = Bytes::from(key.unwrap().as_bytes().to_vec()),
        "/upgrade" => {
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.unwrap().await.unwrap());
                let mut bytes = [0; 4];
                io.read_exact(&mut bytes).await.unwrap();
                io.write_all(&bytes).await.unwrap();
                io.write_all(VALUE.as_bytes()).await.unwrap();
            });
            answer = answer.status(101).header("upgrade", "test").header("connection", "upgrade");
            content = Bytes::new();
        }
        "/trailers" => {
            let mut trailers = hyper::HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let frames = [Frame::data(content), Frame::trailers(trailers)];
            let frames = frames.into_iter().map(Ok).collect::<VecDeque<_>>();
            return Ok(answer.body(stream(frames)).unwrap());
        }
        _ => {}
    }
    Ok(answer.body(Full::new(content).map_err(|never| match never {}).boxed_unsync()).unwrap())
}

/// A body of frames.
fn stream(frames: VecDeque<Result<Frame<Bytes>, BodyError>>) -> Body {
    struct Frames(VecDeque<Result<Frame<Bytes>, BodyError>>);
    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = BodyError;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            std::task::Poll::Ready(self.0.pop_front())
        }
    }
    Frames(frames).boxed_unsync()
}

fn text(body: &str) -> Body {
    Full::new(Bytes::from(body.to_owned())).map_err(|never| match never {}).boxed_unsync()
}

fn chunks(parts: &[&str]) -> Body {
    stream(parts.iter().map(|part| Ok(Frame::data(Bytes::from((*part).to_owned())))).collect())
}

async fn exchange(guest: TlsStream<UnixStream>, http2: bool, request: Request<Body>) -> Answer {
    let io = TokioIo::new(guest);
    let response = if http2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        match sender.send_request(request).await {
            Ok(response) => response,
            // The end of a short answer that is cut can come before its head.
            Err(_) => return (0, String::new(), None),
        }
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        match sender.send_request(request).await {
            Ok(response) => response,
            Err(_) => return (0, String::new(), None),
        }
    };
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.ok();
    let trailers = collected.as_ref().and_then(|body| body.trailers().cloned());
    let body = collected.map(|body| String::from_utf8(body.to_bytes().to_vec()).unwrap());
    (parts.status.as_u16(), format!("{:?} {trailers:?}", parts.headers), body)
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(std::time::Duration::from_secs(60), test).await };
    runtime.block_on(limited).unwrap();
}

/// A request to a host, for both versions of HTTP.
fn request(protocol: &[u8], host: &str, path: &str) -> hyper::http::request::Builder {
    if protocol == b"h2" {
        Request::builder().uri(format!("https://{host}{path}"))
    } else {
        Request::builder().uri(path).header("host", host)
    }
}

const BOTH: [&[u8]; 2] = [b"h2", b"http/1.1"];

#[test]
fn a_bound_host_gets_the_value_and_no_other() {
    run(async {
        let world = World::new(&["KEY:query@a.test"]);
        for protocol in BOTH {
            let make = |host| {
                let request =
                    request(protocol, host, "/x?k=%24MSB_KEY").header("x-key", "$MSB_KEY");
                request.header("user-agent", "$MSB_KEY").body(text("")).unwrap()
            };
            let (status, _, body) = world.send(protocol, "a.test", make("a.test")).await;
            assert_eq!((status, body.as_deref()), (200, Some("ok")));
            let seen = world.seen().concat();
            assert!(seen.contains("?k=s3cret%2Fvalue-of-a-token "), "{seen}");
            assert!(
                seen.contains(VALUE) && seen.contains("\"user-agent\": \"$MSB_KEY\""),
                "{seen}"
            );
            let (status, _, body) = world.send(protocol, "e.test", make("e.test")).await;
            assert_eq!(status, 403);
            assert!(body.unwrap().contains("secret KEY is in the"));
            assert_eq!(world.seen().len(), 0);
        }
        let events = world.events();
        assert!(
            events.contains(r#""what":"elsewhere""#) && events.contains(r#""secrets":["KEY"]"#)
        );
    });
}

#[test]
fn an_address_that_was_not_resolved_gets_no_value() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        let server = world.serve(Some(b"http/1.1"), "a.test").await;
        let guest =
            world.connect(server, ("a.test", "a.test"), false, &[b"http/1.1"]).await.unwrap();
        let request =
            request(b"", "a.test", "/").header("x-key", "$MSB_KEY").body(text("")).unwrap();
        assert_eq!(exchange(guest, false, request).await.0, 403);
        assert_eq!(world.seen().len(), 0);
        assert!(world.events().contains(r#""what":"unpinned""#));
    });
}

#[test]
fn a_request_to_another_host_is_misdirected() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        for protocol in BOTH {
            let request = request(protocol, "e.test", "/").header("x-key", "$MSB_KEY");
            let (status, _, body) =
                world.send(protocol, "a.test", request.body(text("")).unwrap()).await;
            assert_eq!(status, StatusCode::MISDIRECTED_REQUEST);
            assert!(body.unwrap().contains("another host"));
            assert_eq!(world.seen().len(), 0);
        }
    });
}

#[test]
fn a_server_that_cannot_be_verified_gets_nothing_and_the_guest_the_reason() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        let other = World::new(&[]);
        for protocol in BOTH {
            for (certified, by, why) in [
                ("e.test", &world, "not valid for this name"),
                ("a.test", &other, "unknown issuer; --tls-upstream-ca-cert FILE"),
            ] {
                let server = by.serve(Some(protocol), certified).await;
                let offered = [protocol];
                let guest = world.connect(server, ("a.test", "a.test"), true, &offered);
                let guest = guest.await.unwrap();
                let request = request(protocol, "a.test", "/").header("x-key", "$MSB_KEY");
                let request = request.body(text("")).unwrap();
                let (status, _, body) = exchange(guest, protocol == b"h2", request).await;
                assert_eq!(status, 502);
                assert!(body.unwrap().contains(why));
                assert_eq!(by.seen().len(), 0);
            }
        }
    });
}

#[test]
fn placeholders_in_bodies_are_found_across_chunks_and_replaced_where_wanted() {
    run(async {
        let world = World::new(&["KEY:body@a.test"]);
        for protocol in BOTH {
            let make = |host| {
                let request = request(protocol, host, "/x").method("POST");
                let request = request.header("content-type", "application/json");
                request.body(chunks(&["{\"k\":\"$MS", "B_K", "EY\"}"])).unwrap()
            };
            let (status, _, body) = world.send(protocol, "e.test", make("e.test")).await;
            assert_eq!(status, 403, "{body:?}");
            assert!(world.seen().iter().all(|seen| seen.ends_with("incomplete")));
            assert_eq!(world.send(protocol, "a.test", make("a.test")).await.0, 200);
            let seen = world.seen().concat();
            assert!(seen.ends_with(&format!("{{\"k\":\"{VALUE}\"}}")), "{seen}");
            assert!(seen.contains("\"content-length\": \"31\""), "{seen}");
            let unknown = request(protocol, "a.test", "/x").method("POST");
            let unknown = unknown.body(text("$MSB_KEY")).unwrap();
            assert_eq!(world.send(protocol, "a.test", unknown).await.0, 415);
        }
    });
}

#[test]
fn a_value_does_not_come_back() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        for protocol in BOTH {
            let make = |path| {
                request(protocol, "a.test", path)
                    .header("x-key", "$MSB_KEY")
                    .body(text(""))
                    .unwrap()
            };
            let (status, headers, _) = world.send(protocol, "a.test", make("/header")).await;
            assert!(status == 200 && headers.contains("\"x-back\": \"$MSB_KEY\""), "{headers}");
            let (_, _, body) = world.send(protocol, "a.test", make("/body")).await;
            assert_eq!(body, None);
        }
        assert_eq!(world.events().matches(r#""what":"echo""#).count(), 4);
    });
}

#[test]
fn trailers_pass_and_methods_that_cannot_be_intercepted_are_refused() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        let grpc = request(b"h2", "a.test", "/trailers").header("te", "trailers");
        let (status, headers, _) = world.send(b"h2", "a.test", grpc.body(text("")).unwrap()).await;
        assert!(status == 200 && headers.contains("\"grpc-status\": \"0\""), "{headers}");
        let trace = request(b"h2", "a.test", "/").method("TRACE").header("x-key", "$MSB_KEY");
        assert_eq!(world.send(b"h2", "a.test", trace.body(text("")).unwrap()).await.0, 405);
    });
}

/// Sends bytes over TLS and returns what comes back.
async fn raw(world: &World, bytes: &[u8]) -> String {
    let server = world.serve(Some(b"http/1.1"), "a.test").await;
    let mut guest =
        world.connect(server, ("a.test", "a.test"), true, &[b"http/1.1"]).await.unwrap();
    guest.write_all(bytes).await.unwrap();
    guest.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = guest.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn ambiguous_requests_never_reach_the_server() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        for head in [
            "GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: +5\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\r\n folded\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: a.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test\r\nX: a\0b\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        ] {
            let answer = raw(&world, head.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{head:?} {answer:?}");
            assert_eq!(world.seen().len(), 0, "{head:?}");
        }
        for head in [
            "GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.test@e.test\r\n\r\n",
            "GET https://e.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
        ] {
            let answer = raw(&world, head.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 421"), "{head:?} {answer:?}");
            assert_eq!(world.seen().len(), 0, "{head:?}");
        }
        // What a second parser could take for a second request is the body of the first.
        let smuggled = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\
            Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nX-Key: $MSB_KEY\r\n\r\n";
        raw(&world, smuggled.as_bytes()).await;
        let seen = world.seen();
        assert!(seen.len() <= 1 && !seen.concat().contains("/x"), "{seen:?}");
        // Each of two requests in one packet is judged alone.
        let two = "GET /1 HTTP/1.1\r\nHost: a.test\r\nX-Key: $MSB_KEY\r\n\r\n\
            GET /2 HTTP/1.1\r\nHost: e.test\r\nX-Key: $MSB_KEY\r\n\r\n";
        let answer = raw(&world, two.as_bytes()).await;
        assert!(answer.contains("HTTP/1.1 200") && answer.contains("HTTP/1.1 421"), "{answer}");
        assert_eq!(world.seen().len(), 1);
    });
}

#[test]
fn an_upgraded_connection_is_relayed_and_watched() {
    run(async {
        let world = World::new(&["KEY@a.test"]);
        let head = "GET /upgrade HTTP/1.1\r\nHost: a.test\r\nX-Key: $MSB_KEY\r\nConnection: Upgrade\r\n\
            Upgrade: test\r\n\r\n";
        let server = world.serve(Some(b"http/1.1"), "a.test").await;
        let mut guest =
            world.connect(server, ("a.test", "a.test"), true, &[b"http/1.1"]).await.unwrap();
        guest.write_all(head.as_bytes()).await.unwrap();
        let mut bytes = vec![0; 4096];
        let count = guest.read(&mut bytes).await.unwrap();
        assert!(bytes[..count].starts_with(b"HTTP/1.1 101"), "{:?}", &bytes[..count]);
        guest.write_all(b"ping").await.unwrap();
        let mut rest = Vec::new();
        let _ = guest.read_to_end(&mut rest).await;
        assert!(rest.starts_with(b"ping") || rest.is_empty());
        assert!(!String::from_utf8_lossy(&rest).contains(VALUE));
        assert!(world.events().contains(r#""where":"upgraded""#));
    });
}

#[test]
fn another_name_or_protocol_ends_the_connection() {
    run(async {
        let world = World::new(&[]);
        let server = world.serve(Some(b"http/1.1"), "a.test").await;
        assert!(world.connect(server, ("a.test", "e.test"), true, &[]).await.is_err());
        let server = world.serve(Some(b"http/1.1"), "a.test").await;
        assert!(world.connect(server, ("a.test", "a.test"), true, &[b"imap"]).await.is_err());
        // The guest may see the end before the event is written.
        let mut events = String::new();
        while !(events.contains("not the one that was judged")
            && events.contains("no version of HTTP"))
        {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            events += &world.events();
        }
        // Without ALPN the guest speaks HTTP/1.
        let server = world.serve(None, "a.test").await;
        let guest = world.connect(server, ("a.test", "a.test"), true, &[]).await.unwrap();
        let request = request(b"", "a.test", "/").body(text("")).unwrap();
        assert_eq!(exchange(guest, false, request).await.0, 200);
    });
}
