//! A secret: its name, the hosts that it is bound to, the places where its placeholder is replaced,
//! and the source of its value. The value itself is never stored.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::name::NamePattern;
use crate::cli::error::Failure;
use crate::cli::escape::escape;

/// Limit of secrets of a sandbox.
pub const SECRETS_MAX: usize = 256;
/// Limit of hosts of a secret.
pub const HOSTS_MAX: usize = 64;
/// Longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 32 * 1024;
/// Shortest and longest placeholder, in bytes. A shorter one would be found by accident.
const PLACEHOLDER_BYTES: std::ops::RangeInclusive<usize> = 5..=1024;
/// Longest name of a secret, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Action when a placeholder is sent to a host that its secret is not bound to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ViolationAction {
    /// Pass the request on with the placeholder.
    Passthrough,
    /// Refuse the request.
    Block,
    /// Refuse the request and log it.
    #[default]
    BlockAndLog,
    /// Refuse the request, log it and end the sandbox.
    BlockAndTerminate,
}

impl FromStr for ViolationAction {
    type Err = Failure;

    fn from_str(text: &str) -> Result<ViolationAction, Failure> {
        serde_json::from_value(text.into()).map_err(|_| {
            Failure::usage(
                "the actions are block, block-and-log, block-and-terminate and passthrough",
            )
        })
    }
}

impl fmt::Display for ViolationAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ViolationAction::Passthrough => "passthrough",
            ViolationAction::Block => "block",
            ViolationAction::BlockAndLog => "block-and-log",
            ViolationAction::BlockAndTerminate => "block-and-terminate",
        })
    }
}

/// Headers in which a placeholder is replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretHeaders {
    /// All but those that servers are known to repeat in answers.
    #[default]
    Usual,
    /// All.
    All,
    /// None.
    None,
    /// These, in lower case.
    Named(Vec<String>),
}

/// A secret that is bound to hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretSpec {
    /// Name, which is also the environment variable in the guest.
    pub name: String,
    /// Hosts to which the value may be sent.
    pub hosts: Vec<NamePattern>,
    /// Text that stands for the value in the guest. `None`: `$MSB_NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placeholder: Option<String>,
    /// Source of the value. `None`: the environment variable of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SecretSource>,
    /// Headers in which the placeholder is replaced.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub headers: SecretHeaders,
    /// True to replace it in the query of the URL.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub query: bool,
    /// True to replace it in the path of the URL.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub path: bool,
    /// True to replace it in the body.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub body: bool,
    /// Other hosts to which the placeholder may be sent as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passthrough: Vec<NamePattern>,
    /// Action when the placeholder is sent elsewhere. `None`: that of the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<ViolationAction>,
}

fn is_usual(headers: &SecretHeaders) -> bool {
    *headers == SecretHeaders::Usual
}

impl SecretSpec {
    /// Returns the text that stands for the value in the guest.
    pub fn placeholder(&self) -> String {
        self.placeholder.clone().unwrap_or_else(|| format!("$MSB_{}", self.name))
    }

    /// Returns the secret with a text that stands for the value in the guest.
    pub fn with_placeholder(self, placeholder: String) -> Result<SecretSpec, Failure> {
        check_placeholder(&placeholder)?;
        Ok(SecretSpec { placeholder: Some(placeholder), ..self })
    }

    /// Returns the source of the value.
    pub fn source(&self) -> SecretSource {
        self.source.clone().unwrap_or_else(|| SecretSource::Env(self.name.clone()))
    }

    /// Returns whether the value may be sent to a host.
    pub fn allows(&self, host: &super::name::HostName) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host))
    }
}

/// Parses `NAME[:OPTIONS]@HOST[,HOST...]`.
impl FromStr for SecretSpec {
    type Err = Failure;

