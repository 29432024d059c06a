//! Parsers of arguments: memory sizes, durations, names, environment variables, labels; and usage
//! errors in msb's form.
//!
//! The functions parse text and do no I/O. Only an environment variable without a value is looked
//! up in the host's environment.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::iter;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use clap::error::{ContextKind, ErrorKind};
use serde::{Deserialize, Serialize};

use super::error::{self, Code, Failure};
use super::escape::escape;
use super::typed::command_name;
use super::{exit, mdoc, output, typed, verbosity};
use crate::state::write;

/// Longest name of a sandbox, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest key of a label, in bytes.
pub const LABEL_KEY_BYTES_MAX: usize = 128;
/// Longest value of a label, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 1024;
/// Prefix of generated names.
const GENERATED_PREFIX: &str = "msb-";
/// Prefix of environment variables that msb reserves, in the guest and on the host.
pub const RESERVED_ENV_PREFIX: &str = "MSB_";

/// Parses a tool's arguments, its own name being the first. Help and version go to standard output;
/// errors are printed in the common form. Both return the exit code.
pub fn parse<P: clap::Parser>(
    tool: &str,
    args: impl IntoIterator<Item = OsString>,
) -> Result<P, ExitCode> {
    let command = mdoc::without_details(P::command()).bin_name(command_name(tool).into_owned());
    let mut command = verbosity::with_options(command);
    let parsed = command.try_get_matches_from_mut(args).and_then(|matches| {
        let parsed = P::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        Ok((parsed, matches))
    });
    let (parsed, matches) = parsed.map_err(|error| ExitCode::from(report_usage(tool, &error)))?;
    match verbosity::choose(tool, &matches).and_then(|()| error::check_format()) {
        Ok(()) => Ok(parsed),
        Err(failure) => Err(error::exit_code(tool, Err(failure.into()))),
    }
}

/// Prints a usage error in the common form, or the requested help or version. Returns the exit code.
pub fn report_usage(tool: &str, error: &clap::Error) -> u8 {
    let asked_for = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion];
    if asked_for.contains(&error.kind()) {
        let text = error.render().to_string();
        return match output::print(text.trim_end()) {
            Ok(()) => exit::DONE,
            Err(error) => super::error::report(tool, &error.into()),
        };
    }
    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if is_help && !error::is_for_programs() {
        eprint!("{}", error.render());
        return exit::USAGE;
    }
    let message = match is_help {
        true => "arguments are missing".to_owned(),
        false => usage_message(&error.render().to_string()),
    };
    let has_invalid_value = [ErrorKind::ValueValidation, ErrorKind::InvalidValue];
    let code = match has_invalid_value.contains(&error.kind()) {
        true => Code::InvalidConfig,
        false => Code::Usage,
    };
    let failure = Failure::usage(message).code(code);
    let failure = match usage_hint(tool, error) {
        Some(hint) => failure.hint(hint),
        None => failure,
    };
    super::error::report(tool, &failure.into())
}

/// Returns the hint for a usage error.
fn usage_hint(tool: &str, error: &clap::Error) -> Option<String> {
    let value = error.get(ContextKind::InvalidValue).map(ToString::to_string);
    match value {
        Some(value) if value.contains("{{") => {
            let hint = "templates are not supported: use --format json, and jq(1) to select fields";
            return Some(hint.to_owned());
        }
        Some(value) if value == "table" => {
            return Some("the table is the default: omit --format".to_owned());
        }
        _ => {}
    }
    // The message says what is wrong with the value; the list of options would not help. A parser of
    // msb may have a hint.
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    if let Some(hint) = source.and_then(Failure::hint_text) {
        return Some(hint.to_owned());
    }
    let has_hint = error.kind() != ErrorKind::ValueValidation;
    has_hint.then(|| format!("see '{} --help'", typed_command(tool, &error.render().to_string())))
}

