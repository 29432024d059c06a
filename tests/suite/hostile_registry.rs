//! Registries that are wrong, slow or wicked: a server that answers as it should, but for one
//! thing.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Home, Outcome, Random, Request, Running, Server, answer};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn sha(bytes: &[u8]) -> String {
    let digits = Sha256::digest(bytes);
    let digits: String = digits.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// An image of one layer.
struct Image {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Image {
    fn new(home: &Home) -> Image {
        let mut contents = vec![0; 3 << 20];
        Random::new(3).fill(&mut contents);
        std::fs::write(home.directory.join("large"), contents).unwrap();
        home.shell("tar --mtime=@0 --owner=0 --group=0 -cf layer.tar large").done();
        let layer = std::fs::read(home.directory.join("layer.tar")).unwrap();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [sha(&layer)] },
        });
        Image::of(layer, &config)
    }

    fn of(layer: Vec<u8>, config: &Value) -> Image {
        let config = config.to_string().into_bytes();
        let manifest = manifest(&layer, &config).to_string().into_bytes();
        Image { layer, config, manifest }
    }

    fn changed(&self, change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut manifest = serde_json::from_slice(&self.manifest).unwrap();
        change(&mut manifest);
        manifest.to_string().into_bytes()
    }

    /// Answers rightly.
    fn answer(&self, request: &Request, stream: &mut TcpStream) {
        let target = &request.target;
        if target.contains("/manifests/") {
            answer(stream, "200 OK", &[("Content-Type", MANIFEST)], &self.manifest);
        } else if target.ends_with(&sha(&self.config)) {
            answer(stream, "200 OK", &[], &self.config);
        } else if self.is_layer(request) {
            self.answer_layer(request, stream);
        } else {
            answer(stream, "200 OK", &[], b"{}");
        }
    }

    fn is_layer(&self, request: &Request) -> bool {
        request.target.ends_with(&sha(&self.layer))
    }

    fn answer_layer(&self, request: &Request, stream: &mut TcpStream) {
        let Some(from) = start(request) else {
            return answer(stream, "200 OK", &[], &self.layer);
        };
        let range = format!("bytes {from}-{}/{}", self.layer.len() - 1, self.layer.len());
        answer(stream, "206 Partial Content", &[("Content-Range", &range)], &self.layer[from..]);
    }
}

fn manifest(layer: &[u8], config: &[u8]) -> Value {
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": sha(config), "size": config.len() },
        "layers": [{ "mediaType": LAYER, "digest": sha(layer), "size": layer.len() }],
    })
}

/// From where on a blob is wanted.
fn start(request: &Request) -> Option<usize> {
    let range = request.header("range")?.strip_prefix("bytes=")?;
    range.strip_suffix('-')?.parse().ok()
}

/// A server that answers rightly unless `odd` has answered.
fn server(
    image: Image,
    odd: impl Fn(&Image, &Request, &mut TcpStream) -> bool + Send + Sync + 'static,
) -> Server {
    let image = Arc::new(image);
    Server::start(move |request, stream| {
        if !odd(&image, request, stream) {
            image.answer(request, stream);
        }
    })
}

/// Pulls with little patience.
fn pull(home: &Home, server: &Server) -> Outcome {
    let mut command = home.msb(["pull", &format!("{}/image", server.host())]);
    command.env("MSB_REGISTRY_TIMEOUT", "1s");
    Running::start(command).finish()
}

/// The image was pulled, and nothing but notes was printed besides its name.
#[track_caller]
fn is_pulled(outcome: &Outcome, server: &Server) {
    let name = format!("{}/image:latest", server.host());
    assert_eq!(
        (outcome.code, String::from_utf8_lossy(&outcome.stdout).as_ref()),
        (0, format!("{name}\n").as_str()),
        "{outcome:?}"
    );
    let messages = String::from_utf8_lossy(&outcome.stderr).into_owned();
    let mut lines = messages.lines();
    assert_eq!(lines.next(), Some(format!("msb pull: note: pulling '{name}'").as_str()));
    assert!(lines.all(|line| line.starts_with("msb pull: note: ")), "{messages}");
}

/// The pull fails with one error that says `words`, in time, and nothing of the image is in the
/// store.
#[track_caller]
fn refused(
    words: &str,
    odd: impl Fn(&Image, &Request, &mut TcpStream) -> bool + Send + Sync + 'static,
) {
    let home = Home::new();
    refused_by(&home, words, &server(Image::new(&home), odd));
}

