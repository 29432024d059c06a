//! HTTP client of one registry: authentication, redirects and errors.
//!
//! This module follows redirects itself. Credentials and tokens belong to the registry's origin:
//! they are not sent to another origin, and only a challenge (401) from the registry's origin is
//! followed. No redirect leads to a connection that is less secure than the first.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use libmsb::digest::Digest;
use libmsb::reference::Reference;
use serde::Deserialize;
use ureq::Body;
use ureq::http::{Response, Uri};

use super::challenge::AuthChallenge;
use super::connection::{BodyReader, HttpClient, HttpOptions, TransportError};
use super::credentials::{Credentials, basic};
use super::manifest::{MANIFEST_BYTES_MAX, check_document};
use super::proxy::is_loopback;
use super::retry::{FetchError, RetryBackoff, retry, retry_after};
use super::url::resolve;
use super::warnings::RegistryWarnings;
use super::{DOCKER_IO, DOCKER_IO_HOST, token};

/// Maximum of scopes that a registry's challenges may add to a token.
const SCOPES_MAX: usize = 16;
/// Requests with a new challenge each: the first one, one with a token, and one with a token for
/// the scopes of its challenge.
const ATTEMPTS_MAX: usize = 3;
/// Maximum of consecutive redirects.
const REDIRECTS_MAX: usize = 10;
/// Bytes of the body of an error response.
const REFUSAL_BYTES_MAX: u64 = 64 << 10;

/// Media types of manifests that msb supports.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// A registry that has answered a first request.
pub(crate) struct RegistryClient {
    http: HttpClient,
    /// Name of the registry in references.
    registry: String,
    /// Scheme and authority of its URLs.
    base: String,
    tls_policy: TlsPolicy,
    credentials: Option<Credentials>,
    auth: Mutex<AuthState>,
    warnings: RegistryWarnings,
}

/// Requirement of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsPolicy {
    /// TLS is required.
    Required,
    /// TLS is required except on loopback addresses, for a registry on the host.
    ExceptLoopback,
    /// TLS is optional, at the user's request.
    Optional,
}

impl TlsPolicy {
    fn of(host: &str, options: &HttpOptions) -> TlsPolicy {
        if options.insecure {
            TlsPolicy::Optional
        } else if is_loopback(host_of(host)) {
            TlsPolicy::ExceptLoopback
        } else {
            TlsPolicy::Required
        }
    }

    /// Returns whether a URL satisfies the requirement.
    pub(crate) fn allows(self, uri: &Uri) -> bool {
        match self {
            _ if uri.scheme_str() == Some("https") => true,
            TlsPolicy::Required => false,
            TlsPolicy::ExceptLoopback => uri.host().is_some_and(is_loopback),
            TlsPolicy::Optional => true,
        }
    }
}

/// Authentication state: the last challenge and the tokens.
struct AuthState {
    challenge: AuthChallenge,
    /// Scopes that challenges have named. A registry may name another repository than the
    /// reference, as proxies do, or only a placeholder, so they are requested in addition.
    scopes: Vec<String>,
    /// Tokens by scope of the request.
    tokens: HashMap<String, String>,
}

impl AuthState {
    /// Takes over the challenge to a request. Returns whether it names a new scope.
    fn challenged(&mut self, scope: &str, challenge: AuthChallenge) -> bool {
        self.tokens.remove(scope);
        let known = self.scopes.len();
        if let AuthChallenge::Bearer { scopes, .. } = &challenge {
            for named in scopes {
                let is_new = named != scope && !self.scopes.contains(named);
                if is_new && self.scopes.len() < SCOPES_MAX {
                    self.scopes.push(named.clone());
                }
            }
        }
        self.challenge = challenge;
        self.scopes.len() > known
    }

    /// Returns all scopes for a token: that of the request first.
    fn scopes_for(&self, scope: &str) -> Vec<String> {
        // A login has no scope.
        let own = Some(scope).filter(|scope| !scope.is_empty());
        let named = self.scopes.iter().filter(|named| *named != scope).map(String::as_str);
        own.into_iter().chain(named).map(str::to_owned).collect()
    }
}

/// Origin of a response.
enum ResponseOrigin {
    /// The registry's own origin; its challenge is valid.
    Registry,
    /// The host of a redirect target. Its challenge is ignored, because it could redirect the
    /// password.
    RedirectTarget(String),
}

