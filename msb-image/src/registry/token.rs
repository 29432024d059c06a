//! Bearer tokens: a registry names a server that gives them, to whoever may have one.

use anyhow::{Result, anyhow};
use libmsb::cli::error::Failure;
use libmsb::cli::escape::escape;
use serde::Deserialize;
use ureq::http::Uri;

use super::client::{Trust, check_address};
use super::connection::Http;
use super::credentials::{Credentials, basic};
use super::retry::{Trouble, retry_after};

/// Bytes of an answer with a token.
const ANSWER_BYTES_MAX: u64 = 256 << 10;
/// Who we are for servers that ask.
const CLIENT_ID: &str = "msb";

/// What a token is wanted for.
pub(crate) struct Request<'a> {
    pub(crate) realm: &'a str,
    pub(crate) service: Option<&'a str>,
    /// Empty: for a login only.
    pub(crate) scope: &'a str,
    pub(crate) credentials: Option<&'a Credentials>,
    pub(crate) trust: Trust,
}

/// Asks the server once.
pub(crate) fn fetch(http: &Http, request: &Request<'_>) -> Result<String, Trouble> {
    let realm = check_realm(request.realm, request.trust)?;
    let response = match request.credentials {
        Some(Credentials::IdentityToken(token)) => http.post(&realm, &form(request, token)),
        other => {
            let uri: Uri = with_query(request)
                .parse()
                .map_err(|_| Trouble::Final(anyhow!("the address of the token server is wrong")))?;
            let authorization = other.map(basic).transpose()?;
            let header = authorization
                .as_deref()
                .map(|value| ("authorization", value));
            http.get(&uri, header.as_slice())
        }
    };
    let response = response.map_err(|problem| match problem.trouble(true) {
        Trouble::Passing { error, pause } => Trouble::Passing {
            error: error.context("token server"),
            pause,
        },
        Trouble::Final(error) => Trouble::Final(error.context("token server")),
    })?;
    let status = response.status().as_u16();
    match status {
        200 => parse(&http.document(response, ANSWER_BYTES_MAX)?).map_err(Trouble::Final),
        400 | 401 | 403 => Err(Trouble::Final(
            refused(request.credentials.is_some()).into(),
        )),
        429 | 500 | 502 | 503 | 504 => Err(Trouble::Passing {
            error: anyhow!("the token server answers with status {status}"),
            pause: response
                .headers()
                .get("retry-after")
                .and_then(|value| retry_after(value.to_str().ok()?)),
        }),
        _ => Err(Trouble::Final(anyhow!(
            "the token server answers with status {status}"
        ))),
    }
}

fn refused(with_credentials: bool) -> Failure {
    if with_credentials {
        return Failure::failed("the credentials were refused")
            .hint("give others: msb image registry login");
    }
    Failure::failed("access denied").hint(
        "perhaps there is no such image; if it is not for everybody: msb image registry login",
    )
}

/// Passwords go to this address, so it must be a safe one.
fn check_realm(realm: &str, trust: Trust) -> Result<Uri, Trouble> {
    let wrong = |why: &str| {
        Trouble::Final(anyhow!(
            "the registry names the token server '{}', {why}",
            escape(realm)
        ))
    };
    let uri: Uri = realm.parse().map_err(|_| wrong("which is no address"))?;
    check_address(&uri)?;
    if !trust.allows(&uri) {
        return Err(wrong("without TLS"));
    }
    Ok(uri)
}

fn with_query(request: &Request<'_>) -> String {
    let parameters = [
        ("service", request.service.unwrap_or_default()),
        ("scope", request.scope),
    ];
    let mut address = request.realm.to_owned();
    for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
        let joint = if address.contains('?') { '&' } else { '?' };
        address.push_str(&format!("{joint}{name}={}", encode(value)));
    }
    address
}

fn form<'a>(request: &Request<'a>, token: &'a str) -> Vec<(&'static str, &'a str)> {
    let fields = [
        ("grant_type", "refresh_token"),
        ("client_id", CLIENT_ID),
        ("service", request.service.unwrap_or_default()),
        ("scope", request.scope),
        ("refresh_token", token),
    ];
    fields
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

/// Percent-encoding of everything but letters, digits and `-._~`.
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
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The token in an answer. It becomes part of a header, so it must be visible ASCII.
pub(crate) fn parse(bytes: &[u8]) -> Result<String> {
    let answer: Answer = serde_json::from_slice(bytes)
        .map_err(|error| anyhow!("cannot understand the answer of the token server: {error}"))?;
    let token = answer.token.filter(|token| !token.is_empty());
    token
        .or(answer.access_token)
        .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| anyhow!("the token server gives no token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_from_either_field() {
        assert_eq!(parse(br#"{"token":"a"}"#).unwrap(), "a");
        assert_eq!(parse(br#"{"token":"","access_token":"b"}"#).unwrap(), "b");
        for bad in [
            &b"{}"[..],
            b"x",
            br#"{"token":"a\r\nX: y"}"#,
            br#"{"token":""}"#,
        ] {
            assert!(parse(bad).is_err());
        }
    }

    #[test]
    fn the_question_says_what_for() {
        let request = Request {
            realm: "https://auth.example/token?x=1",
            service: Some("my registry"),
            scope: "repository:a/b:pull",
            credentials: None,
            trust: Trust::Secure,
        };
        assert_eq!(
            with_query(&request),
            "https://auth.example/token?x=1&service=my%20registry&scope=repository%3Aa%2Fb%3Apull"
        );
    }

    #[test]
    fn passwords_do_not_go_to_a_server_without_tls() {
        assert!(check_realm("http://auth.example/token", Trust::Secure).is_err());
        assert!(check_realm("http://auth.example/token", Trust::Insecure).is_ok());
        assert!(check_realm("https://auth.example/token", Trust::Secure).is_ok());
        assert!(check_realm("file:///x", Trust::Insecure).is_err());
        assert!(check_realm("https://u@auth.example/", Trust::Insecure).is_err());
    }
}
