//! Secrets with their values: where each may go, and the replacement of placeholders.
//!
//! A text is searched once for all placeholders and their encoded forms; the longest counts where
//! several begin. Values are put in between what is left, and never searched again. A value has the
//! encoding that its placeholder had.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use libmsb::net::intercept::SecretValues;
use libmsb::net::name::HostName;
use libmsb::net::secret::{SecretHeaders, SecretSpec, ViolationAction};
use libmsb::net::tls::TlsSpec;
use zeroize::Zeroizing;

use crate::headers;
use crate::limits::WATCHED_BYTES_MIN;
use crate::search::TextSearch;
use crate::text_forms::{self, Digits};

/// Form of a placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextForm {
    /// As it is.
    Raw,
    /// Percent-encoded, as in URLs and forms.
    Percent,
    /// With JSON escapes.
    Json,
    /// Base64.
    Base64,
}

impl TextForm {
    /// Returns the name in events.
    pub fn name(self) -> &'static str {
        match self {
            TextForm::Raw => "raw",
            TextForm::Percent => "percent",
            TextForm::Json => "json",
            TextForm::Base64 => "base64",
        }
    }
}

/// A placeholder's tag: index of the secret, and form.
pub type PlaceholderTag = (usize, TextForm);

/// Part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestPart<'a> {
    /// The path of the URL.
    Path,
    /// The query of the URL.
    Query,
    /// The value of a header, by its name in lower case.
    Header(&'a str),
    /// The value of a trailer.
    Trailer,
    /// The body.
    Body(BodyFormat),
}

/// Format of a body in which placeholders are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    /// Text: values are inserted as they are.
    Text,
    /// JSON: values are escaped as in strings.
    Json,
    /// A form: values are percent-encoded.
    Form,
    /// A format that cannot be changed.
    Unknown,
}

/// Standing of a secret on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The value may be sent.
    Bound,
    /// The placeholder may be sent as it is.
    Passthrough,
    /// The placeholder may not be sent: the secret is bound to other hosts.
    Elsewhere(ViolationAction),
    /// The placeholder may not be sent: the host is right, but msb-net did not resolve its name to
    /// this address.
    Unpinned(ViolationAction),
}

impl Standing {
    /// Returns the action if a placeholder is a violation.
    pub fn violation(self) -> Option<ViolationAction> {
        match self {
            Standing::Elsewhere(action) | Standing::Unpinned(action) => Some(action),
            Standing::Bound | Standing::Passthrough => None,
        }
    }
}

/// A placeholder where it may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Index of the secret.
    pub secret: usize,
    /// Form of the placeholder.
    pub form: TextForm,
    /// Action.
    pub action: ViolationAction,
    /// True if only the address is the reason.
    pub unpinned: bool,
}

/// Result of searching a part of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartOutcome {
    /// The text with values, if any was inserted.
    pub replaced: Option<Zeroizing<Vec<u8>>>,
    /// Indexes of the inserted secrets.
    pub used: Vec<usize>,
    /// Indexes of secrets whose placeholder stays, because this part is off.
    pub inert: Vec<usize>,
    /// The violation with the strictest action.
    pub violation: Option<Violation>,
}

struct Secret {
    spec: SecretSpec,
    placeholder: Vec<u8>,
    value: Zeroizing<Vec<u8>>,
}

/// The secrets of a sandbox.
pub struct SecretTable {
    secrets: Vec<Secret>,
    default_action: ViolationAction,
    placeholders: TextSearch<PlaceholderTag>,
    values: TextSearch<usize>,
}

impl SecretTable {
    /// Creates the table. Returns the name of a secret without a value otherwise.
    pub fn new(tls: &TlsSpec, mut values: SecretValues) -> Result<SecretTable, String> {
        let mut secrets = Vec::new();
        for spec in &tls.secrets {
            let value = values.remove(&spec.name).ok_or_else(|| spec.name.clone())?;
            secrets.push(Secret {
                placeholder: spec.placeholder().into_bytes(),
                value: Zeroizing::new(value.into_bytes()),
                spec: spec.clone(),
            });
        }
        let (mut placeholders, mut searched) = (Vec::new(), Vec::new());
        for (index, secret) in secrets.iter().enumerate() {
            let text = &secret.placeholder[..];
            let percent = |digits| (text_forms::percent(text, digits), TextForm::Percent);
            let mut forms = vec![(text.to_vec(), TextForm::Raw)];
            let encoded = [
                percent(Digits::Upper),
                percent(Digits::Lower),
                (text_forms::json(text), TextForm::Json),
                (text_forms::json_escaped(text), TextForm::Json),
            ];
            for (form, kind) in encoded {
                if forms.iter().all(|(other, _)| *other != form) {
                    forms.push((form, kind));
                }
            }
            let base64 = text_forms::base64(text);
            forms.extend(base64.into_iter().map(|form| (form, TextForm::Base64)));
            placeholders.extend(forms.into_iter().map(|(form, kind)| (form, (index, kind))));
            if secret.value.len() >= WATCHED_BYTES_MIN {
                let value = &secret.value[..];
                let mut forms = vec![
                    value.to_vec(),
                    text_forms::percent(value, Digits::Upper),
                    text_forms::percent(value, Digits::Lower),
                    text_forms::json(value),
                ];
                forms.extend(text_forms::base64(value));
                forms.sort_unstable();
                forms.dedup();
                searched.extend(forms.into_iter().map(|form| (form, index)));
            }
        }
        Ok(SecretTable {
            secrets,
            default_action: tls.on_violation.unwrap_or_default(),
            placeholders: TextSearch::new(placeholders),
            values: TextSearch::new(searched),
        })
    }

