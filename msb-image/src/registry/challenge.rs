//! `WWW-Authenticate` (RFC 9110, 11.6.1), as far as registries use it.

/// How a registry wants to know who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// It does not.
    Open,
    /// By name and password.
    Basic,
    /// By a token, which a server of tokens gives.
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// Reads the values of the header. Bearer is taken before Basic; `None` when there is neither.
    pub(crate) fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
        let mut basic = None;
        for (scheme, parameters) in values.into_iter().flat_map(challenges) {
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
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
                return Some(Challenge::Bearer { realm, service });
            }
        }
        basic
    }
}

type Parameters = Vec<(String, String)>;

/// Splits a header into schemes, each with its parameters, whose names become lower case. What cannot be understood ends
/// it.
fn challenges(value: &str) -> Vec<(&str, Parameters)> {
    let mut found: Vec<(&str, Parameters)> = Vec::new();
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        if end == 0 {
            return found;
        }
        let (word, after) = rest.split_at(end);
        match (after.strip_prefix('='), found.last_mut()) {
            (Some(after), Some((_, parameters))) => {
                let Some((text, after)) = parameter_value(after) else {
                    return found;
                };
                parameters.push((word.to_ascii_lowercase(), text));
                rest = after;
            }
            (Some(_), None) => return found,
            (None, _) => {
                found.push((word, Vec::new()));
                rest = after;
            }
        }
    }
}

/// A token or a quoted string, and what follows it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| !is_token(c)).unwrap_or(text.len());
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

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        })
    }

    #[test]
    fn what_real_registries_say_is_understood() {
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push""#;
        assert_eq!(
            Challenge::parse([docker]),
            bearer("https://auth.docker.io/token", Some("registry.docker.io"))
        );
        assert_eq!(
            Challenge::parse([r#"Basic realm="Registry""#]),
            Some(Challenge::Basic)
        );
        assert_eq!(
            Challenge::parse([r#"BASIC realm="a, b", bearer Realm=x"#]),
            bearer("x", None)
        );
        assert_eq!(
            Challenge::parse([r#"Basic realm="a""#, r#"Bearer realm="r\"q""#]),
            bearer("r\"q", None)
        );
    }

    #[test]
    fn what_is_no_challenge_is_none() {
        for text in [
            "",
            "Negotiate",
            "realm=x",
            "Bearer realm=\"open",
            "\u{fc}",
            ", ,",
        ] {
            assert_eq!(Challenge::parse([text]), None, "{text}");
        }
    }
}