#[track_caller]
fn refused_by(home: &Home, words: &str, server: &Server) {
    let begun = Instant::now();
    let outcome = pull(home, server);
    let stderr = String::from_utf8_lossy(&outcome.stderr);
    let errors = stderr.lines().filter(|line| line.starts_with("msb pull: error: ")).count();
    assert!(matches!(outcome.code, 1 | 3) && errors == 1, "{outcome:?}");
    assert!(stderr.contains(words), "not {words:?}, but {stderr}");
    assert!(begun.elapsed() < Duration::from_secs(60), "after {:?}: {stderr}", begun.elapsed());
    for directory in ["refs", "manifests", "configs", "layers", "disks"] {
        assert_eq!(
            home.snapshot(&format!("images/{directory}")),
            Vec::<String>::new(),
            "{directory}"
        );
    }
}

/// The pull succeeds all the same.
#[track_caller]
fn accepted(
    odd: impl Fn(&Image, &Request, &mut TcpStream) -> bool + Send + Sync + 'static,
) -> Vec<Request> {
    let home = Home::new();
    let image = Image::new(&home);
    let diff_id = sha(&image.layer);
    let server = server(image, odd);
    is_pulled(&pull(&home, &server), &server);
    let layers = home.snapshot("images/layers").join("\n");
    assert!(layers.contains(diff_id.strip_prefix("sha256:").unwrap()), "{layers}");
    server.requests()
}

fn is_manifest(request: &Request) -> bool {
    request.target.contains("/manifests/")
}

/// Sends zeros until nobody takes them any more.
fn endless(stream: &mut TcpStream) {
    let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    let mut sent = stream.write_all(head);
    while sent.is_ok() {
        sent = stream.write_all(&[b' '; 65536]);
    }
}