/// The body of a blob, or of its rest.
pub(crate) struct BlobBody {
    pub(crate) body: BodyReader,
    /// Offset in the blob.
    pub(crate) start: u64,
    /// Length of the body, if the registry sends it.
    pub(crate) length: Option<u64>,
}

impl RegistryClient {
    /// Connects to a registry and reads its challenge.
    pub(crate) fn open(
        registry: &str,
        options: &HttpOptions,
        credentials: Option<Credentials>,
    ) -> Result<RegistryClient> {
        let http = HttpClient::new(options)?;
        let host = if registry == DOCKER_IO { DOCKER_IO_HOST } else { registry };
        let tls_policy = TlsPolicy::of(host, options);
        let (base, challenge) = probe(&http, host, tls_policy != TlsPolicy::Required)
            .with_context(|| format!("registry '{registry}'"))?;
        Ok(RegistryClient {
            http,
            registry: registry.to_owned(),
            base,
            tls_policy,
            credentials,
            auth: Mutex::new(AuthState { challenge, scopes: Vec::new(), tokens: HashMap::new() }),
            warnings: RegistryWarnings::default(),
        })
    }

    /// Returns a backoff for the retries of a blob.
    pub(crate) fn backoff(&self) -> RetryBackoff {
        self.http.backoff().silent()
    }

    /// Checks that the registry accepts the credentials.
    pub(crate) fn check_login(&self) -> Result<()> {
        retry(self.http.backoff(), || {
            let response = self.get("/v2/", "", &[])?;
            drop(response);
            Ok(())
        })
        .with_context(|| format!("registry '{}'", self.registry))
    }

    /// Fetches the manifest or index that a reference, or a digest in its repository, names.
    pub(crate) fn manifest(
        &self,
        reference: &Reference,
        digest: Option<&Digest>,
    ) -> Result<Vec<u8>> {
        let name = match (digest, reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => bail!("the reference has neither tag nor digest"),
        };
        let path = format!("/v2/{}/manifests/{name}", reference.path());
        let get = || {
            let response = self.get(&path, &scope(reference), &[("accept", ACCEPT)])?;
            let named = header(&response, "docker-content-digest").map(str::to_owned);
            let bytes = self.http.document(response, MANIFEST_BYTES_MAX)?;
            // A digest of another algorithm is not known here.
            if let Some(named) = named.and_then(|named| named.parse().ok()) {
                check_document(&bytes, &named, None).map_err(FetchError::Permanent)?;
            }
            Ok(bytes)
        };
        retry(self.http.backoff(), get)
            .with_context(|| format!("manifest '{name}' of registry '{}'", self.registry))
    }

    /// Fetches a blob that is a document.
    pub(crate) fn document(
        &self,
        reference: &Reference,
        digest: &Digest,
        bytes_max: u64,
    ) -> Result<Vec<u8>> {
        let path = format!("/v2/{}/blobs/{digest}", reference.path());
        let get = || {
            let response = self.get(&path, &scope(reference), &[])?;
            self.http.document(response, bytes_max)
        };
        retry(self.http.backoff(), get)
            .with_context(|| format!("blob {digest} of registry '{}'", self.registry))
    }

    /// Requests a blob from an offset. The registry may start before it.
    pub(crate) fn blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobBody, FetchError> {
        let path = format!("/v2/{}/blobs/{digest}", reference.path());
        let range = format!("bytes={offset}-");
        let headers = [("range", range.as_str())];
        let headers = if offset > 0 { &headers[..] } else { &[] };
        let response = self.get(&path, &scope(reference), headers)?;
        let start = if response.status().as_u16() == 206 {
            let value = header(&response, "content-range").unwrap_or_default();
            start_of_range(value).ok_or_else(|| {
                FetchError::Permanent(anyhow!(
                    "partial response without a valid Content-Range header"
                ))
            })?
        } else {
            0
        };
        if start > offset {
            return Err(FetchError::Permanent(anyhow!(
                "the response starts after the requested offset"
            )));
        }
        let length = response.body().content_length();
        Ok(BlobBody { body: self.http.body(response), start, length })
    }

