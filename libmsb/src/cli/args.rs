//! What users type: memory sizes, durations, names, variables, labels; and parsing with our own words for mistakes.
//!
//! All functions here take text and give values; only a bare variable name looks at the host's environment.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use serde::{Deserialize, Serialize};

use super::error::{self, Failure, print_error, print_hint};
use super::escape::escape;
use super::{exit, output, verbosity};
use crate::state::write;

/// Longest name of a sandbox, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest key of a label, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 128;
/// Longest value of a label, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 1024;
/// How a name begins that the user did not choose.
const GENERATED_PREFIX: &str = "msb-";
/// Variables with this prefix are ours, in the guest as on the host.
pub const RESERVED_ENV_PREFIX: &str = "MSB_";

/// Parses a tool's arguments, its own name being the first. Help and version go to standard output; mistakes are told in
/// our form. Both give the exit code.
pub fn parse<P: clap::Parser>(
    tool: &str,
    args: impl IntoIterator<Item = OsString>,
) -> Result<P, ExitCode> {
    let mut command = verbosity::with_options(P::command());
    let parsed = command.try_get_matches_from_mut(args).and_then(|matches| {
        let parsed = P::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        Ok((parsed, matches))
    });
    let (parsed, matches) = parsed.map_err(|error| ExitCode::from(report_usage(tool, &error)))?;
    match verbosity::choose(tool, &matches) {
        Ok(()) => Ok(parsed),
        Err(failure) => Err(error::exit_code(tool, Err(failure.into()))),
    }
}

/// Tells a mistake of usage in our form, or prints the help or version that was asked for. Gives the exit code.
pub fn report_usage(tool: &str, error: &clap::Error) -> u8 {
    let asked_for = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion];
    if asked_for.contains(&error.kind()) {
        let text = error.render().to_string();
        return match output::print(text.trim_end()) {
            Ok(()) => exit::DONE,
            Err(error) => super::error::report(tool, &error.into()),
        };
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprint!("{}", error.render());
        return exit::USAGE;
    }
    let (message, tips) = usage_message(&error.render().to_string());
    print_error(tool, &message);
    tips.iter().for_each(|tip| print_hint(tool, tip));
    // What is wrong with a value is said; the list of options would not say more.
    if error.kind() != ErrorKind::ValueValidation {
        print_hint(tool, &format!("see '{tool} --help'"));
    }
    exit::USAGE
}

/// The sentence of the parser's report, and its tips; its usage lines are left to `--help`.
fn usage_message(report: &str) -> (String, Vec<String>) {
    let mut lines = report
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"));
    let first = lines.next().unwrap_or_default();
    let mut message = first.strip_prefix("error: ").unwrap_or(first).to_owned();
    let mut tips = Vec::new();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")) {
        match line.strip_prefix("tip: ") {
            Some(tip) => tips.push(tip.to_owned()),
            None => {
                message.push(' ');
                message.push_str(line);
            }
        }
    }
    (message, tips)
}

/// Memory in MiB: `512` and `512M` are MiB, `1G` and `1.5G` are GiB. Not zero.
pub fn parse_memory(text: &str) -> Result<u32, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "'{}' is not a memory size, such as 512M or 1.5G",
            escape(text)
        ))
    };
    let mib = match text.strip_suffix(['g', 'G']) {
        Some(number) => gib_in_mib(number),
        None => whole_number(text.strip_suffix(['m', 'M']).unwrap_or(text)),
    };
    match mib.ok_or_else(wrong)? {
        0 => Err(Failure::usage("memory cannot be 0")),
        mib => u32::try_from(mib)
            .map_err(|_| Failure::usage(format!("'{text}' is more memory than can be given"))),
    }
}

/// A number of GiB, perhaps with a fraction, in whole MiB.
fn gib_in_mib(number: &str) -> Option<u64> {
    let Some((whole, fraction)) = number.split_once('.') else {
        return whole_number(number)?.checked_mul(1024);
    };
    if fraction.len() > 6 {
        return None;
    }
    let part = whole_number(fraction)? * 1024 / 10_u64.pow(fraction.len() as u32);
    whole_number(whole)?.checked_mul(1024)?.checked_add(part)
}

/// Digits only: no sign, no space.
fn whole_number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A number of processors: 1 to 255.
pub fn parse_cpus(text: &str) -> Result<u8, Failure> {
    match whole_number(text) {
        Some(0) => Err(Failure::usage("cpus cannot be 0")),
        Some(number) => u8::try_from(number)
            .map_err(|_| Failure::usage(format!("'{text}' is more cpus than 255"))),
        None => Err(Failure::usage(format!(
            "'{}' is not a number of cpus",
            escape(text)
        ))),
    }
}

