//! Requests to one registry.
//!
//! Redirects are followed here, not by the HTTP library. Credentials and tokens belong to the registry's origin: they are
//! not sent to another one, and only a challenge (401) of the registry's origin is obeyed. No redirect leads to a
//! connection that is less safe than the first.

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

use super::challenge::Challenge;
use super::connection::{BodyReader, Http, Options, Problem};
use super::credentials::{Credentials, basic};
use super::manifest::MANIFEST_BYTES_MAX;
use super::proxy::is_loopback;
use super::retry::{Patience, Trouble, persist, retry_after};
use super::{DOCKER_IO, DOCKER_IO_HOST, token};

/// Redirects in a row.
const REDIRECTS_MAX: usize = 10;
/// Bytes of an answer that says why something is refused.
const REFUSAL_BYTES_MAX: u64 = 64 << 10;

/// What we understand of manifests.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// A registry that has answered.
pub(crate) struct Client {
    http: Http,
    /// As references have it.
    registry: String,
    /// Scheme and host.
    base: String,
    trust: Trust,
    credentials: Option<Credentials>,
    access: Mutex<Access>,
}

/// Who may do without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Nobody.
    Secure,
    /// This machine, where the registry is too.
    Loopback,
    /// Everybody: so it was asked for.
    Insecure,
}

impl Trust {
    fn of(host: &str, options: &Options) -> Trust {
        if options.insecure {
            Trust::Insecure
        } else if is_loopback(host_of(host)) {
            Trust::Loopback
        } else {
            Trust::Secure
        }
    }

    /// Whether an address may be used.
    pub(crate) fn allows(self, uri: &Uri) -> bool {
        match self {
            _ if uri.scheme_str() == Some("https") => true,
            Trust::Secure => false,
            Trust::Loopback => uri.host().is_some_and(is_loopback),
            Trust::Insecure => true,
        }
    }
}

/// What was learned about how to get in.
struct Access {
    challenge: Challenge,
    /// By scope.
    tokens: HashMap<String, String>,
}

/// The origin that a response came from.
enum Answered {
    /// The registry's own: its challenge counts.
    AtHome,
    /// The host that a redirect led to. Its challenge is ignored: it would choose where the password goes.
    Elsewhere(String),
}

/// A blob, or the rest of one, on its way.
pub(crate) struct BlobBody {
    pub(crate) body: BodyReader,
    /// Where in the blob it begins.
    pub(crate) start: u64,
    /// How much is to come, if the registry says so.
    pub(crate) length: Option<u64>,
}

impl Client {
    /// Asks the registry whether it is there and what it wants to know.
    pub(crate) fn open(
        registry: &str,
        options: &Options,
        credentials: Option<Credentials>,
    ) -> Result<Client> {
        let http = Http::new(options)?;
        let host = if registry == DOCKER_IO {
            DOCKER_IO_HOST
        } else {
            registry
        };
        let trust = Trust::of(host, options);
        let (base, challenge) = reach(&http, host, trust != Trust::Secure)
            .with_context(|| format!("registry '{registry}'"))?;
        Ok(Client {
            http,
            registry: registry.to_owned(),
            base,
            trust,
            credentials,
            access: Mutex::new(Access {
                challenge,
                tokens: HashMap::new(),
            }),
        })
    }

    /// How long a blob is worth trying.
    pub(crate) fn patience(&self) -> Patience {
        self.http.patience()
    }

    /// Whether the registry takes the credentials.
    pub(crate) fn check_login(&self) -> Result<()> {
        persist(self.http.patience(), || {
            let response = self.get("/v2/", "", &[])?;
            drop(response);
            Ok(())
        })
        .with_context(|| format!("registry '{}'", self.registry))
    }

    /// The document that a reference, or a digest in its repository, leads to.
    pub(crate) fn manifest(
        &self,
        reference: &Reference,
        digest: Option<&Digest>,
    ) -> Result<Vec<u8>> {
        let wanted = match (digest, reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.to_owned(),
            (None, None) => bail!("the reference has neither tag nor digest"),
        };
        let path = format!("/v2/{}/manifests/{wanted}", reference.path());
        let get = || {
            let response = self.get(&path, &scope(reference), &[("accept", ACCEPT)])?;
            self.http.document(response, MANIFEST_BYTES_MAX)
        };
        persist(self.http.patience(), get)
            .with_context(|| format!("manifest '{wanted}' of registry '{}'", self.registry))
    }