/// Sends bytes one at a time.
fn trickle(stream: &mut TcpStream, bytes: &[u8]) {
    for byte in bytes {
        if stream.write_all(&[*byte]).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_honest_registry_of_the_test_is_pulled_from() {
    accepted(|_, _, _| false);
}

#[test]
fn a_pull_sends_the_requests_of_the_page_and_no_others() {
    let home = Home::new();
    let image = Image::new(&home);
    let [config, layer] = [sha(&image.config), sha(&image.layer)];
    let requests = accepted(|_, _, _| false);
    let mut targets: Vec<&str> = requests.iter().map(|request| request.target.as_str()).collect();
    targets.sort_unstable();
    let blobs = [format!("/v2/image/blobs/{config}"), format!("/v2/image/blobs/{layer}")];
    let mut expected = vec!["/v2/", "/v2/image/manifests/latest"];
    expected.extend(blobs.iter().map(String::as_str));
    expected.sort_unstable();
    assert_eq!(targets, expected);
    for request in &requests {
        assert_eq!(request.method, "GET", "{}", request.target);
        let accepts = request.header("accept").is_some_and(|types| types.contains(MANIFEST));
        assert_eq!(accepts, is_manifest(request), "{}", request.target);
        assert_eq!(request.header("authorization"), None);
    }
}

#[test]
fn a_warning_of_a_registry_is_printed_once() {
    let home = Home::new();
    let server = server(Image::new(&home), |image, request, stream| {
        let warning = [("Warning", "299 - \"Your account ends\""), ("Warning", "199 - \"other\"")];
        match is_manifest(request) {
            true => answer(stream, "200 OK", &warning, &image.manifest),
            false if image.is_layer(request) => answer(stream, "200 OK", &warning, &image.layer),
            false => return false,
        }
        true
    });
    let host = server.host();
    let said = format!(
        "msb pull: note: pulling '{host}/image:latest'\n\
         msb pull: warning: registry '{host}' says: Your account ends\n"
    );
    pull(&home, &server).is(0, &format!("{host}/image:latest\n"), &said);
}

#[test]
fn a_manifest_with_another_digest_than_its_header_is_refused() {
    let header = |digest: String| {
        move |image: &Image, request: &Request, stream: &mut TcpStream| {
            let headers = [("Docker-Content-Digest", digest.as_str())];
            if is_manifest(request) {
                answer(stream, "200 OK", &headers, &image.manifest);
            }
            is_manifest(request)
        }
    };
    refused("has the digest", header(sha(b"another")));
    accepted(header("sha512:00".to_owned()));
}

#[test]
fn a_layer_with_other_bytes_is_refused() {
    refused("has the digest", |image, request, stream| {
        if image.is_layer(request) {
            let mut layer = image.layer.clone();
            layer[1 << 20] ^= 1;
            answer(stream, "200 OK", &[], &layer);
        }
        image.is_layer(request)
    });
    refused("neither a tar nor compressed", |image, request, stream| {
        if image.is_layer(request) {
            answer(stream, "200 OK", &[], &vec![b'x'; image.layer.len()]);
        }
        image.is_layer(request)
    });
}

#[test]
fn a_configuration_with_other_bytes_is_refused() {
    refused("has the digest", |image, request, stream| {
        let is_config = request.target.ends_with(&sha(&image.config));
        if is_config {
            answer(stream, "200 OK", &[], &image.config.to_ascii_uppercase());
        }
        is_config
    });
}

#[test]
fn a_blob_of_another_length_is_refused_before_it_is_read() {
    for more in [1_i64, -1, 1 << 40] {
        refused("but the manifest says", move |image, request, stream| {
            if image.is_layer(request) {
                let length = (image.layer.len() as i64 + more).to_string();
                answer(stream, "200 OK", &[("Content-Length", &length)], &image.layer);
            }
            image.is_layer(request)
        });
    }
}

#[test]
fn what_never_ends_is_not_read_to_its_end() {
    refused("longer than", |_, request, stream| {
        if is_manifest(request) {
            endless(stream);
        }
        is_manifest(request)
    });
    refused("longer than", |image, request, stream| {
        let is_config = request.target.ends_with(&sha(&image.config));
        if is_config {
            endless(stream);
        }
        is_config
    });
    refused("neither a tar nor compressed", |image, request, stream| {
        if image.is_layer(request) {
            endless(stream);
        }
        image.is_layer(request)
    });
}

#[test]
fn a_manifest_that_says_it_is_huge_is_not_read() {
    refused("longer than 4194304 bytes", |_, request, stream| {
        if is_manifest(request) {
            answer(stream, "200 OK", &[("Content-Length", "1099511627776")], b"{}");
        }
        is_manifest(request)
    });
}

#[test]
fn a_header_without_end_is_refused() {
    refused("response header is longer than", |_, request, stream| {
        if is_manifest(request) {
            let value = "x".repeat(200_000);
            answer(stream, "200 OK", &[("X-Filler", &value)], b"{}");
        }
        is_manifest(request)
    });
}

#[test]
fn redirects_in_a_circle_end() {
    refused("more than 10 redirects", |_, request, stream| {
        if is_manifest(request) {
            answer(stream, "307 Temporary Redirect", &[("Location", &request.target)], b"");
        }
        is_manifest(request)
    });
}

#[test]
fn redirects_to_what_is_no_web_server_are_not_followed() {
    for (location, words) in [
        ("file:///etc/passwd", "invalid URL"),
        ("http://alice:s3cret@127.0.0.1:1/", "is not HTTP(S) or contains credentials"),
        ("http://198.51.100.7/blob", "does not use TLS"),
    ] {
        refused(words, move |image, request, stream| {
            if image.is_layer(request) {
                answer(stream, "302 Found", &[("Location", location)], b"");
            }
            image.is_layer(request)
        });
    }
}

#[test]
fn who_sends_a_byte_now_and_then_is_left() {
    refused("did not answer in time", |_, request, stream| {
        if is_manifest(request) {
            let head = format!("HTTP/1.1 200 OK\r\nX-Filler: {}", "x".repeat(600));
            trickle(stream, head.as_bytes());
        }
        is_manifest(request)
    });
    refused("bytes in 1 seconds", |image, request, stream| {
        if image.is_layer(request) {
            let from = start(request).unwrap_or(0);
            let rest = format!("Content-Range: bytes {from}-{}/*\r\n", image.layer.len() - 1);
            let head = format!("HTTP/1.1 206 Partial Content\r\n{rest}Connection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            trickle(stream, &image.layer[from..from + 600]);
        }
        image.is_layer(request)
    });
}

#[test]
fn who_says_nothing_more_is_left() {
    refused("timed out", |image, request, stream| {
        if image.is_layer(request) {
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(head.as_bytes());
            std::thread::sleep(Duration::from_secs(3));
        }
        image.is_layer(request)
    });
}

#[test]
fn documents_that_are_no_images_are_refused_with_the_reason() {
    let home = Home::new();
    let image = Image::new(&home);
    let kind = |kind: &str| {
        let kind = kind.to_owned();
        image.changed(|manifest| manifest["layers"][0]["mediaType"] = json!(kind))
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"<html>".to_vec(), "cannot parse the manifest"),
        (b"".to_vec(), "cannot parse the manifest"),
        (b"[[[[".to_vec(), "cannot parse the manifest"),
        (json!({ "schemaVersion": 1, "fsLayers": [] }).to_string().into_bytes(), "schema 1"),
        (
            image.changed(|manifest| manifest["manifests"] = json!([])),
            "both a manifest and an index",
        ),
        (
            image.changed(|manifest| {
                manifest["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd")
            }),
            "digest must be",
        ),
        (
            image.changed(|manifest| manifest["config"]["digest"] = json!("sha512:00")),
            "digest must be",
        ),
        (
            image.changed(|manifest| manifest["layers"] = json!([])),
            "names 0 layers, but the configuration 1",
        ),
        (
            image.changed(|manifest| {
                manifest["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")
            }),
            "not an image",
        ),
        (image.changed(|manifest| manifest["config"]["size"] = json!(1_u64 << 40)), "the limit is"),
        (
            image.changed(|manifest| manifest["layers"][0]["size"] = json!(1_u64 << 50)),
            "invalid size in the manifest",
        ),
        (
            kind("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            "unsupported foreign layer",
        ),
        (kind("application/vnd.oci.image.layer.v1.tar+encrypted"), "unsupported layer type"),
        (
            json!({ "schemaVersion": 2, "manifests": [] }).to_string().into_bytes(),
            "there is no image for linux/",
        ),
    ];
    for (document, words) in cases {
        refused(words, move |_, request, stream| {
            if is_manifest(request) {
                answer(stream, "200 OK", &[], &document);
            }
            is_manifest(request)
        });
    }
}

#[test]
fn a_configuration_that_does_not_fit_is_refused() {
    let other = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [sha(b"other")] } });
    let foreign = |image: &Image| json!({ "architecture": "s390x", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [sha(&image.layer)] } });
    let home = Home::new();
    let layer = Image::new(&home).layer;
    refused_by(
        &home,
        "but the configuration says",
        &server(Image::of(layer.clone(), &other), |_, _, _| false),
    );
    let config = foreign(&Image::new(&home));
    refused_by(
        &home,
        "the image is for linux/s390x",
        &server(Image::of(layer, &config), |_, _, _| false),
    );
}