    /// Sends an authenticated GET request; repeats it after a new challenge.
    fn get(
        &self,
        path: &str,
        scope: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, FetchError> {
        for attempt in 1..=ATTEMPTS_MAX {
            let authorization = self.authorization(scope)?;
            let (response, origin_of_response) =
                self.follow(path, headers, authorization.as_deref())?;
            let status = response.status().as_u16();
            if let (401 | 403, ResponseOrigin::RedirectTarget(host)) = (status, &origin_of_response)
            {
                return Err(FetchError::Permanent(access_denied_by_target(host).into()));
            }
            if status != 401 || attempt == ATTEMPTS_MAX {
                return self.check_status(response);
            }
            let challenge = challenge_of(&response);
            if attempt > 1 && challenge.is_err() {
                return self.check_status(response);
            }
            let names_new_scope = self.auth().challenged(scope, challenge?);
            if attempt > 1 && !names_new_scope {
                return self.check_status(response);
            }
        }
        Err(FetchError::Permanent(anyhow!("the registry rejected the credentials three times")))
    }

    fn authorization(&self, scope: &str) -> Result<Option<String>, FetchError> {
        let (challenge, scopes) = {
            let auth = self.auth();
            if let Some(token) = auth.tokens.get(scope) {
                return Ok(Some(format!("Bearer {token}")));
            }
            (auth.challenge.clone(), auth.scopes_for(scope))
        };
        match (challenge, &self.credentials) {
            (AuthChallenge::Anonymous, _) | (AuthChallenge::Basic, None) => Ok(None),
            (AuthChallenge::Basic, Some(credentials)) => Ok(Some(basic(credentials)?)),
            (AuthChallenge::Bearer { realm, service, .. }, credentials) => {
                let request = token::TokenRequest {
                    realm: &realm,
                    service: service.as_deref(),
                    scopes: &scopes,
                    credentials: credentials.as_ref(),
                    tls_policy: self.tls_policy,
                };
                let token = token::fetch(&self.http, &request)?;
                let value = format!("Bearer {token}");
                self.auth().tokens.insert(scope.to_owned(), token);
                Ok(Some(value))
            }
        }
    }

    fn auth(&self) -> MutexGuard<'_, AuthState> {
        self.auth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request and follows redirects. After the first one to another origin no credentials
    /// are sent, not even after a redirect back.
    fn follow(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        authorization: Option<&str>,
    ) -> Result<(Response<Body>, ResponseOrigin), FetchError> {
        let first: Uri = parse_uri(&format!("{}{path}", self.base))?;
        let mut uri = first.clone();
        let mut left_origin = false;
        for _ in 0..=REDIRECTS_MAX {
            left_origin |= origin(&uri) != origin(&first);
            let mut headers = headers.to_vec();
            if let Some(authorization) = authorization.filter(|_| !left_origin) {
                headers.push(("authorization", authorization));
            }
            let response =
                self.http.get(&uri, &headers).map_err(|error| error.into_fetch_error(true))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                let origin_of_response = if left_origin {
                    ResponseOrigin::RedirectTarget(uri.host().unwrap_or_default().to_owned())
                } else {
                    ResponseOrigin::Registry
                };
                return Ok((response, origin_of_response));
            }
            let location = response.headers().get("location");
            let location = location.context("redirect without a Location header")?;
            uri = target(&uri, location.as_bytes())?;
            if !self.tls_policy.allows(&uri) {
                return Err(FetchError::Permanent(anyhow!(
                    "redirect to '{}', which does not use TLS",
                    escape(&uri.to_string())
                )));
            }
        }
        Err(FetchError::Permanent(anyhow!("more than {REDIRECTS_MAX} redirects")))
    }

    /// Returns the response, or an error for its status.
    fn check_status(&self, response: Response<Body>) -> Result<Response<Body>, FetchError> {
        self.warnings.report(&self.registry, &response);
        let status = response.status().as_u16();
        if matches!(status, 200 | 206) {
            return Ok(response);
        }
        let delay = header(&response, "retry-after").and_then(retry_after);
        let reason = self
            .http
            .document(response, REFUSAL_BYTES_MAX)
            .map(|bytes| reason(&bytes))
            .unwrap_or_default();
        let reason = if reason.is_empty() { reason } else { format!(": {reason}") };
        Err(match status {
            408 | 429 | 500 | 502 | 503 | 504 => {
                FetchError::Transient { error: anyhow!("HTTP status {status}{reason}"), delay }
            }
            401 | 403 => FetchError::Permanent(self.access_denied(&reason).into()),
            404 => FetchError::Permanent(Failure::not_found(format!("not found{reason}")).into()),
            _ => FetchError::Permanent(anyhow!("HTTP status {status}{reason}")),
        })
    }

