//! Errors of the SDK.

use std::fmt;

use msb_wire::client::ClientError;
use msb_wire::exec::FailureKind;

use super::output::ExecOutput;
use crate::cli::error::{Code, ErrorLine, code, exec_kind, hint, message};

/// An error of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Error code, for programs.
    pub code: Code,
    /// Message, for people.
    pub message: String,
    /// Hint, for people.
    pub hint: Option<String>,
    /// Reason of [`Code::ExecFailed`].
    pub exec_failure: Option<FailureKind>,
    /// Output until the command was killed, of [`Code::ExecTimeout`] by calls that capture it. Its
    /// exit code is 137.
    pub output: Option<Box<ExecOutput>>,
}

impl Error {
    /// Returns an error, for programs that report their own in the same form.
    pub fn new(code: Code, message: impl Into<String>) -> Error {
        Error { code, message: message.into(), hint: None, exec_failure: None, output: None }
    }

    /// Returns the error of a stream: that of the SDK inside it, if there is one.
    pub(crate) fn from_stream(error: std::io::Error) -> Error {
        match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) => error.into(),
        }
    }

    /// Returns the error of a command that was not started.
    pub(crate) fn of_exec(kind: FailureKind, message: impl Into<String>) -> Error {
        let code = match kind {
            FailureKind::UnsupportedOperation => Code::UnsupportedOperation,
            FailureKind::Paused => Code::WrongState,
            _ => Code::ExecFailed,
        };
        let exec_failure = (code == Code::ExecFailed).then_some(kind);
        Error { exec_failure, ..Error::new(code, message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Error {
        Error {
            code: code(&error),
            message: message(&error),
            hint: hint(&error).map(str::to_owned),
            exec_failure: exec_kind(&error),
            output: None,
        }
    }
}

impl From<crate::cli::error::Failure> for Error {
    fn from(failure: crate::cli::error::Failure) -> Error {
        anyhow::Error::from(failure).into()
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        anyhow::Error::from(error).into()
    }
}

impl From<ErrorLine> for Error {
    fn from(reported: ErrorLine) -> Error {
        let ErrorLine { code, kind: exec_failure, error: message, hint, .. } = reported;
        Error { code, message, hint, exec_failure, output: None }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Error {
        let code = match error {
            ClientError::Unsupported(_) | ClientError::Version(_) => Code::UnsupportedOperation,
            // Without its supervisor a sandbox does not run.
            ref gone if gone.is_gone() => Code::SandboxNotRunning,
            _ => Code::Failed,
        };
        Error::new(code, message(&anyhow::Error::from(error)))
    }
}