    /// Returns whether there are no secrets.
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// Returns the number of secrets.
    pub fn len(&self) -> usize {
        self.secrets.len()
    }

    /// Returns the name of a secret.
    pub fn name(&self, index: usize) -> &str {
        &self.secrets[index].spec.name
    }

    /// Returns the placeholder of a secret.
    pub fn placeholder(&self, index: usize) -> &[u8] {
        &self.secrets[index].placeholder
    }

    /// Returns the search for placeholders.
    pub fn placeholders(&self) -> &TextSearch<PlaceholderTag> {
        &self.placeholders
    }

    /// Returns the search for values that are long enough.
    pub fn values(&self) -> &TextSearch<usize> {
        &self.values
    }

    /// Returns the standing of each secret on a connection to a host whose certificate was
    /// verified. `pinned`: its name was resolved to the address.
    pub fn standings(&self, host: &HostName, pinned: bool) -> Vec<Standing> {
        let standing = |secret: &Secret| {
            let action = secret.spec.action.unwrap_or(self.default_action);
            let passes = secret.spec.passthrough.iter().any(|pattern| pattern.matches(host));
            match secret.spec.allows(host) {
                true if pinned => Standing::Bound,
                _ if passes || action == ViolationAction::Passthrough => Standing::Passthrough,
                true => Standing::Unpinned(action),
                false => Standing::Elsewhere(action),
            }
        };
        self.secrets.iter().map(standing).collect()
    }

    /// Returns whether placeholders are replaced in the body on a connection.
    pub fn changes_bodies(&self, standings: &[Standing]) -> bool {
        let mut all = self.secrets.iter().zip(standings);
        all.any(|(secret, standing)| secret.spec.body && *standing == Standing::Bound)
    }

    /// Returns whether a placeholder in this part is replaced.
    fn is_on(&self, secret: usize, part: RequestPart<'_>) -> bool {
        let spec = &self.secrets[secret].spec;
        match part {
            RequestPart::Path => spec.path,
            RequestPart::Query => spec.query,
            RequestPart::Body(_) => spec.body,
            RequestPart::Trailer => false,
            RequestPart::Header(name) => match &spec.headers {
                SecretHeaders::All => true,
                SecretHeaders::None => false,
                SecretHeaders::Usual => headers::is_usual(name),
                SecretHeaders::Named(names) => names.iter().any(|named| named == name),
            },
        }
    }

    /// Returns the violation that a placeholder is, if it is one.
    pub fn violation(
        &self,
        (secret, form): PlaceholderTag,
        standings: &[Standing],
    ) -> Option<Violation> {
        let standing = standings.get(secret)?;
        let unpinned = matches!(standing, Standing::Unpinned(_));
        standing.violation().map(|action| Violation { secret, form, action, unpinned })
    }

    /// Searches a part of a request and replaces placeholders.
    pub fn process(
        &self,
        part: RequestPart<'_>,
        text: &[u8],
        standings: &[Standing],
    ) -> PartOutcome {
        let mut outcome = PartOutcome::default();
        let mut out: Vec<u8> = Vec::new();
        let mut copied = 0;
        for found in self.placeholders.find(text) {
            let (secret, form) = found.tag;
            if let Some(violation) = self.violation(found.tag, standings) {
                let strictest = outcome.violation.filter(|other| other.action >= violation.action);
                outcome.violation = strictest.or(Some(violation));
            } else if standings.get(secret) == Some(&Standing::Bound) {
                if form == TextForm::Base64 || !self.is_on(secret, part) {
                    outcome.inert.push(secret);
                    continue;
                }
                out.extend_from_slice(&text[copied..found.start]);
                out.extend(self.encoded_value(secret, form, part));
                copied = found.end;
                outcome.used.push(secret);
            }
        }
        if !outcome.used.is_empty() {
            out.extend_from_slice(&text[copied..]);
            outcome.replaced = Some(Zeroizing::new(out));
        }
        outcome
    }

