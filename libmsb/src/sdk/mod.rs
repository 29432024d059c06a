//! For programs that use sandboxes: the same small surface as the tools.
//!
//! What changes something is done by the tools themselves, which are run as programs: there is one way to make a
//! sandbox, whoever makes it. What is only looked at is read from the state directory, and commands are run over the
//! sandbox's socket.
//!
//! ```no_run
//! use libmsb::sdk::Sandbox;
//!
//! # fn main() -> Result<(), libmsb::sdk::Error> {
//! let sandbox = Sandbox::builder("worker")
//!     .image("python")
//!     .label("team", "ml")
//!     .memory_mib(1024)
//!     .detached(true)
//!     .create()?;
//! let output = sandbox.exec(["python3", "-c", "print(6 * 7)"])?;
//! assert_eq!(output.stdout, b"42\n");
//! sandbox.stop()?;
//! sandbox.remove()?;
//! # Ok(())
//! # }
//! ```

mod builder;
mod error;
mod exec;
mod image;
mod sandbox;
mod tool;

pub use builder::{Pull, SandboxBuilder};
pub use error::Error;
pub use exec::{Exec, ExecOptions, Output, Streamed};
pub use image::{Image, ImageDetail, PruneReport};
pub use sandbox::{Sandbox, SandboxHandle};

pub use crate::cli::error::Code;
pub use crate::state::status::{Reason, State};

/// What we call ourselves to a supervisor.
const PROGRAM: &str = concat!("libmsb ", env!("CARGO_PKG_VERSION"));