/// Returns the command of an error, with its subcommand: the words at the start of the usage in the
/// parser's report. A command that was typed by another name than its program's is that name.
fn typed_command(tool: &str, report: &str) -> String {
    let (typed, own) = (typed::name(tool), command_name(tool));
    if typed != own {
        return typed.into_owned();
    }
    let is_command = |word: &&str| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    let usage = report.lines().find_map(|line| line.trim().strip_prefix("Usage: "));
    let words = usage.and_then(|usage| usage.strip_prefix(own.as_ref())).unwrap_or_default();
    let words =
        words.split_whitespace().take_while(|word| is_command(word) && !word.starts_with('-'));
    iter::once(own.as_ref()).chain(words).collect::<Vec<_>>().join(" ")
}

/// Returns the sentence of the parser's report. `--help` has the usage. The parser's tips are left
/// out: they guess at the user's intent.
fn usage_message(report: &str) -> String {
    let mut lines = report.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let first = lines.next().unwrap_or_default();
    let mut message = first.strip_prefix("error: ").unwrap_or(first).to_owned();
    let is_other = |line: &&str| {
        line.is_empty() || line.starts_with("tip: ") || line.starts_with("For more information")
    };
    for line in lines.filter(|line| !is_other(line)) {
        message.push(' ');
        message.push_str(line);
    }
    message
}

/// Parses a memory size in MiB: `512` and `512M` are MiB, `1G` and `1.5G` are GiB. Zero is invalid.
pub fn parse_memory(text: &str) -> Result<u32, Failure> {
    let wrong =
        || Failure::usage(format!("'{}' is not a memory size, such as 512M or 1.5G", escape(text)));
    let mib = match text.strip_suffix(['g', 'G']) {
        Some(number) => gib_in_mib(number),
        None => whole_number(text.strip_suffix(['m', 'M']).unwrap_or(text)),
    };
    match mib.ok_or_else(wrong)? {
        0 => Err(Failure::usage("memory cannot be 0")),
        mib => u32::try_from(mib)
            .map_err(|_| Failure::usage(format!("'{text}' exceeds the memory limit"))),
    }
}

/// Parses a number of GiB, with an optional fraction, and returns whole MiB.
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

/// Parses digits only: no sign, no space.
fn whole_number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Parses a number of processors: 1 to 255.
pub fn parse_cpus(text: &str) -> Result<u8, Failure> {
    match whole_number(text) {
        Some(0) => Err(Failure::usage("cpus cannot be 0")),
        Some(number) => u8::try_from(number)
            .map_err(|_| Failure::usage(format!("'{text}' exceeds the limit of 255 cpus"))),
        None => Err(Failure::usage(format!("'{}' is not a number of cpus", escape(text)))),
    }
}

/// Parses a duration: `500ms`, `30s`, `5m`, `1h`, `2d`; a bare number is in seconds.
pub fn parse_duration(text: &str) -> Result<Duration, Failure> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
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

/// The name of a sandbox: `[A-Za-z0-9][A-Za-z0-9._-]*`, at most [`NAME_BYTES_MAX`] bytes. It is
/// always a plain file name, and never an option or a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxName(String);

impl SandboxName {
    /// Returns a random name: `msb-` and eight hexadecimal digits.
    pub fn random() -> Result<SandboxName, Failure> {
        let mut bytes = [0; 4];
        let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        if got != Ok(bytes.len()) {
            return Err(Failure::failed("cannot get random bytes for a name"));
        }
        Ok(SandboxName(format!("{GENERATED_PREFIX}{:08x}", u32::from_ne_bytes(bytes))))
    }

    /// Returns whether a name has the form of [`SandboxName::random`].
    pub fn is_generated(name: &str) -> bool {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        name.strip_prefix(GENERATED_PREFIX)
            .is_some_and(|digits| digits.len() == 8 && digits.bytes().all(is_digit))
    }