#[test]
fn an_index_that_leads_into_itself_ends() {
    // Its digest cannot be its own, so it is refused where it is met again.
    refused("has the digest", |_, request, stream| {
        if is_manifest(request) {
            let kind = "application/vnd.oci.image.index.v1+json";
            let inner = json!({ "mediaType": kind, "digest": sha(b"itself"), "size": 0 });
            let index = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": [inner] });
            answer(stream, "200 OK", &[], index.to_string().as_bytes());
        }
        is_manifest(request)
    });
}

#[test]
fn a_server_of_tokens_without_tls_gets_no_password() {
    refused("does not use TLS", |_, request, stream| {
        let challenge = "Bearer realm=\"http://198.51.100.7/token\",service=\"x\"";
        answer(stream, "401 Unauthorized", &[("WWW-Authenticate", challenge)], b"{}");
        request.header("authorization").is_none()
    });
}

#[test]
fn a_server_that_is_busy_or_broken_is_asked_a_few_times_and_no_more() {
    let home = Home::new();
    let server = server(Image::new(&home), |_, request, stream| {
        if is_manifest(request) {
            answer(
                stream,
                "500 Internal Server Error",
                &[],
                b"{\"errors\":[{\"message\":\"on \x1b[31mfire\"}]}",
            );
        }
        is_manifest(request)
    });
    refused_by(&home, "HTTP status 500", &server);
    assert_eq!(server.requests().iter().filter(|request| is_manifest(request)).count(), 6);
}

#[test]
fn a_server_that_wants_a_pause_gets_it() {
    let count = AtomicUsize::new(0);
    let begun = Instant::now();
    accepted(move |_, request, stream| {
        let is_busy = is_manifest(request) && count.fetch_add(1, Ordering::Relaxed) < 2;
        if is_busy {
            answer(stream, "429 Too Many Requests", &[("Retry-After", "1")], b"");
        }
        is_busy
    });
    assert!(begun.elapsed() >= Duration::from_secs(2));
}

/// Sends the first part of a blob and breaks off, once.
fn break_off_once(count: &AtomicUsize, image: &Image, stream: &mut TcpStream) -> bool {
    let is_first = count.fetch_add(1, Ordering::Relaxed) == 0;
    if is_first {
        let length = image.layer.len().to_string();
        answer(stream, "200 OK", &[("Content-Length", &length)], &image.layer[..1 << 20]);
    }
    is_first
}

fn layer_requests(requests: &[Request]) -> Vec<Option<usize>> {
    let layers = requests.iter().filter(|request| request.target.contains("/blobs/"));
    layers.skip(1).map(start).collect()
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let count = AtomicUsize::new(0);
    let requests = accepted(move |image, request, stream| {
        image.is_layer(request) && break_off_once(&count, image, stream)
    });
    assert_eq!(layer_requests(&requests), [None, Some(1 << 20)]);
}