    /// A blob that is a document.
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
        persist(self.http.patience(), get)
            .with_context(|| format!("blob {digest} of registry '{}'", self.registry))
    }

    /// Asks once for a blob from an offset on. The registry may begin before it.
    pub(crate) fn blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobBody, Trouble> {
        let path = format!("/v2/{}/blobs/{digest}", reference.path());
        let range = format!("bytes={offset}-");
        let headers = [("range", range.as_str())];
        let headers = if offset > 0 { &headers[..] } else { &[] };
        let response = self.get(&path, &scope(reference), headers)?;
        let start = if response.status().as_u16() == 206 {
            let value = header(&response, "content-range").unwrap_or_default();
            start_of_range(value).ok_or_else(|| {
                Trouble::Final(anyhow!(
                    "the registry sends a part of a blob and does not say which"
                ))
            })?
        } else {
            0
        };
        if start > offset {
            return Err(Trouble::Final(anyhow!(
                "the registry leaves out a part of a blob"
            )));
        }
        let length = response.body().content_length();
        Ok(BlobBody {
            body: self.http.body(response),
            start,
            length,
        })
    }

    /// Asks once, with what the registry wants to know; if it finds that too old, once more.
    fn get(
        &self,
        path: &str,
        scope: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, Trouble> {
        for last in [false, true] {
            let authorization = self.authorization(scope)?;
            let (response, answered) = self.follow(path, headers, authorization.as_deref())?;
            let status = response.status().as_u16();
            if let (401 | 403, Answered::Elsewhere(host)) = (status, &answered) {
                return Err(Trouble::Final(denied_elsewhere(host).into()));
            }
            if status != 401 || last {
                return self.accepted(response);
            }
            let mut access = self.access();
            access.tokens.remove(scope);
            access.challenge = challenge_of(&response)?;
        }
        Err(Trouble::Final(anyhow!("the registry does not answer")))
    }

    fn authorization(&self, scope: &str) -> Result<Option<String>, Trouble> {
        let challenge = {
            let access = self.access();
            if let Some(token) = access.tokens.get(scope) {
                return Ok(Some(format!("Bearer {token}")));
            }
            access.challenge.clone()
        };
        match (challenge, &self.credentials) {
            (Challenge::Open, _) | (Challenge::Basic, None) => Ok(None),
            (Challenge::Basic, Some(credentials)) => Ok(Some(basic(credentials)?)),
            (Challenge::Bearer { realm, service }, credentials) => {
                let request = token::Request {
                    realm: &realm,
                    service: service.as_deref(),
                    scope,
                    credentials: credentials.as_ref(),
                    trust: self.trust,
                };
                let token = token::fetch(&self.http, &request)?;
                let value = format!("Bearer {token}");
                self.access().tokens.insert(scope.to_owned(), token);
                Ok(Some(value))
            }
        }
    }

    fn access(&self) -> MutexGuard<'_, Access> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request and follows redirects. The first one that leads to another origin ends the use of credentials:
    /// they are not sent there, nor after a redirect back.
    fn follow(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        authorization: Option<&str>,
    ) -> Result<(Response<Body>, Answered), Trouble> {
        let home: Uri = parse_uri(&format!("{}{path}", self.base))?;
        let mut uri = home.clone();
        let mut left_home = false;
        for _ in 0..=REDIRECTS_MAX {
            left_home |= origin(&uri) != origin(&home);
            let mut headers = headers.to_vec();
            if let Some(authorization) = authorization.filter(|_| !left_home) {
                headers.push(("authorization", authorization));
            }
            let response = self
                .http
                .get(&uri, &headers)
                .map_err(|problem| problem.trouble(true))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                let answered = if left_home {
                    Answered::Elsewhere(uri.host().unwrap_or_default().to_owned())
                } else {
                    Answered::AtHome
                };
                return Ok((response, answered));
            }
            let location = header(&response, "location")
                .context("the registry sends us on and does not say where to")?;
            uri = target(&uri, location)?;
            if !self.trust.allows(&uri) {
                return Err(Trouble::Final(anyhow!(
                    "the registry sends us on to '{}', without TLS",
                    escape(&uri.to_string())
                )));
            }
        }
        Err(Trouble::Final(anyhow!(
            "the registry sends us on more than {REDIRECTS_MAX} times"
        )))
    }

    /// The response, unless it is a refusal.
    fn accepted(&self, response: Response<Body>) -> Result<Response<Body>, Trouble> {
        let status = response.status().as_u16();
        if matches!(status, 200 | 206) {
            return Ok(response);
        }
        let pause = header(&response, "retry-after").and_then(retry_after);
        let said = self
            .http
            .document(response, REFUSAL_BYTES_MAX)
            .map(|bytes| reason(&bytes))
            .unwrap_or_default();
        let said = if said.is_empty() {
            said
        } else {
            format!(": {said}")
        };
        Err(match status {
            408 | 429 | 500 | 502 | 503 | 504 => Trouble::Passing {
                error: anyhow!("it answers with status {status}{said}"),
                pause,
            },
            401 | 403 => Trouble::Final(self.denied(&said).into()),
            404 => Trouble::Final(
                Failure::not_found(format!("the registry does not have it{said}")).into(),
            ),
            _ => Trouble::Final(anyhow!("it answers with status {status}{said}")),
        })
    }

    fn denied(&self, said: &str) -> Failure {
        let failure = Failure::failed(format!("access denied{said}"));
        if self.credentials.is_some() {
            return failure.hint(format!(
                "the registry knows who asks, by the credentials for '{}'; others can be given: msb image registry login {}",
                self.registry, self.registry
            ));
        }
        failure.hint(format!(
            "perhaps there is no such image; if it is not for everybody: msb image registry login {}",
            self.registry
        ))
    }
}