    /// Returns the name.
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
                "it has {} bytes, but the limit is {NAME_BYTES_MAX}",
                text.len()
            ));
        }
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return refuse("it must start with a letter or digit (A-Z, a-z, 0-9)".to_owned());
        }
        match text.chars().find(|c| !c.is_ascii_alphanumeric() && !"._-".contains(*c)) {
            Some(c) => refuse(format!(
                "'{}' is not one of A-Z, a-z, 0-9, '.', '_', '-'",
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

/// An environment variable of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvVar {
    /// The name; without `=`, not empty.
    pub name: OsString,
    /// The value; any bytes but NUL.
    pub value: OsString,
}

impl EnvVar {
    /// Returns `NAME=value`.
    pub fn to_assignment(&self) -> OsString {
        let mut bytes = self.name.as_bytes().to_vec();
        bytes.push(b'=');
        bytes.extend_from_slice(self.value.as_bytes());
        OsString::from_vec(bytes)
    }
}

/// Parses `NAME=value`, or `NAME` alone, which takes the value from the host's environment. (With
/// clap, parse an [`OsString`] argument: values need not be UTF-8.)
pub fn parse_env(text: &OsStr) -> Result<EnvVar, Failure> {
    parse_env_with(text, |name| std::env::var_os(name))
}

/// [`parse_env`] with another host environment.
pub fn parse_env_with(
    text: &OsStr,
    host: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<EnvVar, Failure> {
    let bytes = text.as_bytes();
    let end = bytes.iter().position(|byte| *byte == b'=');
    let name = OsStr::from_bytes(&bytes[..end.unwrap_or(bytes.len())]);
    let shown = || escape(name.as_bytes()).into_owned();
    if name.is_empty() {
        return Err(Failure::usage(format!("'{}' has no variable name", escape(bytes))));
    }
    if name.as_bytes().starts_with(RESERVED_ENV_PREFIX.as_bytes()) {
        return Err(Failure::usage(format!(
            "the variable '{}' is reserved: msb uses names that start with {RESERVED_ENV_PREFIX}",
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
    Ok(EnvVar { name: name.to_owned(), value })
}

/// Longest environment file, in bytes.
pub const ENV_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads environment variables from a file: one for each line, as [`parse_env`] parses it. Empty
/// lines, and lines that start with `#`, are ignored. The rest of the line after `=` is the value:
/// no quotes, no escapes, like docker's `--env-file`.
pub fn read_env_file(path: &Path) -> anyhow::Result<Vec<EnvVar>> {
    let text = write::read_bounded(path, ENV_FILE_BYTES_MAX)?
        .with_context(|| Failure::not_found(format!("there is no file '{}'", path.display())))?;
    parse_env_lines(&text, |name| std::env::var_os(name))
        .with_context(|| format!("in '{}'", path.display()))
}

/// Reads labels from a file: one for each line, as [`parse_new_label`] parses it. Empty lines, and
/// lines that start with `#`, are ignored, like docker's `--label-file`.
pub fn read_label_file(path: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let text = write::read_bounded(path, ENV_FILE_BYTES_MAX)?
        .with_context(|| Failure::not_found(format!("there is no file '{}'", path.display())))?;
    let parse = |(number, line)| {
        let line = std::str::from_utf8(line).map_err(|_| Failure::usage("a label is not UTF-8"));
        line.and_then(parse_new_label).with_context(|| format!("line {number}"))
    };
    let labels: anyhow::Result<_> = lines(&text).map(parse).collect();
    labels.with_context(|| format!("in '{}'", path.display()))
}

/// Returns the lines of a file of settings with their numbers, without empty lines and comments.
fn lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = text.split(|byte| *byte == b'\n');
    let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start());
    (1..).zip(lines).filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#"))
}

fn parse_env_lines(
    text: &[u8],
    host: impl Fn(&OsStr) -> Option<OsString>,
) -> anyhow::Result<Vec<EnvVar>> {
    let mut variables = Vec::new();
    for (number, line) in lines(text) {
        let place = || format!("line {number}");
        if line.contains(&0) {
            return Err(Failure::usage("a variable cannot hold a NUL byte")).with_context(place);
        }
        variables.push(parse_env_with(OsStr::from_bytes(line), &host).with_context(place)?);
    }
    Ok(variables)
}

/// Prefixes of label keys that microsandbox reserves. Its tools and msb's exporters use them.
pub const RESERVED_LABEL_PREFIXES: [&str; 3] = ["sandbox.", "microsandbox.", "service."];

/// Returns whether the key of a label is reserved.
pub fn is_reserved_label(key: &str) -> bool {
    RESERVED_LABEL_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// Parses a label that a user sets: as [`parse_label`], and its key is not reserved.
pub fn parse_new_label(text: &str) -> Result<(String, String), Failure> {
    let (key, value) = parse_label(text)?;
    if is_reserved_label(&key) {
        let message = format!("'{}' cannot be a label: its prefix is reserved", shortened(&key));
        return Err(Failure::usage(message).hint(format!(
            "reserved are {}; choose another prefix",
            RESERVED_LABEL_PREFIXES.join(", ")
        )));
    }
    Ok((key, value))
}

/// Parses a label: `key=value`, or `key` alone for an empty value.
pub fn parse_label(text: &str) -> Result<(String, String), Failure> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let refuse = |reason: &str| {
        Err(Failure::usage(format!("'{}' cannot be a label: {reason}", shortened(text))))
    };
    if key.is_empty() {
        return refuse("its key is empty");
    }
    if key.chars().any(|c| c.is_control() || c.is_whitespace())
        || value.chars().any(char::is_control)
    {
        return refuse(
            "keys cannot contain spaces, and keys and values cannot contain control characters",
        );
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
    fn a_hint_names_the_subcommand() {
        let report = |usage: &str| format!("error: no\n\nUsage: {usage}\n\nFor more information");
        for (usage, command) in [
            ("msb snapshot create [OPTIONS] --from <SANDBOX> <DEST>", "msb snapshot create"),
            ("msb snapshot <COMMAND>", "msb snapshot"),
            ("msb snapshot --from <SANDBOX> name", "msb snapshot"),
            ("other create", "msb snapshot"),
        ] {
            assert_eq!(typed_command("msb-snapshot", &report(usage)), command);
        }
        assert_eq!(typed_command("msb-snapshot", "error: no"), "msb snapshot");
    }

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
            assert_eq!(error, format!("'{text}' is not a memory size, such as 512M or 1.5G"));
        }
        assert_eq!(parse_memory("0").unwrap_err().to_string(), "memory cannot be 0");
        assert_eq!(parse_memory("0.0G").unwrap_err().to_string(), "memory cannot be 0");
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
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in
            ["", "s", "-1s", "1.5s", "1w", "1 s", "99999999999999999999", "18446744073709551615d"]
        {
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
            "'a\\x1b' cannot be the name of a sandbox: \
             '\\x1b' is not one of A-Z, a-z, 0-9, '.', '_', '-'"
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
        assert_eq!(env(b"HOST").unwrap().to_assignment().as_bytes(), b"HOST=v\xff");
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
        let read: Vec<OsString> =
            parse_env_lines(text, host).unwrap().iter().map(EnvVar::to_assignment).collect();
        assert_eq!(read, ["A=1 # no remark", "B=\"x\"", "HOST=h", "C="]);
        for (text, place) in [(&b"A=1\n=x"[..], "line 2"), (b"NOPE", "line 1"), (b"A=\0", "line 1")]
        {
            assert_eq!(parse_env_lines(text, host).unwrap_err().to_string(), place);
        }
    }

    #[test]
    fn a_label_has_a_key_and_perhaps_a_value() {
        assert_eq!(parse_label("team=ml=x"), Ok(("team".into(), "ml=x".into())));
        assert_eq!(parse_label("gpu"), Ok(("gpu".into(), String::new())));
        for text in
            ["", "=x", "a b=c", "a=\n", &"k".repeat(129), &format!("k={}", "v".repeat(1025))]
        {
            assert!(parse_label(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_parsers_report_becomes_one_sentence_without_its_guesses() {
        let report = "error: unexpected argument '--naem' found\n\n  tip: a similar argument exists: '--name'\n\n\
                      Usage: t --name <NAME>\n\nFor more information, try '--help'.\n";
        assert_eq!(usage_message(report), "unexpected argument '--naem' found");

        let report = "error: the following required arguments were not provided:\n  <IMAGE>\n  <X>\n\nUsage: t <IMAGE>\n";
        assert_eq!(
            usage_message(report),
            "the following required arguments were not provided: <IMAGE> <X>"
        );
    }
}
