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

mod address;
mod builder;
mod connect;
mod error;
mod exec;
mod files;
mod image;
mod jobs;
mod lines;
mod logs;
mod metrics;
mod output;
mod sandbox;
mod sftp;
mod snapshot;
mod ssh;
mod tool;
mod volume;

pub use builder::{Access, PortProtocol, PullPolicy, SandboxBuilder};
pub use connect::{GuestTcpStream, GuestTcpWriter};
pub use error::Error;
pub use exec::{ExecControl, ExecEvent, ExecHandle, ExecOptions, ExecStdin};
pub use files::{FileEntry, FsReader, FsWriter, SandboxFs};
pub use image::{Image, ImageConfig, ImageDetail, ImageLayer, PruneReport};
pub use jobs::{Job, JobInfo};
pub use logs::{LogOptions, LogStream};
pub use metrics::{Metrics, MetricsStream, all_sandbox_metrics};
pub use output::ExecOutput;
pub use sandbox::{Sandbox, SandboxEnd, SandboxHandle};
pub use sftp::{FileKind, FileStat};
pub use snapshot::{Snapshot, SnapshotOptions};
pub use ssh::{SandboxSsh, SshClient};
pub use volume::{Volume, VolumeOptions};

pub use crate::cli::error::Code;
pub use crate::logs::{LogEntry, LogSource};
pub use crate::state::jobs::JobState;
pub use crate::state::status::{Reason, State};
pub use msb_wire::exec::{FailureKind, Rlimit, WindowSize};

/// Name of this program in the handshake.
const PROGRAM: &str = concat!("libmsb ", env!("CARGO_PKG_VERSION"));
