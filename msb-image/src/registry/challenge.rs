//! Authentication challenges: the header `WWW-Authenticate` (RFC 9110, 11.6.1) in the forms that
//! registries use.

/// Authentication that a registry requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AuthChallenge {
    /// None.
    Anonymous,
    /// HTTP Basic: user name and password.
    Basic,
    /// Bearer token from a token server.
    Bearer { realm: String, service: Option<String>, scopes: Vec<String> },
}

impl AuthChallenge {
    /// Parses the values of the header. Bearer is preferred to Basic; `None` if neither is offered.
    pub(crate) fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<AuthChallenge> {
        let mut basic = None;
        for (scheme, parameters) in values.into_iter().flat_map(challenges) {
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(AuthChallenge::Basic);
            }
            if !scheme.eq_ignore_ascii_case("bearer") {
                continue;
            }
            let get = |name: &str| {
                let found = parameters.iter().find(|(key, _)| key == name);
                found.map(|(_, value)| value.clone())
            };
            if let Some(realm) = get("realm") {
                let service = get("service");
                // A scope is a list of words (RFC 6750, 3).
                let scope = get("scope").unwrap_or_default();
                let scopes = scope.split_whitespace().map(str::to_owned).collect();
                return Some(AuthChallenge::Bearer { realm, service, scopes });
            }
        }
        basic
    }
}

type Parameters = Vec<(String, String)>;

/// Splits a header value into schemes with their parameters, whose names are lowercased. Instead of
/// parameters a scheme may have one `token68`, such as the data of Negotiate, which is skipped. A
/// syntax error ends the list item that contains it.
fn challenges(value: &str) -> Vec<(&str, Parameters)> {
    let mut found: Vec<(&str, Parameters)> = Vec::new();
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return found;
        }
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let value = after.trim_start().strip_prefix('=').map(str::trim_start);
        rest = match (word, value, found.last_mut()) {
            ("", ..) | (_, Some(_), None) => after_comma(rest),
            (_, Some(value), Some((_, parameters))) => match parameter_value(value) {
                Some((text, after)) => {
                    parameters.push((word.to_ascii_lowercase(), text));
                    after
                }
                None => return found,
            },
            (_, None, _) => {
                found.push((word, Vec::new()));
                after_token68(after).unwrap_or(after)
            }
        };
    }
}

/// Returns what follows the next comma.
fn after_comma(text: &str) -> &str {
    text.split_once(',').map_or("", |(_, rest)| rest)
}

/// Skips a `token68` after a scheme. It is the last word of its list item; a parameter is not.
fn after_token68(text: &str) -> Option<&str> {
    let text = text.strip_prefix([' ', '\t'])?.trim_start();
    let is_in_token68 = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
    let end = text.find(|c: char| !is_in_token68(c)).unwrap_or(text.len());
    let rest = text[end..].trim_start_matches('=').trim_start();
    (end > 0 && (rest.is_empty() || rest.starts_with(','))).then_some(rest)
}

/// Parses a token or a quoted string. Returns it and the rest.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        // Some servers do not quote a URL.
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            character => value.push(character),
        }
    }
    None
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: &str) -> Option<AuthChallenge> {
        Some(AuthChallenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scopes: scope.split_whitespace().map(str::to_owned).collect(),
        })
    }

    #[test]
    fn challenges_of_real_registries_are_parsed() {
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push""#;
        assert_eq!(
            AuthChallenge::parse([docker]),
            bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                "repository:library/x:pull,push"
            )
        );
        assert_eq!(AuthChallenge::parse([r#"Basic realm="Registry""#]), Some(AuthChallenge::Basic));
        assert_eq!(
            AuthChallenge::parse([r#"BASIC realm="a, b", bearer Realm=x"#]),
            bearer("x", None, "")
        );
        assert_eq!(
            AuthChallenge::parse([r#"Basic realm="a""#, r#"Bearer realm="r\"q""#]),
            bearer("r\"q", None, "")
        );
    }

    #[test]
    fn several_challenges_may_share_one_header() {
        for text in [
            r#"Negotiate YIIB6wYGKwYBBQ==, Basic realm="a""#,
            r#"Negotiate, NTLM TlRMTVNTUAAC+/a=,Basic realm="a", charset="UTF-8""#,
            r#"Digest realm = "x, y", nonce="=,", qop = auth , Basic"#,
            r#"=broken, Basic realm="\u{fc}""#,
        ] {
            assert_eq!(AuthChallenge::parse([text]), Some(AuthChallenge::Basic), "{text}");
        }
        let last = r#"Negotiate a/b+c, Basic realm="x", Bearer realm = "r" , scope="a:b:pull  c", service=s"#;
        assert_eq!(AuthChallenge::parse([last]), bearer("r", Some("s"), "a:b:pull c"));
        let first = r#"Bearer realm=https://r.example/token?a=b,scope=aws, Negotiate YII="#;
        assert_eq!(
            AuthChallenge::parse([first]),
            bearer("https://r.example/token?a=b", None, "aws")
        );
    }

    #[test]
    fn an_invalid_challenge_is_none() {
        for text in ["", "Negotiate", "realm=x", "Bearer realm=\"open", "\u{fc}", ", ,"] {
            assert_eq!(AuthChallenge::parse([text]), None, "{text}");
        }
    }
}
