//! Command line, as engines call an OCI runtime.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use libmsb::cli::args::SandboxName;
use libmsb::signal_number::SignalNumber;

/// Run the containers of an engine, such as podman, as microVMs
#[derive(Debug, Parser)]
#[command(name = "msb-oci", version)]
pub(crate) struct Args {
    /// Keep the state of containers in DIR
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) root: Option<PathBuf>,
    /// Append errors to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Set the format of errors in the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Accept for compatibility with runc
    #[arg(long)]
    pub(crate) debug: bool,
    /// Manage cgroups with systemd (refused)
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Format of errors in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object.
    Json,
}

/// Format of `ps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PsFormat {
    /// A heading and one line for each process.
    Table,
    /// A JSON array.
    Json,
}

/// Operation on containers.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create a container from a bundle
    Create(CreateArgs),
    /// Start the command of a created container
    Start {
        /// ID of the container
        id: SandboxName,
    },
    /// Print the state of a container
    State {
        /// ID of the container
        id: SandboxName,
    },
    /// Send a signal to a container
    Kill {
        /// Accept a container that has stopped
        #[arg(short, long)]
        all: bool,
        /// ID of the container
        id: SandboxName,
        /// Signal, by name or number
        #[arg(default_value = "TERM")]
        signal: SignalNumber,
    },
    /// Remove a container
    Delete {
        /// Kill the container first; accept one that does not exist
        #[arg(short, long)]
        force: bool,
        /// ID of the container
        id: SandboxName,
    },
    /// Run a command in a container
    Exec(ExecArgs),
    /// Create, start, wait for and remove a container
    Run(CreateArgs),
    /// Print the processes of a container that the engine can see
    Ps {
        /// Set the format
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        format: PsFormat,
        /// ID of the container
        id: SandboxName,
    },
    /// Freeze a container
    Pause {
        /// ID of the container
        id: SandboxName,
    },
    /// Continue a frozen container
    Resume {
        /// ID of the container
        id: SandboxName,
    },
    /// Change the limits of a container
    Update {
        /// Read the limits from the JSON file FILE, or - for standard input
        #[arg(short, long, value_name = "FILE")]
        resources: PathBuf,
        /// ID of the container
        id: SandboxName,
    },
    /// Print the features of this runtime
    Features,
}

/// Arguments of `create`.
#[derive(Debug, ClapArgs)]
pub(crate) struct CreateArgs {
    /// Directory of the bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,
    /// Write the process ID to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Send the terminal to the socket PATH
    #[arg(long, value_name = "PATH")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Pass N more descriptors to the command (refused above 0)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,
    /// ID of the container
    pub(crate) id: SandboxName,
}

/// Arguments of `exec`.
#[derive(Debug, ClapArgs)]
pub(crate) struct ExecArgs {
    /// Read the process from the JSON file FILE
    #[arg(short, long, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Return when the command has been started
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Write the process ID to FILE
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Send the terminal to the socket PATH
    #[arg(long, value_name = "PATH")]
    pub(crate) console_socket: Option<PathBuf>,
    /// ID of the container
    pub(crate) id: SandboxName,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}