/// The error for a refusal by the target of a redirect. Credentials of the registry are of no use there.
fn denied_elsewhere(host: &str) -> Failure {
    Failure::failed(format!(
        "access denied by '{}', where the registry redirects to; no credentials are sent there",
        escape(host)
    ))
}

/// Looks where and how a registry answers: with TLS, or without where that is allowed and TLS is not spoken.
fn reach(http: &Http, host: &str, may_be_plain: bool) -> Result<(String, Challenge)> {
    let secure = format!("https://{host}");
    let mut no_tls = false;
    let found = persist(http.patience(), || {
        ping(http, &secure).map_err(|unreached| match unreached {
            Unreached::Problem(problem) => {
                no_tls = problem.is_no_tls();
                let alternative = no_tls && may_be_plain;
                match problem.trouble(false) {
                    Trouble::Passing { error, .. } if alternative => Trouble::Final(error),
                    trouble => trouble,
                }
            }
            Unreached::Trouble(trouble) => trouble,
        })
    });
    match found {
        Ok(challenge) => Ok((secure, challenge)),
        Err(_) if no_tls && may_be_plain => {
            let plain = format!("http://{host}");
            let challenge = persist(http.patience(), || {
                ping(http, &plain).map_err(|unreached| match unreached {
                    Unreached::Problem(problem) => problem.trouble(false),
                    Unreached::Trouble(trouble) => trouble,
                })
            })?;
            Ok((plain, challenge))
        }
        Err(error) => Err(error),
    }
}

/// Why a first request brought no answer that can be used.
enum Unreached {
    Problem(Problem),
    Trouble(Trouble),
}

fn ping(http: &Http, base: &str) -> Result<Challenge, Unreached> {
    let uri = parse_uri(&format!("{base}/v2/")).map_err(Unreached::Trouble)?;
    let response = http.get(&uri, &[]).map_err(Unreached::Problem)?;
    match response.status().as_u16() {
        401 => challenge_of(&response).map_err(Unreached::Trouble),
        status @ (429 | 500 | 502 | 503 | 504) => Err(Unreached::Trouble(Trouble::Passing {
            error: anyhow!("it answers with status {status}"),
            pause: header(&response, "retry-after").and_then(retry_after),
        })),
        // Not all of them answer here as they should; what is asked next will tell.
        _ => Ok(Challenge::Open),
    }
}

fn challenge_of(response: &Response<Body>) -> Result<Challenge, Trouble> {
    let values = response.headers().get_all("www-authenticate");
    let values = values.iter().filter_map(|value| value.to_str().ok());
    Challenge::parse(values).ok_or_else(|| {
        Trouble::Final(anyhow!(
            "the registry wants to know who asks, in a way that is not known here"
        ))
    })
}

