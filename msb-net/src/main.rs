//! `msb-net`: Ethernet frames on a descriptor, sockets of the host, and a network policy between
//! them.

use std::process::ExitCode;

fn main() -> ExitCode {
    libmsb::cli::main("msb-net", msb_net::run)
}
