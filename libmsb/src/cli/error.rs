//! The one form of an error: `msb run: error: cannot open 'X': permission denied`, and
//! `msb run: hint: …` where the next step is known.
//!
//! Tools return [`anyhow::Result`]. A [`Failure`] anywhere in the chain sets the exit code and may
//! carry the hint. Without one the exit code is 1.
//!
//! A program that starts the tool with `MSB_ERRORS=json` gets one JSON object for each error, with
//! its [`Code`] and its hint, and one for each warning and note.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use msb_wire::exec::FailureKind;
use serde::{Deserialize, Serialize};

use super::escape::escape;
use super::verbosity::{self, Verbosity};
use super::{exit, output, typed};

/// Kind of an error; it decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request failed.
    Failed,
    /// The command line is wrong.
    Usage,
    /// There is no such sandbox, image, ….
    NotFound,
    /// The state of the object does not allow the request.
    WrongState,
    /// A bug of msb.
    Bug,
}

/// Error code for programs; man page msb(1) lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// There is no sandbox of that name.
    SandboxNotFound,
    /// A sandbox of that name exists already.
    SandboxAlreadyExists,
    /// The sandbox runs, but must not.
    SandboxStillRunning,
    /// The sandbox does not run, but must.
    SandboxNotRunning,
    /// There is no such image.
    ImageNotFound,
    /// The image is used by sandboxes.
    ImageInUse,
    /// There is no such snapshot.
    SnapshotNotFound,
    /// A snapshot of that name exists already.
    SnapshotAlreadyExists,
    /// The sandbox of a snapshot runs, but must not.
    SnapshotSandboxRunning,
    /// The image of a snapshot is missing.
    SnapshotImageMissing,
    /// A snapshot is damaged.
    SnapshotIntegrity,
    /// The sandbox did not boot.
    BootFailed,
    /// No samples of the sandbox are taken.
    MetricsDisabled,
    /// A peer of another release does not serve the operation.
    UnsupportedOperation,
    /// The command line is wrong: an unknown command or option, a missing argument.
    Usage,
    /// A value is invalid: a name, number or size.
    InvalidConfig,
    /// There is no volume of that name.
    VolumeNotFound,
    /// A volume of that name exists already.
    VolumeAlreadyExists,
    /// The volume is used by a running sandbox.
    VolumeInUse,
    /// The image could not be pulled from its registry.
    PullFailed,
    /// The command was not started in the guest; [`ErrorLine::kind`] has the reason.
    ExecFailed,
    /// The command did not end in time and was killed.
    ExecTimeout,
    /// Another object is missing.
    NotFound,
    /// The state of another object does not allow the request.
    WrongState,
    /// A bug of msb.
    Internal,
    /// Any other error, and codes of later releases.
    #[serde(other)]
    Failed,
}

impl Code {
    /// Returns the code of an error of which only the kind is known.
    fn of(kind: ErrorKind) -> Code {
        match kind {
            ErrorKind::Failed => Code::Failed,
            ErrorKind::Usage => Code::InvalidConfig,
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::WrongState => Code::WrongState,
            ErrorKind::Bug => Code::Internal,
        }
    }
}

/// An error line in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorLine {
    /// Name of the command as in the text form: `msb run`.
    pub tool: String,
    /// Error code.
    pub code: Code,
    /// Reason of [`Code::ExecFailed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<FailureKind>,
    /// Message, for people.
    pub error: String,
    /// Hint, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The variable that selects the form of errors: `json`, or `text`, which is the default.
pub const FORMAT_VARIABLE: &str = "MSB_ERRORS";

/// Checks the value of [`FORMAT_VARIABLE`]. A program that misspells it would otherwise parse text.
pub fn check_format() -> Result<(), Failure> {
    let Some(value) = std::env::var_os(FORMAT_VARIABLE) else {
        return Ok(());
    };
    if value.is_empty() || value == "json" || value == "text" {
        return Ok(());
    }
    let value = value.to_string_lossy();
    let message = format!("the variable {FORMAT_VARIABLE} has the unknown value '{value}'");
    Err(Failure::usage(message)
        .hint(format!("use {FORMAT_VARIABLE}=json or {FORMAT_VARIABLE}=text")))
}

