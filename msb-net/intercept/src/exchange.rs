//! One request and its response: the request is judged, placeholders are replaced, and the answer is
//! searched for values that were sent.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName,
    HeaderValue, SEC_WEBSOCKET_EXTENSIONS, TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use libmsb::net::name::HostName;
use libmsb::net::secret::ViolationAction;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::answer::Refusal;
use crate::body::{Body, BodyError, SharedViolation, UsedSecrets, WatchedRequest, WatchedResponse};
use crate::event_log::{LogEvent, cut};
use crate::interceptor::Interceptor;
use crate::limits::BODY_BYTES_MAX;
use crate::search::StreamSearch;
use crate::secrets::{BodyFormat, PartOutcome, RequestPart, Standing, Violation};
use crate::target;

/// Exit status after a violation that ends the sandbox.
const EXIT_VIOLATION: i32 = 3;

/// The sending side of the connection to the server.
pub(crate) enum ServerSender {
    Http1(tokio::sync::Mutex<hyper::client::conn::http1::SendRequest<Body>>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

impl ServerSender {
    async fn send(&self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            ServerSender::Http1(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await?;
                sender.send_request(request).await
            }
            ServerSender::Http2(sender) => {
                let mut sender = sender.clone();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// Requests of one connection.
pub(crate) struct Exchange {
    pub(crate) interceptor: Arc<Interceptor>,
    pub(crate) id: u64,
    pub(crate) host: HostName,
    pub(crate) port: u16,
    pub(crate) standings: Arc<[Standing]>,
    pub(crate) used: UsedSecrets,
    pub(crate) sender: ServerSender,
}

/// Reason why a request has no answer of the server.
enum NoAnswer {
    /// It is answered here.
    Refused(Refusal),
    /// The connection ends.
    Broken(BodyError),
}

impl From<Refusal> for NoAnswer {
    fn from(refusal: Refusal) -> NoAnswer {
        NoAnswer::Refused(refusal)
    }
}

/// Request line for events: method, and path without query.
#[derive(Clone)]
struct RequestLine {
    method: String,
    path: String,
}

/// Outcome of all parts of a request's head.
#[derive(Default)]
struct HeadOutcome {
    used: Vec<usize>,
    inert: Vec<(usize, String)>,
}

impl Exchange {
    /// Handles a request. An error ends the connection.
    pub(crate) async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, BodyError> {
        let started = Instant::now();
        let line =
            RequestLine { method: cut(request.method().as_str()), path: cut(request.uri().path()) };
        let mut used = Vec::new();
        let response = match self.exchange(request, &line, &mut used).await {
            Ok(response) => response,
            Err(NoAnswer::Refused(refusal)) => refusal.response(),
            Err(NoAnswer::Broken(error)) => return Err(error),
        };
        let secrets = &self.interceptor.secrets;
        used.sort_unstable();
        used.dedup();
        self.interceptor.log.log(&LogEvent::Http {
            id: self.id,
            host: self.host.as_str(),
            method: &line.method,
            path: line.path.clone(),
            status: response.status().as_u16(),
            duration_ms: started.elapsed().as_millis() as u64,
            secrets: used.iter().map(|secret| secrets.name(*secret)).collect(),
        });
        Ok(response)
    }

    async fn exchange(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        line: &RequestLine,
        used: &mut Vec<usize>,
    ) -> Result<Response<Body>, NoAnswer> {
        let is_http2 = matches!(self.sender, ServerSender::Http2(_));
        let guest_upgrade = takes_upgrade(&request).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        if let Some(why) = target::mismatch(&parts, &self.host, self.port) {
            let text = format!("this connection is to {}, but {why}", self.host.as_str());
            return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, text).into());
        }
        if parts.method == Method::CONNECT {
            let text = "CONNECT is not possible inside of an intercepted connection";
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text).into());
        }
        let outcome = self.process_head(&mut parts, line)?;
        for (secret, place) in &outcome.inert {
            self.log_secret("inert", *secret, place.clone(), None, line);
        }
        clean_headers(&mut parts, guest_upgrade.is_some());
        set_target(&mut parts, &self.host, is_http2)?;
        let body = self.request_body(&mut parts, body, line, used).await?;
        used.extend(&outcome.used);
        if !used.is_empty() {
            if parts.method == Method::TRACE {
                let text = "TRACE would repeat the value of a secret";
                return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text).into());
            }
            // An answer that is encoded cannot be searched.
            parts.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            parts.headers.remove(SEC_WEBSOCKET_EXTENSIONS);
            let mut sent = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            used.iter().for_each(|secret| sent[*secret] = true);
        }
        let (body, violation) = body;
        let sent = self.sender.send(Request::from_parts(parts, body)).await;
        let found = violation.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(violation) = found {
            return Err(self.refusal(&violation, "body").into());
        }
        let response = sent.map_err(|error| NoAnswer::Broken(error.into()))?;
        self.response(response, guest_upgrade, line, !used.is_empty())
    }

    /// Searches the head of a request and replaces placeholders.
    fn process_head(&self, parts: &mut Parts, line: &RequestLine) -> Result<HeadOutcome, Refusal> {
        let table = &self.interceptor.secrets;
        let mut head = HeadOutcome::default();
        if table.is_empty() {
            return Ok(head);
        }
        let mut violations: Vec<(Violation, String)> = Vec::new();
        let mut take = |outcome: PartOutcome, place: &str| {
            head.used.extend(outcome.used);
            head.inert.extend(outcome.inert.into_iter().map(|secret| (secret, place.to_owned())));
            violations.extend(outcome.violation.map(|found| (found, place.to_owned())));
            outcome.replaced
        };
        let path = parts.uri.path().as_bytes();
        let new_path = take(table.process(RequestPart::Path, path, &self.standings), "path");
        let query = parts.uri.query().unwrap_or_default().as_bytes();
        let new_query = take(table.process(RequestPart::Query, query, &self.standings), "query");
        let mut new_values = Vec::new();
        for (index, (name, value)) in parts.headers.iter().enumerate() {
            let outcome = table.process_header(name.as_str(), value.as_bytes(), &self.standings);
            if outcome != PartOutcome::default() {
                let place = format!("header {}", cut(name.as_str()));
                new_values.extend(take(outcome, &place).map(|value| (index, value)));
            }
        }
        let strictest = violations.into_iter().max_by_key(|(violation, _)| violation.action);
        if let Some((violation, place)) = strictest {
            self.report_violation(&violation, place.clone(), line);
            return Err(self.refusal(&violation, &place));
        }
        let invalid = || {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "the value of a secret is not valid in this place",
            )
        };
        if new_path.is_some() || new_query.is_some() {
            let path = new_path.as_ref().map_or(path, |path| &path[..]).to_vec();
            let query = new_query.as_ref().map_or(query, |query| &query[..]).to_vec();
            let has_query = parts.uri.query().is_some();
            let whole = if has_query { [&path[..], b"?", &query].concat() } else { path };
            let whole = PathAndQuery::try_from(&whole[..]).map_err(|_| invalid())?;
            let mut uri = parts.uri.clone().into_parts();
            uri.path_and_query = Some(whole);
            parts.uri = Uri::from_parts(uri).map_err(|_| invalid())?;
        }
        for (index, value) in new_values {
            let mut value = HeaderValue::from_bytes(&value).map_err(|_| invalid())?;
            // HTTP/2 does not keep it in its table of headers.
            value.set_sensitive(true);
            if let Some(header) = parts.headers.values_mut().nth(index) {
                *header = value;
            }
        }
        Ok(head)
    }

    /// Returns the body to send, and where a violation in it will be found.
    async fn request_body(
        self: &Arc<Self>,
        parts: &mut Parts,
        body: Incoming,
        line: &RequestLine,
        used: &mut Vec<usize>,
    ) -> Result<(Body, SharedViolation), NoAnswer> {
        let table = &self.interceptor.secrets;
        let violation = SharedViolation::default();
        if table.changes_bodies(&self.standings) {
            let body = self.changed_body(parts, body, line, used).await?;
            return Ok((body, violation));
        }
        if self.standings.iter().all(|standing| standing.violation().is_none()) {
            return Ok((body.map_err(BodyError::Http).boxed_unsync(), violation));
        }
        let (exchange, line) = (self.clone(), line.clone());
        let watched = WatchedRequest {
            body,
            table: table.clone(),
            standings: self.standings.clone(),
            search: StreamSearch::default(),
            violation: violation.clone(),
            report: Box::new(move |violation| {
                exchange.report_violation(violation, "body".to_owned(), &line);
            }),
        };
        Ok((watched.boxed_unsync(), violation))
    }

    /// Reads a whole body and replaces placeholders in it.
    async fn changed_body(
        &self,
        parts: &mut Parts,
        body: Incoming,
        line: &RequestLine,
        used: &mut Vec<usize>,
    ) -> Result<Body, NoAnswer> {
        let table = &self.interceptor.secrets;
        let limited = Limited::new(body, BODY_BYTES_MAX).collect().await;
        let body = limited.map_err(|error| {
            if error.downcast_ref::<LengthLimitError>().is_some() {
                let text = "a body in which placeholders are replaced has at most 16 MiB";
                NoAnswer::Refused(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text))
            } else {
                NoAnswer::Broken(BodyError::Unreadable(error.to_string()))
            }
        })?;
        let body = body.to_bytes();
        let unsupported =
            |text| NoAnswer::Refused(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        if !body.is_empty() && parts.headers.contains_key(CONTENT_ENCODING) {
            let text = "placeholders cannot be replaced in a body with Content-Encoding";
            return Err(unsupported(text));
        }
        let format = body_format(&parts.headers);
        let outcome = table.process(RequestPart::Body(format), &body, &self.standings);
        if let Some(violation) = outcome.violation {
            self.report_violation(&violation, "body".to_owned(), line);
            return Err(self.refusal(&violation, "body").into());
        }
        for secret in &outcome.inert {
            self.log_secret("inert", *secret, "body".to_owned(), None, line);
        }
        let body = match outcome.replaced {
            None => body,
            Some(_) if format == BodyFormat::Unknown => {
                return Err(unsupported("placeholders cannot be replaced in a body of this type"));
            }
            Some(_) if has_digest(&parts.headers) => {
                return Err(unsupported("placeholders cannot be replaced in a body with a digest"));
            }
            Some(replaced) => Bytes::from(replaced.to_vec()),
        };
        used.extend(outcome.used);
        parts.headers.remove(CONTENT_LENGTH);
        let is_bodiless = [Method::GET, Method::HEAD, Method::OPTIONS, Method::DELETE];
        if !body.is_empty() || !is_bodiless.contains(&parts.method) {
            parts.headers.insert(CONTENT_LENGTH, body.len().into());
        }
        Ok(Full::new(body).map_err(|never| match never {}).boxed_unsync())
    }

    /// Passes a response on.
    fn response(
        self: &Arc<Self>,
        mut response: Response<Incoming>,
        guest_upgrade: Option<OnUpgrade>,
        line: &RequestLine,
        has_secret: bool,
    ) -> Result<Response<Body>, NoAnswer> {
        let is_upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let server_upgrade = is_upgraded.then(|| hyper::upgrade::on(&mut response));
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_watched = used.contains(&true);
        let (mut parts, body) = response.into_parts();
        if is_watched {
            for value in parts.headers.values_mut() {
                let table = &self.interceptor.secrets;
                if let Some(hidden) = table.hide_values(value.as_bytes(), &used) {
                    let found = table.values().find(value.as_bytes()).find(|found| used[found.tag]);
                    if let Some(found) = found {
                        self.log_secret("echo", found.tag, "answer header".to_owned(), None, line);
                    }
                    *value =
                        HeaderValue::from_bytes(&hidden).unwrap_or(HeaderValue::from_static(""));
                }
            }
        }
        // UDP to the port is denied, so an offer of HTTP/3 would only cost time.
        parts.headers.remove("alt-svc");
        remove_framing(&mut parts.headers);
        parts.headers.remove("keep-alive");
        if matches!(self.sender, ServerSender::Http1(_)) {
            // What comes from a server of HTTP/1.0 goes on with a length or in chunks.
            parts.version = Version::HTTP_11;
        }
        if is_upgraded {
            let pair = guest_upgrade.zip(server_upgrade);
            let (guest, server) = pair.ok_or_else(|| {
                let text = "the server switched protocols without being asked";
                NoAnswer::Refused(Refusal::new(StatusCode::BAD_GATEWAY, text))
            })?;
            let (exchange, line) = (self.clone(), line.clone());
            tokio::spawn(async move { exchange.relay(guest, server, &line).await });
            let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
            return Ok(Response::from_parts(parts, body));
        }
        parts.headers.remove(CONNECTION);
        if !is_watched {
            return Ok(Response::from_parts(parts, body.map_err(BodyError::Http).boxed_unsync()));
        }
        if has_secret
            && parts.headers.get(CONTENT_ENCODING).is_some_and(|value| value != "identity")
        {
            let first = used.iter().position(|used| *used).unwrap_or_default();
            self.log_secret("unseen", first, "answer body".to_owned(), None, line);
        }
        let (exchange, line) = (self.clone(), line.clone());
        let watched = WatchedResponse {
            body,
            table: self.interceptor.secrets.clone(),
            used: self.used.clone(),
            search: StreamSearch::default(),
            report: Box::new(move |secret| {
                exchange.log_secret("echo", secret, "answer body".to_owned(), None, &line);
            }),
        };
        Ok(Response::from_parts(parts, watched.boxed_unsync()))
    }

    /// Relays bytes after a change of protocol. Those of the server are searched for values.
    async fn relay(self: Arc<Self>, guest: OnUpgrade, server: OnUpgrade, line: &RequestLine) {
        let (Ok(guest), Ok(server)) = tokio::join!(guest, server) else {
            return;
        };
        let (mut guest_in, mut guest_out) = tokio::io::split(TokioIo::new(guest));
        let (mut server_in, mut server_out) = tokio::io::split(TokioIo::new(server));
        let up = copy(&mut guest_in, &mut server_out, |_| true);
        let mut search = StreamSearch::default();
        let table = &self.interceptor.secrets;
        let down = copy(&mut server_in, &mut guest_out, |bytes| {
            let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            let found = search.push(table.values(), bytes, true);
            match found.into_iter().find(|secret| used[*secret]) {
                None => true,
                Some(secret) => {
                    drop(used);
                    self.log_secret("echo", secret, "upgraded".to_owned(), None, line);
                    false
                }
            }
        });
        tokio::pin!(up, down);
        // Each direction ends by itself; a value in the answer ends both.
        tokio::select! {
            going = &mut up => if going { down.await; },
            going = &mut down => if going { up.await; },
        }
    }

    /// Reports a violation, and ends the process if the action says so.
    fn report_violation(&self, violation: &Violation, place: String, line: &RequestLine) {
        let what = if violation.unpinned { "unpinned" } else { "elsewhere" };
        if violation.action >= ViolationAction::BlockAndLog {
            self.log_secret(what, violation.secret, place, Some(violation), line);
        }
        if violation.action == ViolationAction::BlockAndTerminate {
            let name = self.interceptor.secrets.name(violation.secret);
            let host = self.host.as_str();
            eprintln!(
                "msb-intercept: error: the placeholder of secret {name} was sent to {host}, to which \
                 the secret is not bound"
            );
            std::process::exit(EXIT_VIOLATION);
        }
    }

    fn log_secret(
        &self,
        what: &str,
        secret: usize,
        place: String,
        violation: Option<&Violation>,
        line: &RequestLine,
    ) {
        self.interceptor.log.log(&LogEvent::Secret {
            id: self.id,
            secret: self.interceptor.secrets.name(secret),
            what,
            place,
            form: violation.map(|violation| violation.form.name()),
            host: self.host.as_str(),
            method: &line.method,
            path: line.path.clone(),
            action: violation.map(|violation| violation.action.to_string()),
        });
    }

    fn refusal(&self, violation: &Violation, place: &str) -> Refusal {
        let name = self.interceptor.secrets.name(violation.secret);
        let host = self.host.as_str();
        let text = if violation.unpinned {
            format!(
                "the placeholder of secret {name} is in the {place}, but this address is not one \
                 that msb resolved {host} to"
            )
        } else {
            format!(
                "the placeholder of secret {name} is in the {place}, and the secret is not bound to \
                 {host}; --secret {name}@{host} binds it, passthrough={host} lets the placeholder pass"
            )
        };
        Refusal::new(StatusCode::FORBIDDEN, text)
    }
}