#[test]
fn a_server_that_knows_no_ranges_sends_all_of_it_again() {
    let count = AtomicUsize::new(0);
    let requests = accepted(move |image, request, stream| {
        if image.is_layer(request) && !break_off_once(&count, image, stream) {
            answer(stream, "200 OK", &[], &image.layer);
        }
        image.is_layer(request)
    });
    assert_eq!(layer_requests(&requests), [None, Some(1 << 20)]);
}

#[test]
fn a_server_that_leaves_something_out_is_refused() {
    let count = AtomicUsize::new(0);
    refused("starts after the requested offset", move |image, request, stream| {
        if image.is_layer(request) && !break_off_once(&count, image, stream) {
            let from = (1 << 20) + 512;
            let range = format!("bytes {from}-{}/{}", image.layer.len() - 1, image.layer.len());
            answer(
                stream,
                "206 Partial Content",
                &[("Content-Range", &range)],
                &image.layer[from..],
            );
        }
        image.is_layer(request)
    });
}

#[test]
fn credentials_go_to_the_registry_and_not_to_where_it_sends_us() {
    let home = Home::new();
    let image = Arc::new(Image::new(&home));
    let there = Arc::clone(&image);
    let elsewhere =
        Server::start(move |request: &Request, stream| there.answer_layer(request, stream));
    let location = format!("http://{}/signed", elsewhere.host());
    let here = Arc::clone(&image);
    let registry = Server::start(move |request: &Request, stream| {
        if request.header("authorization") != Some("Basic YWxpY2U6czNjcmV0") {
            answer(stream, "401 Unauthorized", &[("WWW-Authenticate", "Basic realm=\"x\"")], b"{}");
        } else if here.is_layer(request) {
            answer(stream, "307 Temporary Redirect", &[("Location", &location)], b"");
        } else {
            here.answer(request, stream);
        }
    });
    let args = ["registry", "login", &registry.host(), "-u", "alice", "--password-stdin"];
    home.run_with(args, b"s3cret").done();
    pull(&home, &registry).done();
    let asked = elsewhere.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None);
}

const PASSWORD: &str = "Basic YWxpY2U6czNjcmV0";

/// A registry that asks for a password, redirects some requests to a host that answers 401, and
/// that host's accomplice, which the challenge names as the token server.
struct Thieves {
    registry: Server,
    redirected: Server,
    accomplice: Server,
}

impl Thieves {
    /// `redirects` says which requests are redirected.
    fn new(
        image: Image,
        challenge: Option<&'static str>,
        redirects: impl Fn(&Image, &Request) -> bool + Send + Sync + 'static,
    ) -> Thieves {
        let accomplice = Server::start(|_: &Request, stream| {
            answer(stream, "200 OK", &[], b"{\"token\":\"stolen\"}");
        });
        let realm = format!("Bearer realm=\"http://{}/token\"", accomplice.host());
        let redirected = Server::start(move |_: &Request, stream| {
            let challenge = challenge.unwrap_or(&realm);
            let headers = [("WWW-Authenticate", challenge)];
            answer(stream, "401 Unauthorized", &headers, b"{}");
        });
        let location = format!("http://{}/signed", redirected.host());
        let registry = Server::start(move |request: &Request, stream| {
            if request.header("authorization") != Some(PASSWORD) {
                let headers = [("WWW-Authenticate", "Basic realm=\"x\"")];
                answer(stream, "401 Unauthorized", &headers, b"{}");
            } else if redirects(&image, request) {
                let headers = [("Location", location.as_str())];
                answer(stream, "307 Temporary Redirect", &headers, b"");
            } else {
                image.answer(request, stream);
            }
        });
        Thieves { registry, redirected, accomplice }
    }

    /// The pull is refused, and neither the host nor its accomplice has seen a credential.
    #[track_caller]
    fn get_nothing(&self, home: &Home) {
        log_in(home, &self.registry);
        let outcome = pull(home, &self.registry);
        let asked = self.accomplice.requests();
        assert!(asked.is_empty(), "{asked:?}");
        let redirected = self.redirected.requests();
        assert_eq!(redirected.len(), 1, "{redirected:?}");
        assert_eq!(redirected[0].header("authorization"), None);
        let stderr = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(stderr.contains("access denied by the redirect target '127.0.0.1'"), "{stderr}");
    }
}

fn log_in(home: &Home, registry: &Server) {
    let (host, user) = (registry.host(), ["-u", "alice", "--password-stdin"]);
    let args = ["registry", "login", &host].into_iter().chain(user);
    home.run_with(args, b"s3cret").done();
}

#[test]
fn a_challenge_of_a_redirects_target_gets_no_password_for_a_manifest() {
    let home = Home::new();
    Thieves::new(Image::new(&home), None, |_, request| is_manifest(request)).get_nothing(&home);
}