/// An error with a kind, and optionally a code and a hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    kind: ErrorKind,
    code: Option<Code>,
    exec_kind: Option<FailureKind>,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// Returns an error. Messages are lower case, with names in single quotes and no full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Failure {
        Failure { kind, code: None, exec_kind: None, message: message.into(), hint: None }
    }

    /// Returns an error of kind [`ErrorKind::Failed`]: the request failed.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::new(ErrorKind::Failed, message)
    }

    /// Returns an error of kind [`ErrorKind::Usage`]: the command line is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(ErrorKind::Usage, message)
    }

    /// Returns an error of kind [`ErrorKind::NotFound`]: an object is missing.
    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(ErrorKind::NotFound, message)
    }

    /// Returns an error of kind [`ErrorKind::WrongState`]: its state does not allow the request.
    pub fn wrong_state(message: impl Into<String>) -> Failure {
        Failure::new(ErrorKind::WrongState, message)
    }

    /// Sets the error code.
    #[must_use]
    pub fn code(mut self, code: Code) -> Failure {
        self.code = Some(code);
        self
    }

    /// Sets the code [`Code::ExecFailed`] and the reason.
    #[must_use]
    pub fn exec_failed(mut self, kind: FailureKind) -> Failure {
        self.exec_kind = Some(kind);
        self.code(Code::ExecFailed)
    }

    /// Sets the hint: what the user can do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Returns the hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns the kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// An exit code of another msb program, which has printed the error already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportedExit(pub u8);

impl fmt::Display for ReportedExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the error was already reported")
    }
}

impl std::error::Error for ReportedExit {}

/// Prints the error and its hint to standard error and returns the exit code. If the reader of
/// standard output has gone, prints nothing and returns success.
pub fn report(tool: &str, error: &anyhow::Error) -> u8 {
    if let Some(ReportedExit(code)) = error.downcast_ref() {
        return *code;
    }
    if output::is_closed(error) {
        return exit::DONE;
    }
    print_failure(tool, error);
    kind(error).map_or(exit::FAILED, exit::code)
}

/// Returns the exit code of `main`: success, or that of the reported error.
pub fn exit_code(tool: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => ExitCode::from(report(tool, &error)),
    }
}

/// Finds a hint for an error that has none.
pub type HintFinder = fn(&anyhow::Error) -> Option<String>;

/// The finder of hints, set by the code that knows more of the error's subject.
static HINT_FINDER: OnceLock<HintFinder> = OnceLock::new();

/// Sets the finder of hints for errors that have none. Only the first call has an effect.
pub fn set_hint_finder(finder: HintFinder) {
    let _ = HINT_FINDER.set(finder);
}

/// Returns a hint from the finder.
pub fn find_hint(error: &anyhow::Error) -> Option<String> {
    HINT_FINDER.get().and_then(|find| find(error))
}

/// Prints an error and its hint, also one that does not end the tool (the first of several names).
pub fn print_failure(tool: &str, error: &anyhow::Error) {
    let hint = hint(error).map(str::to_owned).or_else(|| find_hint(error));
    if is_for_programs() {
        return print_json(&ErrorLine {
            tool: typed::name(tool).into_owned(),
            code: code(error),
            kind: exec_kind(error),
            error: message(error),
            hint,
        });
    }
    print_line(tool, "error", &message(error));
    if let Some(hint) = hint {
        print_line(tool, "hint", &hint);
    }
}

/// Prints an error of which only the message is known.
pub fn print_error(tool: &str, message: &str) {
    print_failure(tool, &Failure::failed(message).into());
}

/// Prints `msb VERB: warning: message`.
pub fn print_warning(tool: &str, message: &str) {
    if verbosity::is_enabled(Verbosity::Warn) {
        print_line(tool, "warning", message);
    }
}

/// Prints a warning and its hint.
pub fn print_warning_with_hint(tool: &str, message: &str, hint: &str) {
    if !verbosity::is_enabled(Verbosity::Warn) {
        return;
    }
    if is_for_programs() {
        let tool = typed::name(tool);
        return print_json(&serde_json::json!({"tool": tool, "warning": message, "hint": hint}));
    }
    print_line(tool, "warning", message);
    print_line(tool, "hint", hint);
}

/// Prints a warning under the name that the program gave to [`catch_bugs`]. Modules below `main` use
/// it, so that they need no name of their own.
pub fn warn(message: &str) {
    print_warning(program(), message);
}

/// Returns the name that the program gave to [`catch_bugs`].
pub fn program() -> &'static str {
    PROGRAM.get().copied().unwrap_or("msb")
}