    fn encoded_value(&self, secret: usize, form: TextForm, part: RequestPart<'_>) -> Vec<u8> {
        let value = &self.secrets[secret].value[..];
        let in_url = matches!(
            part,
            RequestPart::Path | RequestPart::Query | RequestPart::Body(BodyFormat::Form)
        );
        match form {
            TextForm::Percent => text_forms::percent(value, Digits::Upper),
            TextForm::Raw | TextForm::Json if in_url => text_forms::percent(value, Digits::Upper),
            TextForm::Json => text_forms::json(value),
            TextForm::Raw if part == RequestPart::Body(BodyFormat::Json) => text_forms::json(value),
            TextForm::Raw | TextForm::Base64 => value.to_vec(),
        }
    }

    /// Searches the value of a header. Credentials of Basic authentication are decoded, and encoded
    /// again with values.
    pub fn process_header(&self, name: &str, value: &[u8], standings: &[Standing]) -> PartOutcome {
        let part = RequestPart::Header(name);
        if let Some((scheme, credentials)) = basic_credentials(value) {
            let mut outcome = self.process(part, &credentials, standings);
            outcome.replaced = outcome.replaced.map(|text| {
                let encoded = BASE64_STANDARD.encode(&*text);
                Zeroizing::new([scheme, b" ", encoded.as_bytes()].concat())
            });
            if outcome != PartOutcome::default() {
                return outcome;
            }
        }
        self.process(part, value, standings)
    }

    /// Replaces values in a header of a response by their placeholders.
    pub fn hide_values(&self, value: &[u8], used: &[bool]) -> Option<Vec<u8>> {
        let (mut out, mut copied) = (Vec::new(), 0);
        for found in self.values.find(value).filter(|found| used[found.tag]) {
            out.extend_from_slice(&value[copied..found.start]);
            out.extend_from_slice(self.placeholder(found.tag));
            copied = found.end;
        }
        (copied > 0).then(|| [&out[..], &value[copied..]].concat())
    }
}

