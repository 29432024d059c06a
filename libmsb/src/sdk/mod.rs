//! The Rust SDK, for programs that use sandboxes.
//!
//! Calls that change something run the tools as programs, so there is one implementation for both.
//! Calls that only read use the state directory, and commands are run over the sandbox's socket.
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
mod snapshot;
mod tool;
mod volume;

pub use builder::{Access, PortProtocol, PullPolicy, SandboxBuilder};
pub use error::Error;
pub use exec::{ExecOptions, ExecOutput, ExecSession, StreamEvent};
pub use image::{Image, ImageConfig, ImageDetail, ImageLayer, PruneReport};
pub use sandbox::{Metrics, Sandbox, SandboxEnd, SandboxHandle};
pub use snapshot::{Snapshot, SnapshotOptions};
pub use volume::{Volume, VolumeOptions};

pub use crate::cli::error::Code;
pub use crate::logs::{LogEntry, LogSource};
pub use crate::state::status::{Reason, State};
pub use msb_wire::exec::{FailureKind, Rlimit, WindowSize};

/// Name of this program in the handshake.
const PROGRAM: &str = concat!("libmsb ", env!("CARGO_PKG_VERSION"));
