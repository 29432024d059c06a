//! Errors by name.

use std::fmt;

use msb_wire::client::ClientError;

use crate::cli::error::{Code, Reported, code, hint, message};

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What is wrong, by name.
    pub code: Code,
    /// What is wrong, for people.
    pub message: String,
    /// What can be done about it.
    pub hint: Option<String>,
}

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Error {
        Error {
            code,
            message: message.into(),
            hint: None,
        }
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

impl From<Reported> for Error {
    fn from(reported: Reported) -> Error {
        Error {
            code: reported.code,
            message: reported.error,
            hint: reported.hint,
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Error {
        let code = match error {
            ClientError::Unsupported(_) | ClientError::Version(_) => Code::UnsupportedOperation,
            // A supervisor that goes away takes its sandbox with it.
            ref gone if gone.is_gone() => Code::SandboxNotRunning,
            _ => Code::Failed,
        };
        Error::new(code, message(&anyhow::Error::from(error)))
    }
}