/// Returns the scheme as it was written, and the decoded credentials.
fn basic_credentials(value: &[u8]) -> Option<(&[u8], Zeroizing<Vec<u8>>)> {
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = value.split_at(space);
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(rest.trim_ascii()).ok()?;
    Some((scheme, Zeroizing::new(decoded)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(secrets: &[(&str, &str)]) -> SecretTable {
        let specs: Vec<SecretSpec> =
            secrets.iter().map(|(text, _)| text.parse().unwrap()).collect();
        let values = specs.iter().zip(secrets);
        let values = values.map(|(spec, (_, value))| (spec.name.clone(), (*value).to_owned()));
        let values = values.collect();
        let tls = TlsSpec { secrets: specs, ..TlsSpec::default() };
        SecretTable::new(&tls, values).unwrap()
    }

    fn on(table: &SecretTable, host: &str) -> Vec<Standing> {
        table.standings(&host.parse().unwrap(), true)
    }

    fn header(table: &SecretTable, name: &str, value: &str, host: &str) -> String {
        let outcome = table.process_header(name, value.as_bytes(), &on(table, host));
        let text = outcome
            .replaced
            .map_or(value.to_owned(), |text| String::from_utf8(text.to_vec()).unwrap());
        let violation = outcome.violation.map(|violation| violation.action);
        format!("{text}{}", violation.map(|action| format!(" !{action}")).unwrap_or_default())
    }

    #[test]
    fn a_value_goes_to_its_host_only() {
        let table = table(&[("A@a.test", "s3cret")]);
        assert_eq!(header(&table, "authorization", "Bearer $MSB_A", "a.test"), "Bearer s3cret");
        assert_eq!(
            header(&table, "authorization", "Bearer $MSB_A", "e.test"),
            "Bearer $MSB_A !block-and-log"
        );
        let unpinned = table.standings(&"a.test".parse().unwrap(), false);
        let outcome = table.process_header("authorization", b"$MSB_A", &unpinned);
        assert!(outcome.violation.unwrap().unpinned && outcome.replaced.is_none());
    }

    #[test]
    fn the_longest_placeholder_counts_and_values_are_not_searched_again() {
        let table = table(&[
            ("API@a.test", "$MSB_API_KEY"),
            ("API_KEY@a.test", "two"),
            ("B@e.test", "three"),
        ]);
        assert_eq!(header(&table, "x-key", "$MSB_API$MSB_API_KEY", "a.test"), "$MSB_API_KEYtwo");
    }

    #[test]
    fn basic_credentials_are_decoded_and_encoded() {
        let table = table(&[("A@a.test", "pässword")]);
        let typed = format!("Basic {}", BASE64_STANDARD.encode("user:$MSB_A"));
        let sent = format!("Basic {}", BASE64_STANDARD.encode("user:pässword"));
        assert_eq!(header(&table, "authorization", &typed, "a.test"), sent);
        assert_eq!(
            header(&table, "authorization", &typed, "e.test"),
            format!("{typed} !block-and-log")
        );
    }

    #[test]
    fn a_placeholder_is_replaced_only_where_it_may_be() {
        let table = table(&[("A@a.test", "value"), ("B:no-headers,query,path@a.test", "a/b c")]);
        assert_eq!(header(&table, "user-agent", "$MSB_A", "a.test"), "$MSB_A");
        assert_eq!(header(&table, "x-key", "$MSB_B", "a.test"), "$MSB_B");
        let standings = on(&table, "a.test");
        let part = |part, text: &str| {
            let outcome = table.process(part, text.as_bytes(), &standings);
            outcome.replaced.map(|text| String::from_utf8(text.to_vec()).unwrap())
        };
        let replaced = Some("k=a%2Fb%20c".to_owned());
        assert_eq!(part(RequestPart::Query, "k=$MSB_B"), replaced);
        assert_eq!(part(RequestPart::Query, "k=%24MSB_B"), replaced);
        assert_eq!(part(RequestPart::Query, "k=$MSB_A"), None);
        assert_eq!(part(RequestPart::Trailer, "$MSB_B"), None);
        assert_eq!(part(RequestPart::Body(BodyFormat::Text), "$MSB_B"), None);
    }

    #[test]
    fn a_body_has_values_in_its_own_encoding() {
        let table = table(&[("A:body@a.test", "q\"b\\ c")]);
        let standings = on(&table, "a.test");
        assert!(table.changes_bodies(&standings));
        let part = |format, text: &str| {
            let outcome = table.process(RequestPart::Body(format), text.as_bytes(), &standings);
            String::from_utf8(outcome.replaced.unwrap().to_vec()).unwrap()
        };
        assert_eq!(part(BodyFormat::Text, "x $MSB_A"), "x q\"b\\ c");
        assert_eq!(part(BodyFormat::Json, "{\"k\":\"$MSB_A\"}"), "{\"k\":\"q\\\"b\\\\ c\"}");
        assert_eq!(part(BodyFormat::Json, "\"\\u0024MSB_A\""), "\"q\\\"b\\\\ c\"");
        assert_eq!(part(BodyFormat::Form, "k=%24MSB_A&l"), "k=q%22b%5C%20c&l");
    }

    #[test]
    fn every_form_of_a_placeholder_is_found_elsewhere() {
        let table = table(&[("TOKEN@a.test", "value")]);
        let standings = on(&table, "e.test");
        let base64 = BASE64_STANDARD.encode("xy$MSB_TOKENz");
        for text in ["$MSB_TOKEN", "%24MSB_TOKEN", "\\u0024MSB_TOKEN", &base64] {
            let outcome = table.process(RequestPart::Query, text.as_bytes(), &standings);
            assert!(outcome.violation.is_some(), "{text}");
        }
    }

    #[test]
    fn the_strictest_action_counts() {
        let table = table(&[
            ("AAA:action=block-and-terminate@a.test", "1"),
            ("BBB:action=block@a.test", "2"),
            ("CCC:action=passthrough@a.test", "3"),
            ("DDD:passthrough=e.test@a.test", "4"),
        ]);
        let standings = on(&table, "e.test");
        let find = |text: &[u8]| table.process(RequestPart::Query, text, &standings).violation;
        let action = find(b"$MSB_BBB $MSB_AAA $MSB_BBB").unwrap().action;
        assert_eq!(action, ViolationAction::BlockAndTerminate);
        assert!(find(b"$MSB_CCC $MSB_DDD").is_none());
    }

    #[test]
    fn values_in_answers_are_hidden() {
        let table = table(&[("A@a.test", "longvalue"), ("B@a.test", "short")]);
        let hidden = table.hide_values(b"x longvalue y bG9uZ3ZhbHVl short", &[true, true]);
        assert_eq!(hidden.unwrap(), b"x $MSB_A y $MSB_A short");
        assert_eq!(table.hide_values(b"longvalue", &[false, true]), None);
    }
}