    fn from_str(text: &str) -> Result<SecretSpec, Failure> {
        // The text may hold a value, typed in the form of older programs, so it is never repeated.
        let form = "write NAME@HOST, such as --secret GITHUB_TOKEN@api.github.com";
        let wrong = |what: &str| Failure::usage(format!("invalid secret: {what}")).hint(form);
        let name_len = text.find([':', '@', '=']).ok_or_else(|| wrong("it has no host"))?;
        let (name, rest) = text.split_at(name_len);
        if rest.starts_with('=') {
            return Err(Failure::usage("a secret's value cannot be part of the command line").hint(
                "every user of the host can read command lines: write --secret NAME@HOST, and give the \
                 value in the environment or by --secret-from NAME=file:PATH",
            ));
        }
        check_name(name)?;
        let at = rest.rfind('@').ok_or_else(|| wrong("it has no host"))?;
        let hosts = &rest[at + 1..];
        let options = rest[..at].strip_prefix(':').unwrap_or("");
        let hosts: Vec<NamePattern> =
            hosts.split(',').map(str::parse).collect::<Result<_, Failure>>()?;
        if hosts.len() > HOSTS_MAX {
            return Err(wrong(&format!("more than {HOSTS_MAX} hosts")));
        }
        let mut secret = SecretSpec {
            name: name.to_owned(),
            hosts,
            placeholder: None,
            source: None,
            headers: SecretHeaders::Usual,
            query: false,
            path: false,
            body: false,
            passthrough: Vec::new(),
            action: None,
        };
        for option in split_options(options) {
            secret.set_option(option)?;
        }
        check_placeholder(&secret.placeholder())?;
        Ok(secret)
    }
}

fn check_placeholder(placeholder: &str) -> Result<(), Failure> {
    if PLACEHOLDER_BYTES.contains(&placeholder.len())
        && placeholder.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Ok(());
    }
    let message = "a placeholder has 5 to 1024 printable ASCII characters without spaces";
    Err(Failure::usage(message))
}

impl SecretSpec {
    fn set_option(&mut self, option: &str) -> Result<(), Failure> {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option, None),
        };
        let list = |value: &str| -> Vec<String> {
            let inner = value.strip_prefix('[').and_then(|value| value.strip_suffix(']'));
            inner.unwrap_or(value).split(',').map(str::to_owned).collect()
        };
        match (key, value) {
            ("no-headers", None) => self.headers = SecretHeaders::None,
            ("headers", Some("*")) => self.headers = SecretHeaders::All,
            ("headers", Some(value)) => {
                let names: Vec<String> =
                    list(value).iter().map(|name| name.to_ascii_lowercase()).collect();
                let token =
                    |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
                if names.iter().any(|name| name.is_empty() || !name.bytes().all(token)) {
                    return Err(Failure::usage("invalid header name in an option of a secret"));
                }
                self.headers = SecretHeaders::Named(names);
            }
            ("query", None) => self.query = true,
            ("path", None) => self.path = true,
            ("body", None) => self.body = true,
            ("placeholder", Some(value)) => self.placeholder = Some(value.to_owned()),
            ("passthrough", Some(value)) => {
                self.passthrough =
                    list(value).iter().map(|host| host.parse()).collect::<Result<_, Failure>>()?;
            }
            ("action", Some(value)) => self.action = Some(value.parse()?),
            _ => {
                return Err(Failure::usage("unknown option of a secret").hint(
                    "the options are no-headers, headers=, query, path, body, placeholder=, \
                     passthrough= and action=",
                ));
            }
        }
        Ok(())
    }
}

/// Splits options at commas outside of brackets.
fn split_options(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_u32);
    for (at, letter) in text.char_indices() {
        match letter {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if start < text.len() || !parts.is_empty() {
        parts.push(&text[start..]);
    }
    parts
}

impl fmt::Display for SecretSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(ToString::to_string).collect();
        write!(f, "{}@{}", self.name, hosts.join(","))
    }
}

/// Checks the name of a secret, which becomes an environment variable.
pub fn check_name(name: &str) -> Result<(), Failure> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let all = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if first && all && name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err(Failure::usage("invalid name of a secret")
        .hint("use letters, digits and '_', such as GITHUB_TOKEN"))
}

