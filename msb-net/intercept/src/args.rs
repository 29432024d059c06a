//! Command-line arguments of `msb-intercept`.

use std::os::fd::RawFd;

use clap::Parser;

/// Intercept TLS connections of a sandbox and put secrets into requests
#[derive(Debug, Parser)]
#[command(
    name = "msb-intercept",
    version,
    about,
    after_help = "Example:\n  msb-intercept --settings-fd 3 --connections-fd 4 --events-fd 5 --ready-fd 6\n\nmsb-supervisor(8) starts it; see msb-intercept(8)."
)]
pub struct Args {
    /// Read the settings as JSON from this descriptor
    #[arg(long, value_name = "N")]
    pub(crate) settings_fd: RawFd,
    /// Read the values of secrets as a JSON object from this descriptor
    #[arg(long, value_name = "N")]
    pub(crate) secrets_fd: Option<RawFd>,
    /// Take connections from this connected SOCK_SEQPACKET socket
    #[arg(long, value_name = "N")]
    pub(crate) connections_fd: RawFd,
    /// Write events to this descriptor, one JSON object per line
    #[arg(long, value_name = "N")]
    pub(crate) events_fd: Option<RawFd>,
    /// Write the certificate of the authority to this descriptor, as JSON on one line
    #[arg(long, value_name = "N")]
    pub(crate) ready_fd: RawFd,
    /// Exit when the other end of this pipe is closed
    #[arg(long, value_name = "N")]
    pub(crate) life_fd: Option<RawFd>,
    /// Write the confinement steps to this descriptor, a JSON array on one line
    #[arg(long, value_name = "N")]
    pub(crate) report_fd: Option<RawFd>,
}