    fn access_denied(&self, reason: &str) -> Failure {
        let failure = Failure::failed(format!("access denied{reason}"));
        if self.credentials.is_some() {
            return failure.hint(format!(
                "the credentials for '{}' were accepted but do not grant access; log in as another \
                 user: msb image registry login {}",
                self.registry, self.registry
            ));
        }
        failure.hint(format!(
            "the image may not exist; if it is private, log in: msb image registry login {}",
            self.registry
        ))
    }
}

/// Builds the error for a redirect target that denies access. The registry's credentials do not
/// apply there.
fn access_denied_by_target(host: &str) -> Failure {
    Failure::failed(format!(
        "access denied by the redirect target '{}'; no credentials are sent there",
        escape(host)
    ))
}

/// Finds the scheme of a registry: HTTPS, or HTTP if that is allowed and the server does not speak
/// TLS.
fn probe(http: &HttpClient, host: &str, http_allowed: bool) -> Result<(String, AuthChallenge)> {
    let secure = format!("https://{host}");
    let mut speaks_no_tls = false;
    let found = retry(http.backoff(), || {
        ping(http, &secure).map_err(|unreached| match unreached {
            PingError::Transport(error) => {
                speaks_no_tls = error.speaks_no_tls();
                let alternative = speaks_no_tls && http_allowed;
                match error.into_fetch_error(false) {
                    FetchError::Transient { error, .. } if alternative => {
                        FetchError::Permanent(error)
                    }
                    into_fetch_error => into_fetch_error,
                }
            }
            PingError::Fetch(into_fetch_error) => into_fetch_error,
        })
    });
    match found {
        Ok(challenge) => Ok((secure, challenge)),
        Err(_) if speaks_no_tls && http_allowed => {
            let plain = format!("http://{host}");
            let challenge = retry(http.backoff(), || {
                ping(http, &plain).map_err(|unreached| match unreached {
                    PingError::Transport(error) => error.into_fetch_error(false),
                    PingError::Fetch(into_fetch_error) => into_fetch_error,
                })
            })?;
            Ok((plain, challenge))
        }
        Err(error) => Err(error),
    }
}

/// Error of the first request to a registry.
enum PingError {
    Transport(TransportError),
    Fetch(FetchError),
}

fn ping(http: &HttpClient, base: &str) -> Result<AuthChallenge, PingError> {
    let uri = parse_uri(&format!("{base}/v2/")).map_err(PingError::Fetch)?;
    let response = http.get(&uri, &[]).map_err(PingError::Transport)?;
    match response.status().as_u16() {
        401 => challenge_of(&response).map_err(PingError::Fetch),
        status @ (429 | 500 | 502 | 503 | 504) => Err(PingError::Fetch(FetchError::Transient {
            error: anyhow!("HTTP status {status}"),
            delay: header(&response, "retry-after").and_then(retry_after),
        })),
        // Some registries answer this request wrongly; the next request shows whether they work.
        _ => Ok(AuthChallenge::Anonymous),
    }
}

fn challenge_of(response: &Response<Body>) -> Result<AuthChallenge, FetchError> {
    let values = response.headers().get_all("www-authenticate");
    let values: Vec<_> =
        values.iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    AuthChallenge::parse(values.iter().map(|value| value.as_ref()))
        .ok_or_else(|| FetchError::Permanent(anyhow!("unsupported authentication scheme")))
}