/// A length of time: `500ms`, `30s`, `5m`, `1h`, `2d`; a bare number is in seconds.
pub fn parse_duration(text: &str) -> Result<Duration, Failure> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        _ => 0,
    };
    let ms = whole_number(number)
        .and_then(|number| number.checked_mul(unit_ms))
        .filter(|_| unit_ms != 0);
    let wrong = || {
        Failure::usage(format!(
            "'{}' is not a duration, such as 500ms, 30s, 5m or 1h",
            escape(text)
        ))
    };
    ms.map(Duration::from_millis).ok_or_else(wrong)
}

/// The name of a sandbox: `[A-Za-z0-9][A-Za-z0-9._-]*`, at most [`NAME_BYTES_MAX`] bytes. So it is always one plain file
/// name, and never an option or an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxName(String);

impl SandboxName {
    /// A name for a sandbox that was given none: `msb-` and eight hexadecimal digits.
    pub fn random() -> Result<SandboxName, Failure> {
        let mut bytes = [0; 4];
        let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        if got != Ok(bytes.len()) {
            return Err(Failure::failed(
                "the system gives no random numbers for a name",
            ));
        }
        Ok(SandboxName(format!(
            "{GENERATED_PREFIX}{:08x}",
            u32::from_ne_bytes(bytes)
        )))
    }

    /// Whether a name has the form of those that [`SandboxName::random`] gives.
    pub fn is_generated(name: &str) -> bool {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        name.strip_prefix(GENERATED_PREFIX)
            .is_some_and(|digits| digits.len() == 8 && digits.bytes().all(is_digit))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxName {
    type Err = Failure;

    fn from_str(text: &str) -> Result<SandboxName, Failure> {
        let refuse = |reason: String| {
            Err(Failure::usage(format!(
                "'{}' cannot be the name of a sandbox: {reason}",
                shortened(text)
            )))
        };
        if text.is_empty() {
            return Err(Failure::usage("the name of a sandbox cannot be empty"));
        }
        if text.len() > NAME_BYTES_MAX {
            return refuse(format!(
                "it has {} bytes, and {NAME_BYTES_MAX} are the most",
                text.len()
            ));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return refuse("it must start with a letter or digit (A-Z, a-z, 0-9)".to_owned());
        }
        match text
            .chars()
            .find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c))
        {
            Some(c) => refuse(format!(
                "'{}' is none of A-Z, a-z, 0-9, '.', '_', '-'",
                escape(&c.to_string())
            )),
            None => Ok(SandboxName(text.to_owned())),
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", escape(&text[..end])),
        None => escape(text).into_owned(),
    }
}

impl TryFrom<String> for SandboxName {
    type Error = Failure;