/// Prints `msb VERB: note: message`, for information that needs no action.
pub fn print_note(tool: &str, message: &str) {
    if verbosity::is_enabled(Verbosity::Info) {
        print_line(tool, "note", message);
    }
}

/// Prints a remark about empty output, such as `no sandboxes`, in place of a table.
pub fn print_remark(tool: &str, message: &str) {
    if is_for_programs() {
        return print_line(tool, "note", message);
    }
    drop(io::stderr().write_all(format!("{message}\n").as_bytes()));
}

/// Prints a line in one write, so that lines of several processes do not mix. Errors of a closed
/// standard error are ignored.
pub(super) fn print_line(tool: &str, what: &str, message: &str) {
    if is_for_programs() {
        return print_json(&serde_json::json!({"tool": typed::name(tool), what: message}));
    }
    let line = format!("{}: {what}: {}\n", escape::<str>(&typed::name(tool)), escape(message));
    drop(io::stderr().write_all(line.as_bytes()));
}

/// Returns whether errors are printed as JSON.
pub(super) fn is_for_programs() -> bool {
    std::env::var_os(FORMAT_VARIABLE).is_some_and(|value| value == "json")
}

fn print_json(line: &impl Serialize) {
    drop(crate::jsonl::write(&mut io::stderr(), line));
}

/// Returns the error code.
pub fn code(error: &anyhow::Error) -> Code {
    let named = failures(error).find_map(|failure| failure.code);
    named.unwrap_or_else(|| kind(error).map_or(Code::Failed, Code::of))
}

/// Returns the reason of [`Code::ExecFailed`].
pub fn exec_kind(error: &anyhow::Error) -> Option<FailureKind> {
    failures(error).find_map(|failure| failure.exec_kind)
}

/// Returns the whole chain in one line, with a colon before each cause.
pub fn message(error: &anyhow::Error) -> String {
    let mut whole = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let text = clean(&text);
        // Some libraries include the cause's text in their own and also return it as the source.
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

/// Returns the kind of the first [`Failure`] in the chain.
pub fn kind(error: &anyhow::Error) -> Option<ErrorKind> {
    failures(error).next().map(|failure| failure.kind)
}

/// Returns the first hint in the chain.
pub fn hint(error: &anyhow::Error) -> Option<&str> {
    failures(error).find_map(|failure| failure.hint.as_deref())
}

/// Returns the failures in the chain: one given as context (which only anyhow itself finds), then
/// those that are errors.
fn failures(error: &anyhow::Error) -> impl Iterator<Item = &Failure> {
    let context = error.downcast_ref::<Failure>();
    context.into_iter().chain(error.chain().filter_map(|cause| cause.downcast_ref::<Failure>()))
}

/// Replaces `No such file or directory (os error 2)` by `no such file or directory`, anywhere in
/// the text.
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

/// Returns the text with its first letter in lower case, unless the word is written in capitals
/// (`I/O`, `JSON`).
fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    match (characters.next(), characters.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain(characters).collect()
        }
        _ => text.to_owned(),
    }
}

/// Name of the running program.
static PROGRAM: OnceLock<&str> = OnceLock::new();

/// Installs a panic hook that prints the panic in msb's form and exits with the code for bugs, and
/// remembers the program's name for [`warn`].
pub fn catch_bugs(tool: &'static str) {
    PROGRAM.get_or_init(|| tool);
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
        let bug = Failure::new(ErrorKind::Bug, format!("bug in msb{place}: {text}"));
        print_failure(tool, &bug.into());
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
        let error = io_error().context("cannot open 'x'").context("cannot load 'y'");
        assert_eq!(message(&error), "cannot load 'y': cannot open 'x': permission denied");
    }

    #[test]
    fn a_system_message_within_another_text_is_cleaned_too() {
        assert_eq!(
            clean("a: No such file or directory (os error 2), sorry"),
            "a: no such file or directory, sorry"
        );
        assert_eq!(clean("I/O trouble (os error 5)"), "I/O trouble");
        assert_eq!(clean("nothing to clean (os error"), "nothing to clean (os error");
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
        assert_eq!((kind(&error), hint(&error)), (Some(ErrorKind::NotFound), Some("see 'msb ls'")));

        let error =
            io_error().context(Failure::wrong_state("'x' is running")).context("cannot remove 'x'");
        assert_eq!((kind(&error), hint(&error)), (Some(ErrorKind::WrongState), None));
        assert_eq!(message(&error), "cannot remove 'x': 'x' is running: permission denied");

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
