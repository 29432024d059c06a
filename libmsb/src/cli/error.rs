//! The one form of an error: `tool: error: cannot open 'X': permission denied`, and `tool: hint: …` where we know the
//! next step.
//!
//! Tools return [`anyhow::Result`]. Somewhere in the chain a [`Failure`] may stand: it says which exit code the whole
//! has, and may carry the hint. Without one the exit code is 1.
//!
//! A program that started the tool with `MSB_ERRORS=json` gets each of these lines as an object of JSON instead, the error
//! with its [`Code`].

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::escape::escape;
use super::verbosity::{self, Verbosity};
use super::{exit, output};

/// The sort of failure; it decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request failed.
    Failed,
    /// The command line is wrong.
    Usage,
    /// There is no such sandbox, image, ….
    NotFound,
    /// It is there, but its state does not allow that.
    WrongState,
    /// A bug of ours.
    Bug,
}

/// What is wrong, by name, for programs; man page msb(1) lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// There is no sandbox of that name.
    SandboxNotFound,
    /// There is a sandbox of that name already.
    SandboxAlreadyExists,
    /// The sandbox runs, and must not.
    SandboxStillRunning,
    /// The sandbox does not run, and must.
    SandboxNotRunning,
    /// There is no such image.
    ImageNotFound,
    /// The image is used by sandboxes.
    ImageInUse,
    /// The sandbox did not come up.
    BootFailed,
    /// No samples are taken of the sandbox.
    MetricsDisabled,
    /// A peer of another release does not serve this operation.
    UnsupportedOperation,
    /// What was asked for cannot be: a wrong name, number, size.
    InvalidConfig,
    /// Anything else that is not there.
    NotFound,
    /// Anything else that the state does not allow.
    WrongState,
    /// A bug of ours.
    Internal,
    /// Anything else, and codes of later releases.
    #[serde(other)]
    Failed,
}

impl Code {
    /// What a kind of failure is called when nothing more is known.
    fn of(kind: Kind) -> Code {
        match kind {
            Kind::Failed => Code::Failed,
            Kind::Usage => Code::InvalidConfig,
            Kind::NotFound => Code::NotFound,
            Kind::WrongState => Code::WrongState,
            Kind::Bug => Code::Internal,
        }
    }
}

/// The line that stands for an error when a program reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// The tool's name.
    pub tool: String,
    /// What is wrong, by name.
    pub code: Code,
    /// What is wrong, for people.
    pub error: String,
    /// What can be done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The variable that asks for errors as JSON.
pub const FORMAT_VARIABLE: &str = "MSB_ERRORS";

/// An error with a kind, and perhaps a name and a hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    kind: Kind,
    code: Option<Code>,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure: lower case, subject in single quotes, no full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Failure {
        Failure {
            kind,
            code: None,
            message: message.into(),
            hint: None,
        }
    }

    /// The request failed.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Failed, message)
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Usage, message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(Kind::NotFound, message)
    }

    /// Its state does not allow that.
    pub fn wrong_state(message: impl Into<String>) -> Failure {
        Failure::new(Kind::WrongState, message)
    }

    /// Gives it a name.
    #[must_use]
    pub fn code(mut self, code: Code) -> Failure {
        self.code = Some(code);
        self
    }

    /// Says what the user can do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// What the user can do next, if that is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The sort of failure.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A failure that another program of ours has told already: only its exit code goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told(pub u8);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it was told why")
    }
}

impl std::error::Error for Told {}

/// Prints the error (and its hint) to standard error and gives the exit code. Prints nothing, and gives success, when
/// the error is only that nobody reads our output any more.
pub fn report(tool: &str, error: &anyhow::Error) -> u8 {
    if let Some(Told(code)) = error.downcast_ref() {
        return *code;
    }
    if output::is_closed(error) {
        return exit::DONE;
    }
    if is_for_programs() {
        print_json(&Reported {
            tool: tool.to_owned(),
            code: code(error),
            error: message(error),
            hint: hint(error).map(str::to_owned),
        });
    } else {
        print_error(tool, &message(error));
        if let Some(hint) = hint(error) {
            print_line(tool, "hint", hint);
        }
    }
    kind(error).map_or(exit::FAILED, exit::code)
}

/// What `main` returns: success, or the reported error's code.
pub fn exit_code(tool: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => ExitCode::from(report(tool, &error)),
    }
}

/// Prints `tool: error: message`, for an error that does not end the tool (the next of several names).
pub fn print_error(tool: &str, message: &str) {
    print_line(tool, "error", message);
}

/// Prints `tool: warning: message`.
pub fn print_warning(tool: &str, message: &str) {
    if verbosity::says(Verbosity::Warn) {
        print_line(tool, "warning", message);
    }
}

/// Prints `tool: note: message`, for what is good to know and asks for nothing.
pub fn print_note(tool: &str, message: &str) {
    if verbosity::says(Verbosity::Info) {
        print_line(tool, "note", message);
    }
}

/// Prints `tool: hint: message`.
pub fn print_hint(tool: &str, message: &str) {
    print_line(tool, "hint", message);
}

/// One write, so that lines of several processes do not mix. Where standard error is closed there is nobody to tell.
pub(super) fn print_line(tool: &str, what: &str, message: &str) {
    if is_for_programs() {
        return print_json(&serde_json::json!({"tool": tool, what: message}));
    }
    let line = format!("{}: {what}: {}\n", escape(tool), escape(message));
    drop(io::stderr().write_all(line.as_bytes()));
}