    fn try_from(text: String) -> Result<SandboxName, Failure> {
        text.parse()
    }
}

impl From<SandboxName> for String {
    fn from(name: SandboxName) -> String {
        name.0
    }
}

impl fmt::Display for SandboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for SandboxName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<Path> for SandboxName {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// A variable of the guest's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvVar {
    /// Its name; without `=`, not empty.
    pub name: OsString,
    /// Its value; any bytes but NUL.
    pub value: OsString,
}

impl EnvVar {
    /// `NAME=value`.
    pub fn to_assignment(&self) -> OsString {
        let mut bytes = self.name.as_bytes().to_vec();
        bytes.push(b'=');
        bytes.extend_from_slice(self.value.as_bytes());
        OsString::from_vec(bytes)
    }
}

/// `NAME=value`, or `NAME` alone for the value that it has on the host. (For clap, use it on [`OsString`] arguments
/// after parsing: values need not be UTF-8.)
pub fn parse_env(text: &OsStr) -> Result<EnvVar, Failure> {
    parse_env_with(text, |name| std::env::var_os(name))
}

/// [`parse_env`] with another environment of the host.
pub fn parse_env_with(
    text: &OsStr,
    host: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<EnvVar, Failure> {
    let bytes = text.as_bytes();
    let end = bytes.iter().position(|byte| *byte == b'=');
    let name = OsStr::from_bytes(&bytes[..end.unwrap_or(bytes.len())]);
    let shown = || escape(name.as_bytes()).into_owned();
    if name.is_empty() {
        return Err(Failure::usage(format!(
            "'{}' has no name of a variable",
            escape(bytes)
        )));
    }
    if name.as_bytes().starts_with(RESERVED_ENV_PREFIX.as_bytes()) {
        return Err(Failure::usage(format!(
            "the variable '{}' is reserved: names with {RESERVED_ENV_PREFIX} are ours",
            shown()
        )));
    }
    let value = match end {
        Some(end) => OsStr::from_bytes(&bytes[end + 1..]).to_owned(),
        None => host(name).ok_or_else(|| {
            let hint = format!("to give it a value, write '{}=value'", shown());
            Failure::usage(format!("the variable '{}' is not set on the host", shown())).hint(hint)
        })?,
    };
    Ok(EnvVar {
        name: name.to_owned(),
        value,
    })
}

/// Longest file of variables, in bytes.
pub const ENV_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The variables of a file: one a line, as [`parse_env`] takes it; empty lines, and lines that begin with `#`, are passed
/// over. Everything behind the `=` is the value: no quotes, no escapes, as docker's `--env-file` has it.
pub fn read_env_file(path: &Path) -> anyhow::Result<Vec<EnvVar>> {
    let text = write::read_bounded(path, ENV_FILE_BYTES_MAX)?
        .with_context(|| Failure::not_found(format!("there is no file '{}'", path.display())))?;
    parse_env_lines(&text, |name| std::env::var_os(name))
        .with_context(|| format!("in '{}'", path.display()))
}

fn parse_env_lines(
    text: &[u8],
    host: impl Fn(&OsStr) -> Option<OsString>,
) -> anyhow::Result<Vec<EnvVar>> {
    let mut variables = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let place = || format!("line {}", index + 1);
        if line.contains(&0) {
            return Err(Failure::usage("a variable cannot hold a NUL byte")).with_context(place);
        }
        variables.push(parse_env_with(OsStr::from_bytes(line), &host).with_context(place)?);
    }
    Ok(variables)
}

/// A label: `key=value`, or `key` alone for an empty value.
pub fn parse_label(text: &str) -> Result<(String, String), Failure> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let refuse = |reason: &str| {
        Err(Failure::usage(format!(
            "'{}' cannot be a label: {reason}",
            shortened(text)
        )))
    };
    if key.is_empty() {
        return refuse("its key is empty");
    }
    if key.chars().any(|c| c.is_control() || c.is_whitespace())
        || value.chars().any(char::is_control)
    {
        return refuse("keys hold no spaces, and neither part holds control characters");
    }
    if key.len() > LABEL_KEY_BYTES_MAX || value.len() > LABEL_VALUE_BYTES_MAX {
        return refuse(&format!(
            "keys have at most {LABEL_KEY_BYTES_MAX} bytes and values {LABEL_VALUE_BYTES_MAX}"
        ));
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_mib_unless_a_unit_says_otherwise() {
        for (text, mib) in [
            ("512", 512),
            ("512M", 512),
            ("1g", 1024),
            ("1.5G", 1536),
            ("0.25g", 256),
            ("4294967295", u32::MAX),
        ] {
            assert_eq!(parse_memory(text), Ok(mib), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_by_name() {
        for text in [
            "",
            "M",
            "-1",
            "+1",
            "1.5M",
            "1.5",
            "1K",
            "1GB",
            "1 G",
            ".5G",
            "1.G",
            "1.2.3G",
            "1.1234567G",
            "x",
            "1e3",
        ] {
            let error = parse_memory(text).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("'{text}' is not a memory size, such as 512M or 1.5G")
            );
        }
        assert_eq!(
            parse_memory("0").unwrap_err().to_string(),
            "memory cannot be 0"
        );
        assert_eq!(
            parse_memory("0.0G").unwrap_err().to_string(),
            "memory cannot be 0"
        );
        assert!(parse_memory("4294967296").is_err());
        assert!(parse_memory("18446744073709551615G").is_err());
    }

    #[test]
    fn cpus_are_1_to_255() {
        assert_eq!((parse_cpus("1"), parse_cpus("255")), (Ok(1), Ok(255)));
        assert_eq!(parse_cpus("0").unwrap_err().to_string(), "cpus cannot be 0");
        assert!(
            parse_cpus("256").is_err() && parse_cpus("two").is_err() && parse_cpus("-1").is_err()
        );
    }

    #[test]
    fn durations_have_units_and_are_seconds_without() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("7", 7_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("0", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "-1s",
            "1.5s",
            "1w",
            "1 s",
            "99999999999999999999",
            "18446744073709551615d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_is_one_plain_file_name() {
        for name in ["a", "web-1", "A.b_c", &"x".repeat(128)] {
            assert_eq!(name.parse::<SandboxName>().unwrap().as_str(), name);
        }
        for name in [
            "",
            ".",
            "..",
            "-x",
            "_x",
            ".x",
            "a/b",
            "../x",
            "a b",
            "a:b",
            "\u{e9}",
            "a\n",
            &"x".repeat(129),
        ] {
            assert!(name.parse::<SandboxName>().is_err(), "{name}");
        }
        let error = "a\x1b".parse::<SandboxName>().unwrap_err().to_string();
        assert_eq!(
            error,
            "'a\\x1b' cannot be the name of a sandbox: '\\x1b' is none of A-Z, a-z, 0-9, '.', '_', '-'"
        );
    }

    #[test]
    fn a_random_name_is_a_name() {
        let name = SandboxName::random().unwrap();
        assert_eq!(name.as_str().parse(), Ok(name.clone()));
        assert!(SandboxName::is_generated(name.as_str()));
        assert!(
            !SandboxName::is_generated("msb-worker") && !SandboxName::is_generated("msb-0123ABCD")
        );
    }

    #[test]
    fn a_name_in_json_is_checked_when_read() {
        assert!(serde_json::from_str::<SandboxName>("\"../x\"").is_err());
        let name: SandboxName = serde_json::from_str("\"x\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"x\"");
    }

    fn env(text: &[u8]) -> Result<EnvVar, Failure> {
        parse_env_with(OsStr::from_bytes(text), |name| {
            (name == "HOST").then(|| OsString::from_vec(b"v\xff".to_vec()))
        })
    }

    #[test]
    fn a_variable_has_a_value_or_takes_that_of_the_host() {
        assert_eq!(env(b"A=b=c").unwrap().to_assignment(), "A=b=c");
        assert_eq!(env(b"A=").unwrap().value, "");
        assert_eq!(
            env(b"HOST").unwrap().to_assignment().as_bytes(),
            b"HOST=v\xff"
        );
        assert_eq!(
            env(b"NOPE").unwrap_err().to_string(),
            "the variable 'NOPE' is not set on the host"
        );
        assert!(env(b"=x").is_err() && env(b"").is_err() && env(b"MSB_X=1").is_err());
    }

    #[test]
    fn a_file_of_variables_has_one_a_line_and_no_quotes() {
        let host = |name: &OsStr| (name == "HOST").then(|| OsString::from("h"));
        let text = b"# remark\n\n  A=1 # no remark\nB=\"x\"\r\nHOST\nC=";
        let read: Vec<OsString> = parse_env_lines(text, host)
            .unwrap()
            .iter()
            .map(EnvVar::to_assignment)
            .collect();
        assert_eq!(read, ["A=1 # no remark", "B=\"x\"", "HOST=h", "C="]);
        for (text, place) in [
            (&b"A=1\n=x"[..], "line 2"),
            (b"NOPE", "line 1"),
            (b"A=\0", "line 1"),
        ] {
            assert_eq!(parse_env_lines(text, host).unwrap_err().to_string(), place);
        }
    }

    #[test]
    fn a_label_has_a_key_and_perhaps_a_value() {
        assert_eq!(parse_label("team=ml=x"), Ok(("team".into(), "ml=x".into())));
        assert_eq!(parse_label("gpu"), Ok(("gpu".into(), String::new())));
        for text in [
            "",
            "=x",
            "a b=c",
            "a=\n",
            &"k".repeat(129),
            &format!("k={}", "v".repeat(1025)),
        ] {
            assert!(parse_label(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_parsers_report_becomes_one_sentence_and_hints() {
        let report = "error: unexpected argument '--naem' found\n\n  tip: a similar argument exists: '--name'\n\n\
                      Usage: t --name <NAME>\n\nFor more information, try '--help'.\n";
        let (message, tips) = usage_message(report);
        assert_eq!(message, "unexpected argument '--naem' found");
        assert_eq!(tips, ["a similar argument exists: '--name'"]);

        let report = "error: the following required arguments were not provided:\n  <IMAGE>\n  <X>\n\nUsage: t <IMAGE>\n";
        assert_eq!(
            usage_message(report).0,
            "the following required arguments were not provided: <IMAGE> <X>"
        );
    }
}