#[test]
fn a_challenge_of_a_redirects_target_gets_no_password_for_a_blob() {
    for challenge in [None, Some("Basic realm=\"y\"")] {
        let home = Home::new();
        Thieves::new(Image::new(&home), challenge, Image::is_layer).get_nothing(&home);
        let home = Home::new();
        let is_config =
            |image: &Image, request: &Request| request.target.ends_with(&sha(&image.config));
        Thieves::new(Image::new(&home), challenge, is_config).get_nothing(&home);
    }
}

#[test]
fn a_challenge_of_a_redirects_target_gets_no_password_for_a_resumed_blob() {
    let home = Home::new();
    let image = Image::new(&home);
    // What an earlier attempt has left of the layer.
    let layer = sha(&image.layer).replace("sha256:", "");
    let (head, count) = (image.layer[..1 << 20].to_vec(), AtomicUsize::new(0));
    let first = server(image, move |image, request, stream| {
        if image.is_layer(request) && count.fetch_add(1, Ordering::Relaxed) == 0 {
            let length = image.layer.len().to_string();
            answer(stream, "200 OK", &[("Content-Length", &length)], &head);
        } else if image.is_layer(request) {
            answer(stream, "403 Forbidden", &[], b"{}");
        }
        image.is_layer(request)
    });
    assert_eq!(pull(&home, &first).code, 1);
    let left = home.snapshot("images").join("\n");
    assert!(left.contains(&layer), "{left}");
    let thieves = Thieves::new(Image::new(&home), None, Image::is_layer);
    thieves.get_nothing(&home);
    assert_eq!(start(&thieves.redirected.requests()[0]), Some(1 << 20));
}

#[test]
fn a_redirect_that_leads_back_has_lost_the_credentials() {
    let home = Home::new();
    let image = Image::new(&home);
    let back = Arc::new(std::sync::OnceLock::<String>::new());
    let there = Arc::clone(&back);
    let elsewhere = Server::start(move |_: &Request, stream| {
        let location = format!("http://{}/private", there.get().unwrap());
        let headers = [("Location", location.as_str())];
        answer(stream, "307 Temporary Redirect", &headers, b"");
    });
    let location = format!("http://{}/signed", elsewhere.host());
    let registry = Server::start(move |request: &Request, stream| {
        if request.header("authorization") != Some(PASSWORD) {
            let headers = [("WWW-Authenticate", "Basic realm=\"x\"")];
            answer(stream, "401 Unauthorized", &headers, b"{}");
        } else if image.is_layer(request) {
            let headers = [("Location", location.as_str())];
            answer(stream, "307 Temporary Redirect", &headers, b"");
        } else {
            image.answer(request, stream);
        }
    });
    back.set(registry.host()).unwrap();
    log_in(&home, &registry);
    assert_eq!(pull(&home, &registry).code, 1);
    let mut private = registry.requests();
    private.retain(|request| request.target == "/private");
    assert_eq!(private.len(), 1, "{private:?}");
    assert_eq!(private[0].header("authorization"), None);
}

#[test]
fn a_redirect_of_the_token_server_gets_no_password() {
    let home = Home::new();
    let image = Image::new(&home);
    let accomplice = Server::start(|_: &Request, stream| {
        answer(stream, "200 OK", &[], b"{\"token\":\"stolen\"}");
    });
    let location = format!("http://{}/token", accomplice.host());
    let registry = Server::start(move |request: &Request, stream| {
        let host = request.header("host").unwrap();
        if request.target.starts_with("/token") {
            let headers = [("Location", location.as_str())];
            answer(stream, "307 Temporary Redirect", &headers, b"");
        } else if request.header("authorization").is_none() {
            let challenge = format!("Bearer realm=\"http://{host}/token\"");
            let headers = [("WWW-Authenticate", challenge.as_str())];
            answer(stream, "401 Unauthorized", &headers, b"{}");
        } else {
            image.answer(request, stream);
        }
    });
    let host = registry.host();
    let login = ["registry", "login", &host, "-u", "alice", "--password-stdin"];
    assert_eq!(home.run_with(login, b"s3cret").code, 1);
    assert_eq!(pull(&home, &registry).code, 1);
    let asked = accomplice.requests();
    assert!(asked.is_empty(), "{asked:?}");
}