fn is_for_programs() -> bool {
    std::env::var_os(FORMAT_VARIABLE).is_some_and(|value| value == "json")
}

fn print_json(line: &impl Serialize) {
    drop(crate::jsonl::write(&mut io::stderr(), line));
}

/// The name of what is wrong.
pub fn code(error: &anyhow::Error) -> Code {
    let named = failures(error).find_map(|failure| failure.code);
    named.unwrap_or_else(|| kind(error).map_or(Code::Failed, Code::of))
}

/// The whole chain in one line, each cause after a colon.
pub fn message(error: &anyhow::Error) -> String {
    let mut whole = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = clean(&text);
        // Some libraries put the cause's text into their own and name it as the source as well.
        if text.is_empty() || whole.ends_with(text.as_ref()) {
            continue;
        }
        if !whole.is_empty() {
            whole.push_str(": ");
        }
        whole.push_str(&text);
    }
    whole
}

/// The kind of the first [`Failure`] in the chain.
pub fn kind(error: &anyhow::Error) -> Option<Kind> {
    failures(error).next().map(|failure| failure.kind)
}

/// The first hint in the chain.
pub fn hint(error: &anyhow::Error) -> Option<&str> {
    failures(error).find_map(|failure| failure.hint.as_deref())
}

/// Failures in the chain: one given as context (which only anyhow itself finds), then those that are errors.
fn failures(error: &anyhow::Error) -> impl Iterator<Item = &Failure> {
    let context = error.downcast_ref::<Failure>();
    context.into_iter().chain(
        error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<Failure>()),
    )
}

/// `No such file or directory (os error 2)` becomes `no such file or directory`, wherever it stands in the text.
pub fn clean(text: &str) -> Cow<'_, str> {
    const MARK: &str = " (os error ";
    let Some(start) = text.find(MARK) else {
        return Cow::Borrowed(text);
    };
    let (before, rest) = (&text[..start], &text[start + MARK.len()..]);
    let Some(end) = rest.find(')') else {
        return Cow::Borrowed(text);
    };
    let reason = before.rfind(": ").map_or(0, |colon| colon + 2);
    Cow::Owned(format!(
        "{}{}{}",
        &before[..reason],
        lower_first(&before[reason..]),
        clean(&rest[end + 1..])
    ))
}

/// The first letter in lower case, unless the word is written in capitals (`I/O`, `JSON`).
fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    match (characters.next(), characters.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain(characters).collect()
        }
        _ => text.to_owned(),
    }
}

/// From now on a panic is told in our form and ends the program with the exit code for bugs.
pub fn catch_bugs(tool: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic
            .location()
            .map(|place| format!(" at {}:{}", place.file(), place.line()))
            .unwrap_or_default();
        let payload = panic.payload();
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or(payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("unknown");
        print_error(tool, &format!("this is a bug of msb{place}: {text}"));
        std::process::exit(i32::from(exit::BUG));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io_error() -> anyhow::Error {
        io::Error::from_raw_os_error(libc::EACCES).into()
    }

    #[test]
    fn a_chain_reads_as_one_sentence_without_numbers_of_the_system() {
        let error = io_error()
            .context("cannot open 'x'")
            .context("cannot load 'y'");
        assert_eq!(
            message(&error),
            "cannot load 'y': cannot open 'x': permission denied"
        );
    }

    #[test]
    fn a_system_message_within_another_text_is_cleaned_too() {
        assert_eq!(
            clean("a: No such file or directory (os error 2), sorry"),
            "a: no such file or directory, sorry"
        );
        assert_eq!(clean("I/O trouble (os error 5)"), "I/O trouble");
        assert_eq!(
            clean("nothing to clean (os error"),
            "nothing to clean (os error"
        );
    }

    #[test]
    fn a_cause_that_was_told_already_is_not_repeated() {
        let error = anyhow::anyhow!("no route").context("cannot pull: no route");
        assert_eq!(message(&error), "cannot pull: no route");
    }

    #[test]
    fn the_first_failure_of_the_chain_decides_the_exit_code_and_any_may_hint() {
        let root =
            anyhow::Error::new(Failure::not_found("there is no sandbox 'x'").hint("see 'msb ls'"));
        let error = root.context("cannot stop 'x'");
        assert_eq!(
            (kind(&error), hint(&error)),
            (Some(Kind::NotFound), Some("see 'msb ls'"))
        );

        let error = io_error()
            .context(Failure::wrong_state("'x' is running"))
            .context("cannot remove 'x'");
        assert_eq!((kind(&error), hint(&error)), (Some(Kind::WrongState), None));
        assert_eq!(
            message(&error),
            "cannot remove 'x': 'x' is running: permission denied"
        );

        assert_eq!(kind(&io_error()), None);
        assert_eq!(report("test", &error), exit::WRONG_STATE);
        assert_eq!(report("test", &io_error()), exit::FAILED);
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        let broken_pipe = || anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(report("test", &broken_pipe()), exit::DONE);
        assert_eq!(
            report("test", &broken_pipe().context("cannot reach the sandbox")),
            exit::FAILED
        );
    }
}