/// Checks the value of a secret: 1 byte to 32 KiB of text without control characters. The error
/// does not contain the value.
pub fn check_value(name: &str, value: &str) -> Result<(), Failure> {
    let what = if value.is_empty() {
        "is empty"
    } else if value.len() > VALUE_BYTES_MAX {
        "is longer than 32 KiB"
    } else if value.chars().any(char::is_control) {
        "contains control characters"
    } else {
        return Ok(());
    };
    Err(Failure::failed(format!("the value of secret {name} {what}")))
}

/// Source of a secret's value, read by the command that starts the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SecretSource {
    /// An environment variable.
    Env(String),
    /// A file.
    File(String),
    /// An inherited descriptor.
    Descriptor(i32),
    /// A credential of systemd: a file in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// The first line that a command of the shell prints.
    Command(String),
}

text_in_json!(SecretSource);

impl FromStr for SecretSource {
    type Err = Failure;

    fn from_str(text: &str) -> Result<SecretSource, Failure> {
        let wrong = || {
            Failure::usage("invalid source of a secret")
                .hint("write env:VARIABLE, file:PATH, fd:N, cred:NAME or cmd:COMMAND")
        };
        let (kind, value) = text.split_once(':').ok_or_else(wrong)?;
        if value.is_empty() {
            return Err(wrong());
        }
        let value = value.to_owned();
        match kind {
            "env" => check_name(&value).map(|()| SecretSource::Env(value)),
            "file" => Ok(SecretSource::File(value)),
            "fd" => value
                .parse()
                .ok()
                .filter(|fd| *fd >= 0 && !(1..=2).contains(fd))
                .map(SecretSource::Descriptor)
                .ok_or_else(wrong),
            "cred" if !value.contains('/') && value != ".." && value != "." => {
                Ok(SecretSource::Credential(value))
            }
            "cmd" => Ok(SecretSource::Command(value)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretSource::Env(name) => write!(f, "env:{name}"),
            SecretSource::File(path) => write!(f, "file:{path}"),
            SecretSource::Descriptor(number) => write!(f, "fd:{number}"),
            SecretSource::Credential(name) => write!(f, "cred:{name}"),
            SecretSource::Command(command) => write!(f, "cmd:{command}"),
        }
    }
}

/// `--secret-from NAME=SOURCE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOption {
    /// Name of the secret.
    pub name: String,
    /// Source of its value.
    pub source: SecretSource,
}

impl FromStr for SourceOption {
    type Err = Failure;

    fn from_str(text: &str) -> Result<SourceOption, Failure> {
        let (name, source) = text.split_once('=').ok_or_else(|| {
            Failure::usage("expected NAME=SOURCE").hint("such as GITHUB_TOKEN=file:/run/token")
        })?;
        check_name(name)?;
        Ok(SourceOption { name: name.to_owned(), source: source.parse()? })
    }
}