#[test]
fn a_token_that_has_become_too_old_is_replaced() {
    let home = Home::new();
    let image = Image::new(&home);
    let tokens = AtomicUsize::new(0);
    let registry = Server::start(move |request: &Request, stream| {
        let host = request.header("host").unwrap();
        if request.target.starts_with("/token") {
            let token = format!("t{}", tokens.fetch_add(1, Ordering::Relaxed));
            return answer(
                stream,
                "200 OK",
                &[],
                json!({ "access_token": token }).to_string().as_bytes(),
            );
        }
        // Blobs want the second one.
        let wanted = if request.target.contains("/blobs/") { "Bearer t1" } else { "Bearer t0" };
        if request.header("authorization") == Some(wanted) {
            return image.answer(request, stream);
        }
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"x\"");
        answer(stream, "401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"{}");
    });
    pull(&home, &registry).done();
}

/// Percent-decodes a query and returns the values of its scopes.
fn scopes(request: &Request) -> Vec<String> {
    let query = request.target.split_once('?').map_or("", |(_, query)| query);
    let scopes = query.split('&').filter_map(|part| part.strip_prefix("scope="));
    scopes
        .map(|scope| scope.replace("%3A", ":").replace("%2F", "/").replace("%2A", "*"))
        .map(|scope| scope.replace("%2C", ","))
        .collect()
}

/// Answers as a registry whose challenge names `scope` and whose token server gives a token for
/// `needed` alone. The probe of `/v2/` gets a challenge without a scope.
fn with_token_server(
    scope: &'static str,
    needed: &'static str,
) -> impl Fn(&Image, &Request, &mut TcpStream) -> bool {
    move |_, request, stream| {
        let host = request.header("host").unwrap_or_default().to_owned();
        if request.target.starts_with("/token") {
            let asked = scopes(request);
            let fits = needed.split(' ').all(|needed| asked.iter().any(|scope| scope == needed));
            let token = if fits { "good" } else { "weak" };
            answer(stream, "200 OK", &[], json!({ "token": token }).to_string().as_bytes());
            return true;
        }
        if request.header("authorization") == Some("Bearer good") {
            return false;
        }
        let scope = if request.target == "/v2/" { "" } else { scope };
        let bearer =
            format!("Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"{scope}\"");
        let body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"insufficient scope"}]}"#;
        answer(stream, "401 Unauthorized", &[("WWW-Authenticate", &bearer)], body);
        true
    }
}

#[test]
fn a_token_is_asked_for_with_the_scopes_of_the_challenge_and_of_the_image() {
    for (scope, needed) in [
        ("repository:tenant/image:pull", "repository:tenant/image:pull"),
        ("aws", "aws"),
        (
            "repository:a:pull repository:b/c:pull,push",
            "repository:a:pull repository:b/c:pull,push",
        ),
        // A placeholder: what counts is the repository of the image.
        ("registry:catalog:*", "repository:image:pull"),
        ("", "repository:image:pull"),
        ("repository:up/image:pull", "repository:up/image:pull repository:image:pull"),
    ] {
        println!("the challenge asks for '{scope}'");
        accepted(with_token_server(scope, needed));
    }
    refused("access denied", with_token_server("repository:a:pull", "repository:b:pull"));
}

#[test]
fn scopes_of_several_challenges_add_up() {
    let requests = accepted(|image, request, stream| {
        let blob =
            if image.is_layer(request) { "repository:blobs:pull" } else { "repository:x:pull" };
        let both = "repository:blobs:pull repository:x:pull";
        if request.target.starts_with("/token") {
            let asked = scopes(request);
            let has = |scope: &str| asked.iter().any(|asked| asked == scope);
            let token = match both.split(' ').all(has) {
                true => "both",
                false if has("repository:x:pull") => "x",
                false => "none",
            };
            answer(stream, "200 OK", &[], json!({ "token": token }).to_string().as_bytes());
            return true;
        }
        let enough = match request.header("authorization") {
            Some("Bearer both") => true,
            // The first token does for documents once their scope was asked for.
            Some("Bearer x") => !image.is_layer(request),
            _ => false,
        };
        if !enough {
            let host = request.header("host").unwrap_or_default();
            let bearer = format!("Bearer scope=\"{blob}\", realm=\"http://{host}/token\"");
            answer(stream, "401 Unauthorized", &[("WWW-Authenticate", &bearer)], b"");
        }
        !enough
    });
    let tokens = requests.iter().filter(|request| request.target.starts_with("/token")).count();
    assert!(tokens <= 3, "{tokens} tokens were asked for");
}