/// Copies a stream to its end, and then shuts the other one down. Returns whether the other
/// direction goes on: `check` refuses bytes before they are written.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    mut check: impl FnMut(&[u8]) -> bool,
) -> bool {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let count = match from.read(&mut bytes).await {
            Ok(0) => return to.shutdown().await.is_ok(),
            Ok(count) => count,
            Err(_) => return false,
        };
        if !check(&bytes[..count]) || to.write_all(&bytes[..count]).await.is_err() {
            return false;
        }
        if to.flush().await.is_err() {
            return false;
        }
    }
}

/// Returns whether a request asks for another protocol that is passed on: all but HTTP/2 without
/// TLS.
fn takes_upgrade(request: &Request<Incoming>) -> bool {
    let wanted = request.headers().get(UPGRADE);
    request.version() == Version::HTTP_11
        && wanted
            .is_some_and(|protocol| !protocol.as_bytes().to_ascii_lowercase().starts_with(b"h2c"))
}

/// Removes headers that concern one connection only (RFC 9110, 7.6.1).
fn clean_headers(parts: &mut Parts, is_upgrade: bool) {
    let headers = &mut parts.headers;
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name: &HeaderName| *name != UPGRADE && name != "te" && *name != HOST)
        .collect();
    for name in listed {
        headers.remove(name);
    }
    headers.remove(CONNECTION);
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
    remove_framing(headers);
    if is_upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(UPGRADE);
    }
}