fn scope(reference: &Reference) -> String {
    format!("repository:{}:pull", reference.path())
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn host_of(authority: &str) -> &str {
    authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host)
}

fn parse_uri(text: &str) -> Result<Uri, Trouble> {
    text.parse()
        .map_err(|_| Trouble::Final(anyhow!("'{}' is no address", escape(text))))
}

/// Scheme, host and port.
pub(crate) fn origin(uri: &Uri) -> (Option<&str>, String, Option<u16>) {
    let default = match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    };
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    (uri.scheme_str(), host, uri.port_u16().or(default))
}

/// Where a redirect leads.
fn target(from: &Uri, location: &str) -> Result<Uri, Trouble> {
    let (scheme, authority) = (
        from.scheme_str().unwrap_or("https"),
        from.authority()
            .map(|authority| authority.as_str())
            .unwrap_or_default(),
    );
    let text = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri = parse_uri(&text)?;
    check_address(&uri)?;
    Ok(uri)
}

/// An address that a server gave us: HTTP, and without credentials in it.
pub(crate) fn check_address(uri: &Uri) -> Result<(), Trouble> {
    let http = matches!(uri.scheme_str(), Some("http" | "https"));
    let named = uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'));
    if http && !named {
        return Ok(());
    }
    Err(Trouble::Final(anyhow!(
        "the registry names the address '{}', which is not to be used",
        escape(&uri.to_string())
    )))
}

/// The first byte of `bytes START-END/TOTAL`.
fn start_of_range(value: &str) -> Option<u64> {
    let (start, _) = value.trim().strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}

#[derive(Deserialize)]
struct Refusal {
    errors: Vec<RefusalEntry>,
}

#[derive(Deserialize)]
struct RefusalEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What a registry says about a refusal, in a few words.
fn reason(bytes: &[u8]) -> String {
    let Ok(refusal) = serde_json::from_slice::<Refusal>(bytes) else {
        return String::new();
    };
    let first = refusal.errors.first();
    let words = first.map(|entry| {
        if entry.message.is_empty() {
            &entry.code
        } else {
            &entry.message
        }
    });
    words
        .map(|words| words.chars().take(200).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(location: &str) -> Option<String> {
        let from: Uri = "https://r.example:5000/v2/a/blobs/x".parse().unwrap();
        target(&from, location).ok().map(|uri| uri.to_string())
    }

    #[test]
    fn redirects_lead_where_they_say_and_nowhere_odd() {
        assert_eq!(
            to("https://cdn.example/x?y=1").unwrap(),
            "https://cdn.example/x?y=1"
        );
        assert_eq!(to("//cdn.example/x").unwrap(), "https://cdn.example/x");
        assert_eq!(to("/other").unwrap(), "https://r.example:5000/other");
        assert_eq!(to("y").unwrap(), "https://r.example:5000/v2/a/blobs/y");
        for bad in [
            "file:///etc/passwd",
            "https://u:p@r.example/",
            "ftp://x/",
            "https://",
        ] {
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
    fn without_tls_only_what_is_trusted_is_used() {
        let allows = |trust: Trust, address: &str| trust.allows(&address.parse().unwrap());
        assert!(allows(Trust::Secure, "https://x.example/"));
        assert!(!allows(Trust::Secure, "http://127.0.0.1/"));
        assert!(allows(Trust::Loopback, "http://127.0.0.1:5000/"));
        assert!(!allows(Trust::Loopback, "http://x.example/"));
        assert!(allows(Trust::Insecure, "http://x.example/"));
        let host = |host: &str| Trust::of(host, &Options::default());
        assert_eq!(host("localhost:5000"), Trust::Loopback);
        assert_eq!(host("localhost.example:5000"), Trust::Secure);
    }

    #[test]
    fn the_start_of_a_range_is_read() {
        assert_eq!(start_of_range("bytes 5-9/10"), Some(5));
        assert_eq!(start_of_range("bytes */10"), None);
        assert_eq!(start_of_range("5-9/10"), None);
    }

    #[test]
    fn a_refusal_is_told_in_the_registrys_words() {
        let text = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
        assert_eq!(reason(text), "slow down");
        assert_eq!(reason(br#"{"errors":[{"code":"DENIED"}]}"#), "DENIED");
        assert_eq!(reason(b"<html>"), "");
    }
}
