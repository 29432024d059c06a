//! Bearer tokens from the token server that a registry's challenge names.

use anyhow::{Result, anyhow};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use serde::Deserialize;
use ureq::http::Uri;

use super::client::{TlsPolicy, check_address};
use super::connection::HttpClient;
use super::credentials::{Credentials, basic};
use super::retry::{FetchError, retry_after};
use super::url::encode_url;

/// Bytes of a token response.
const ANSWER_BYTES_MAX: u64 = 256 << 10;
/// Client ID of msb at token servers.
const CLIENT_ID: &str = "msb";

/// A request for a token.
pub(crate) struct TokenRequest<'a> {
    pub(crate) realm: &'a str,
    pub(crate) service: Option<&'a str>,
    /// Scopes of the token; none for a login.
    pub(crate) scopes: &'a [String],
    pub(crate) credentials: Option<&'a Credentials>,
    pub(crate) tls_policy: TlsPolicy,
}

/// Requests a token.
pub(crate) fn fetch(http: &HttpClient, request: &TokenRequest<'_>) -> Result<String, FetchError> {
    let realm = check_realm(request.realm, request.tls_policy)?;
    let response = match request.credentials {
        Some(Credentials::IdentityToken(token)) => {
            http.post(&realm, &form(request, &request.scopes.join(" "), token))
        }
        other => {
            let uri: Uri = with_query(request)
                .parse()
                .map_err(|_| FetchError::Permanent(anyhow!("invalid URL of the token server")))?;
            let authorization = other.map(basic).transpose()?;
            let header = authorization.as_deref().map(|value| ("authorization", value));
            http.get(&uri, header.as_slice())
        }
    };
    let response = response.map_err(|error| match error.into_fetch_error(true) {
        FetchError::Transient { error, delay } => {
            FetchError::Transient { error: error.context("token server"), delay }
        }
        FetchError::Unresolved(error) => FetchError::Unresolved(error.context("token server")),
        FetchError::Permanent(error) => FetchError::Permanent(error.context("token server")),
    })?;
    let status = response.status().as_u16();
    match status {
        200 => parse(&http.document(response, ANSWER_BYTES_MAX)?).map_err(FetchError::Permanent),
        400 | 401 | 403 => {
            Err(FetchError::Permanent(refused(request.credentials.is_some()).into()))
        }
        429 | 500 | 502 | 503 | 504 => Err(FetchError::Transient {
            error: anyhow!("the token server answered with HTTP status {status}"),
            delay: response
                .headers()
                .get("retry-after")
                .and_then(|value| retry_after(value.to_str().ok()?)),
        }),
        _ => Err(FetchError::Permanent(anyhow!(
            "the token server answered with HTTP status {status}"
        ))),
    }
}

fn refused(with_credentials: bool) -> Failure {
    if with_credentials {
        return Failure::failed("the token server rejected the credentials")
            .hint("log in with other credentials: msb image registry login");
    }
    Failure::failed("access denied")
        .hint("the image may not exist; if it is private, log in: msb image registry login")
}

/// Checks the URL of the token server. Passwords are sent to it, so it must be secure.
fn check_realm(realm: &str, tls_policy: TlsPolicy) -> Result<Uri, FetchError> {
    let wrong = |why: &str| {
        FetchError::Permanent(anyhow!(
            "the challenge names the token server '{}', {why}",
            escape(realm)
        ))
    };
    let uri: Uri =
        encode_url(realm.as_bytes()).parse().map_err(|_| wrong("which is not a valid URL"))?;
    check_address(&uri)?;
    if !tls_policy.allows(&uri) {
        return Err(wrong("which does not use TLS"));
    }
    Ok(uri)
}

fn with_query(request: &TokenRequest<'_>) -> String {
    let service = [("service", request.service.unwrap_or_default())];
    // Each scope is a parameter of its own.
    let scopes = request.scopes.iter().map(|scope| ("scope", scope.as_str()));
    let mut address = encode_url(request.realm.as_bytes());
    for (name, value) in service.into_iter().chain(scopes).filter(|(_, value)| !value.is_empty()) {
        let joint = if address.contains('?') { '&' } else { '?' };
        address.push_str(&format!("{joint}{name}={}", encode(value)));
    }
    address
}

fn form<'a>(
    request: &TokenRequest<'a>,
    scopes: &'a str,
    token: &'a str,
) -> Vec<(&'static str, &'a str)> {
    let fields = [
        ("grant_type", "refresh_token"),
        ("client_id", CLIENT_ID),
        ("service", request.service.unwrap_or_default()),
        ("scope", scopes),
        ("refresh_token", token),
    ];
    fields.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}

/// Percent-encodes every byte except letters, digits and `-._~`.
fn encode(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    text.bytes()
        .map(|byte| match byte {
            byte if plain(&byte) => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
}

/// Parses the token in a response. It becomes part of a header, so it must be visible ASCII.
pub(crate) fn parse(bytes: &[u8]) -> Result<String> {
    let answer: TokenResponse = serde_json::from_slice(bytes)
        .map_err(|error| anyhow!("cannot parse the response of the token server: {error}"))?;
    let token = answer.token.filter(|token| !token.is_empty());
    token
        .or(answer.access_token)
        .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| anyhow!("the token server returned no valid token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_from_either_field() {
        assert_eq!(parse(br#"{"token":"a"}"#).unwrap(), "a");
        assert_eq!(parse(br#"{"token":"","access_token":"b"}"#).unwrap(), "b");
        for bad in [&b"{}"[..], b"x", br#"{"token":"a\r\nX: y"}"#, br#"{"token":""}"#] {
            assert!(parse(bad).is_err());
        }
    }

    #[test]
    fn the_request_names_service_and_scope() {
        let request = TokenRequest {
            realm: "https://auth.example/token?x=1",
            service: Some("my registry"),
            scopes: &["repository:a/b:pull".to_owned(), "aws".to_owned()],
            credentials: None,
            tls_policy: TlsPolicy::Required,
        };
        assert_eq!(
            with_query(&request),
            "https://auth.example/token?x=1&service=my%20registry&scope=repository%3Aa%2Fb%3Apull&scope=aws"
        );
    }

    #[test]
    fn passwords_do_not_go_to_a_server_without_tls() {
        assert!(check_realm("http://auth.example/token", TlsPolicy::Required).is_err());
        assert!(check_realm("http://auth.example/token", TlsPolicy::Optional).is_ok());
        assert!(check_realm("https://auth.example/token", TlsPolicy::Required).is_ok());
        assert!(check_realm("file:///x", TlsPolicy::Optional).is_err());
        assert!(check_realm("https://u@auth.example/", TlsPolicy::Optional).is_err());
    }
}