fn scope(reference: &Reference) -> String {
    format!("repository:{}:pull", reference.path())
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn host_of(authority: &str) -> &str {
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

fn parse_uri(text: &str) -> Result<Uri, FetchError> {
    text.parse().map_err(|_| FetchError::Permanent(anyhow!("invalid URL '{}'", escape(text))))
}

/// Returns scheme, host and port.
pub(crate) fn origin(uri: &Uri) -> (Option<&str>, String, Option<u16>) {
    let default = match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    };
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    (uri.scheme_str(), host, uri.port_u16().or(default))
}

/// Resolves the target of a redirect.
fn target(from: &Uri, location: &[u8]) -> Result<Uri, FetchError> {
    let uri = parse_uri(&resolve(from, location))?;
    check_address(&uri)?;
    Ok(uri)
}

/// Checks a URL from a server: it must be HTTP(S) without credentials.
pub(crate) fn check_address(uri: &Uri) -> Result<(), FetchError> {
    let http = matches!(uri.scheme_str(), Some("http" | "https"));
    let named = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if http && !named {
        return Ok(());
    }
    Err(FetchError::Permanent(anyhow!(
        "the registry gave the URL '{}', which is not HTTP(S) or contains credentials",
        escape(&uri.to_string())
    )))
}

/// Parses the first byte of `bytes START-END/TOTAL`.
fn start_of_range(value: &str) -> Option<u64> {
    let (start, _) = value.trim().strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}

#[derive(Deserialize)]
struct ErrorResponse {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Returns the reason in a registry's error response, shortened.
fn reason(bytes: &[u8]) -> String {
    let Ok(refusal) = serde_json::from_slice::<ErrorResponse>(bytes) else {
        return String::new();
    };
    let first = refusal.errors.first();
    let words =
        first.map(|entry| if entry.message.is_empty() { &entry.code } else { &entry.message });
    words.map(|words| words.chars().take(200).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(location: &str) -> Option<String> {
        let from: Uri = "https://r.example:5000/v2/a/blobs/x".parse().unwrap();
        target(&from, location.as_bytes()).ok().map(|uri| uri.to_string())
    }

    #[test]
    fn redirect_targets_are_resolved_and_checked() {
        assert_eq!(to("https://cdn.example/x?y=1").unwrap(), "https://cdn.example/x?y=1");
        assert_eq!(to("//cdn.example/x").unwrap(), "https://cdn.example/x");
        assert_eq!(to("/other").unwrap(), "https://r.example:5000/other");
        assert_eq!(to("y").unwrap(), "https://r.example:5000/v2/a/blobs/y");
        for bad in ["file:///etc/passwd", "https://u:p@r.example/", "ftp://x/", "https://"] {
            assert_eq!(to(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let of = |text: &str| {
            let uri: Uri = text.parse().unwrap();
            let (scheme, host, port) = origin(&uri);
            (scheme.map(str::to_owned), host, port)
        };
        assert_eq!(of("https://R.example/x"), of("https://r.example:443/y"));
        assert_ne!(of("https://r.example/"), of("http://r.example/"));
        assert_ne!(of("https://r.example/"), of("https://r.example.evil/"));
        assert_ne!(of("https://r.example/"), of("https://r.example:444/"));
    }

    #[test]
    fn plain_http_needs_loopback_or_insecure() {
        let allows =
            |tls_policy: TlsPolicy, address: &str| tls_policy.allows(&address.parse().unwrap());
        assert!(allows(TlsPolicy::Required, "https://x.example/"));
        assert!(!allows(TlsPolicy::Required, "http://127.0.0.1/"));
        assert!(allows(TlsPolicy::ExceptLoopback, "http://127.0.0.1:5000/"));
        assert!(!allows(TlsPolicy::ExceptLoopback, "http://x.example/"));
        assert!(allows(TlsPolicy::Optional, "http://x.example/"));
        let host = |host: &str| TlsPolicy::of(host, &HttpOptions::default());
        assert_eq!(host("localhost:5000"), TlsPolicy::ExceptLoopback);
        assert_eq!(host("localhost.example:5000"), TlsPolicy::Required);
    }

    #[test]
    fn the_start_of_a_range_is_read() {
        assert_eq!(start_of_range("bytes 5-9/10"), Some(5));
        assert_eq!(start_of_range("bytes */10"), None);
        assert_eq!(start_of_range("5-9/10"), None);
    }

    #[test]
    fn an_error_response_keeps_the_registrys_message() {
        let text = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
        assert_eq!(reason(text), "slow down");
        assert_eq!(reason(br#"{"errors":[{"code":"DENIED"}]}"#), "DENIED");
        assert_eq!(reason(b"<html>"), "");
    }
}