/// Removes the framing of a body that came in chunks. With both headers the length is wrong (RFC
/// 9112, 6.3).
fn remove_framing(headers: &mut HeaderMap) {
    if headers.remove(TRANSFER_ENCODING).is_some() {
        headers.remove(CONTENT_LENGTH);
    }
}

/// Sets the target that the server reads: a path for HTTP/1, a whole URL for HTTP/2.
fn set_target(parts: &mut Parts, host: &HostName, is_http2: bool) -> Result<(), Refusal> {
    let invalid = |_| Refusal::new(StatusCode::BAD_REQUEST, "invalid target");
    let path = parts.uri.path_and_query().cloned();
    let path = path.unwrap_or(PathAndQuery::from_static("/"));
    let named = parts.uri.authority().map(|authority| authority.as_str().to_owned());
    let header = parts.headers.get(HOST).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let authority = named.or(header).unwrap_or_else(|| host.as_str().to_owned());
    if is_http2 {
        parts.headers.remove(HOST);
        let uri = Uri::builder().scheme("https").authority(authority).path_and_query(path);
        parts.uri = uri.build().map_err(invalid)?;
        parts.version = Version::HTTP_2;
    } else {
        if !parts.headers.contains_key(HOST) {
            let host = HeaderValue::from_str(&authority);
            let invalid = |_| Refusal::new(StatusCode::BAD_REQUEST, "invalid host");
            parts.headers.insert(HOST, host.map_err(invalid)?);
        }
        parts.uri = Uri::builder().path_and_query(path).build().map_err(invalid)?;
        parts.version = Version::HTTP_11;
    }
    Ok(())
}

/// Returns the format of a body, by its Content-Type.
fn body_format(headers: &HeaderMap) -> BodyFormat {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "application/json" => BodyFormat::Json,
        kind if kind.ends_with("+json") => BodyFormat::Json,
        "application/x-www-form-urlencoded" => BodyFormat::Form,
        kind if kind.starts_with("text/") || kind.starts_with("multipart/") => BodyFormat::Text,
        _ => BodyFormat::Unknown,
    }
}

fn has_digest(headers: &HeaderMap) -> bool {
    let digests = ["content-md5", "digest", "content-digest", "repr-digest"];
    digests.iter().any(|name| headers.contains_key(*name))
}