#[test]
fn a_redirect_is_followed_whatever_bytes_its_address_has() {
    for (location, target) in [
        ("/store?x=\"a\"", "/store?x=%22a%22"),
        ("/store?name=a b", "/store?name=a%20b"),
        ("/store?x=\u{e9}&y=\u{4e2d}", "/store?x=%C3%A9&y=%E4%B8%AD"),
        ("/store/a b/\u{e9}<1>", "/store/a%20b/%C3%A9%3C1%3E"),
        ("/store?x=%2B%zz+&y={a}|[b]^`\\#part", "/store?x=%2B%zz+&y={a}|[b]^`\\"),
        ("/store?to=https://other.example/x y", "/store?to=https://other.example/x%20y"),
        ("../../../store?up", "/store?up"),
    ] {
        let requests = accepted(move |image, request, stream| {
            if image.is_layer(request) {
                answer(stream, "307 Temporary Redirect", &[("Location", location)], b"");
                return true;
            }
            if request.target.starts_with("/store") {
                answer(stream, "200 OK", &[], &image.layer);
                return true;
            }
            false
        });
        let targets: Vec<&str> = requests.iter().map(|request| request.target.as_str()).collect();
        assert!(targets.contains(&target), "{location}: {targets:?}");
    }
}

#[test]
fn the_way_to_log_in_is_found_among_several_in_one_header() {
    for challenges in [
        "Negotiate YIIB6wYGKwYBBQ==, Basic realm=\"a\"",
        "NTLM TlRMTVNTUAACAAAA/+a=,Negotiate,Basic realm=\"a, Bearer b\", charset=\"UTF-8\"",
        "Digest realm = \"x\", nonce=\"=,\", qop=auth,Basic realm=\"\u{fc}\"",
        "Basic realm=\"a\", Negotiate YII",
    ] {
        let home = Home::new();
        let image = Image::new(&home);
        let server = server(image, move |_, request, stream| {
            // u:pw
            let known = request.header("authorization") == Some("Basic dTpw");
            if !known {
                let headers = [("WWW-Authenticate", challenges)];
                answer(stream, "401 Unauthorized", &headers, b"");
            }
            !known
        });
        let auths = json!({ "auths": { server.host(): { "auth": "dTpw" } } });
        std::fs::create_dir(home.directory.join(".docker")).unwrap();
        std::fs::write(home.directory.join(".docker/config.json"), auths.to_string()).unwrap();
        is_pulled(&pull(&home, &server), &server);
    }
}

#[test]
fn every_spelling_of_an_architecture_is_found_in_an_index() {
    for (listed, asked) in [
        (("linux", "x86_64", None), None),
        (("Linux", "AMD64", None), None),
        (("linux", "x86-64", Some("v1")), None),
        (("linux", "amd64", None), Some("linux/x86_64")),
        (("linux", "amd64", None), Some("Linux/X86-64")),
        (("linux", "x86_64", None), Some("linux/amd64/v1")),
        (("linux", "arm64", Some("v8")), Some("linux/aarch64")),
        (("linux", "aarch64", None), Some("linux/arm64/v8")),
        (("linux", "arm", Some("v7")), Some("linux/armhf")),
        (("linux", "arm", Some("7")), Some("linux/arm/v7")),
        (("linux", "armel", None), Some("linux/arm/6")),
        (("linux", "386", None), Some("linux/i386")),
    ] {
        let home = Home::new();
        let mut image = Image::new(&home);
        let (os, architecture, variant) = listed;
        let mut config: Value = serde_json::from_slice(&image.config).unwrap();
        let mut platform = json!({ "os": os, "architecture": architecture });
        if let Some(variant) = variant {
            platform["variant"] = json!(variant);
        }
        for (key, value) in platform.as_object().unwrap() {
            config[key] = value.clone();
        }
        image = Image::of(image.layer, &config);
        let digest = sha(&image.manifest);
        let (size, wanted) = (image.manifest.len(), format!("/manifests/{digest}"));
        let index = "application/vnd.oci.image.index.v1+json";
        let text = json!({
            "schemaVersion": 2, "mediaType": index,
            "manifests": [
                { "mediaType": MANIFEST, "digest": sha(b"other"), "size": 5,
                  "platform": { "os": "plan9", "architecture": architecture } },
                { "mediaType": MANIFEST, "digest": digest, "size": size, "platform": platform },
            ],
        });
        let server = server(image, move |_, request, stream| {
            let is_index = is_manifest(request) && !request.target.ends_with(&wanted);
            if is_index {
                let headers = [("Content-Type", index)];
                answer(stream, "200 OK", &headers, text.to_string().as_bytes());
            }
            is_index
        });
        let reference = format!("{}/image", server.host());
        let platform: Vec<&str> =
            asked.iter().flat_map(|platform| ["--platform", *platform]).collect();
        let pulled = home.run([&["pull", "-q"], &platform[..], &[reference.as_str()]].concat());
        assert_eq!(pulled.code, 0, "{listed:?} {asked:?}: {pulled:?}");
    }
}