/// Checks the secrets of a sandbox as a whole.
pub fn check_all(secrets: &[SecretSpec], bypass: &[NamePattern]) -> Result<(), Failure> {
    if secrets.len() > SECRETS_MAX {
        return Err(Failure::usage(format!("more than {SECRETS_MAX} secrets")));
    }
    for (index, secret) in secrets.iter().enumerate() {
        let clashes = |other: &&SecretSpec| {
            other.name == secret.name || other.placeholder() == secret.placeholder()
        };
        if secrets[..index].iter().any(|other| clashes(&other)) {
            let message = format!("secret {} and its placeholder must be unique", secret.name);
            return Err(Failure::usage(message).hint("separate the hosts of a secret by commas"));
        }
        let exempt = secret.hosts.iter().find(|host| {
            bypass.iter().any(|bypass| bypass.includes(host) || host.includes(bypass))
        });
        if let Some(host) = exempt {
            return Err(Failure::usage(format!(
                "secret {} cannot be sent to {}, which --tls-bypass exempts from interception",
                secret.name,
                escape(&host.to_string())
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretSpec {
        text.parse().unwrap()
    }

    #[test]
    fn a_secret_has_a_name_options_and_hosts() {
        let plain = secret("TOKEN@api.test,*.b.test");
        assert_eq!(plain.hosts.len(), 2);
        assert_eq!(plain.placeholder(), "$MSB_TOKEN");
        assert_eq!(plain.source(), SecretSource::Env("TOKEN".to_owned()));
        assert_eq!(plain.to_string(), "TOKEN@api.test,*.b.test");
        let full = secret(
            "T:headers=[Authorization,X-Key],query,path,body,placeholder=p@ssword,passthrough=[a.test,b.test],action=block@c.test",
        );
        let names = vec!["authorization".to_owned(), "x-key".to_owned()];
        assert_eq!(full.headers, SecretHeaders::Named(names));
        assert!(full.query && full.path && full.body);
        assert_eq!(full.placeholder(), "p@ssword");
        assert_eq!(full.passthrough.len(), 2);
        assert_eq!(full.action, Some(ViolationAction::Block));
        assert_eq!(secret("T:headers=*@a.test").headers, SecretHeaders::All);
        assert_eq!(secret("T:no-headers@a.test").headers, SecretHeaders::None);
        let json = serde_json::to_string(&full).unwrap();
        assert_eq!(serde_json::from_str::<SecretSpec>(&json).unwrap(), full);
    }

    #[test]
    fn an_invalid_secret_is_refused_without_repeating_it() {
        for text in [
            "",
            "A",
            "@a.test",
            "A@",
            "A@*",
            "1A@a.test",
            "A-B@a.test",
            "A:moon@a.test",
            "A:@a.test@",
            "A:placeholder=ab@a.test",
            "A:placeholder=a b c d@a.test",
            "A:headers=[]@a.test",
            "A:action=moon@a.test",
            "A@1.2.3.4",
            "A:query,@a.test",
        ] {
            assert!(text.parse::<SecretSpec>().is_err(), "{text}");
        }
        let inline = "A=canary@a.test".parse::<SecretSpec>().unwrap_err();
        assert!(!format!("{inline:?}").contains("canary"));
        let value = check_value("A", "canary\r\nx").unwrap_err();
        assert!(!format!("{value:?}").contains("canary"));
    }

    #[test]
    fn a_value_is_one_line_of_limited_length() {
        check_value("A", &"x".repeat(VALUE_BYTES_MAX)).unwrap();
        check_value("A", "päss word").unwrap();
        for wrong in ["", "a\n", "a\0", "a\u{7f}", &"x".repeat(VALUE_BYTES_MAX + 1)] {
            assert!(check_value("A", wrong).is_err());
        }
    }

    #[test]
    fn a_source_is_typed_and_printed_the_same() {
        for text in ["env:A", "file:/a:b", "fd:3", "cred:gh", "cmd:pass show x | head -1"] {
            assert_eq!(text.parse::<SecretSource>().unwrap().to_string(), text);
        }
        for wrong in ["A", "env:", "env:A=b", "fd:x", "fd:2", "fd:-1", "cred:../x", "moon:1"] {
            assert!(wrong.parse::<SecretSource>().is_err(), "{wrong}");
        }
        let option: SourceOption = "A=cmd:echo a=b".parse().unwrap();
        assert_eq!(option.source, SecretSource::Command("echo a=b".to_owned()));
    }

    #[test]
    fn secrets_that_contradict_each_other_or_the_bypass_are_refused() {
        let all = |texts: &[&str], bypass: &[&str]| {
            let secrets: Vec<SecretSpec> = texts.iter().map(|text| secret(text)).collect();
            let bypass: Vec<NamePattern> =
                bypass.iter().map(|text| text.parse().unwrap()).collect();
            check_all(&secrets, &bypass)
        };
        all(&["A@a.test", "A_KEY@a.test"], &["b.test"]).unwrap();
        assert!(all(&["A@a.test", "A@b.test"], &[]).is_err());
        assert!(all(&["A:placeholder=xxxxx@a.test", "B:placeholder=xxxxx@b.test"], &[]).is_err());
        assert!(all(&["A@a.test"], &["*.test"]).is_err());
        assert!(all(&["A@*.test"], &["a.test"]).is_err());
    }
}
