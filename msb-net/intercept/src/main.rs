//! `msb-intercept`: ends the TLS connections of a guest, reads its requests, and replaces
//! placeholders of secrets in those to the hosts that the secrets are bound to.

use std::process::ExitCode;

fn main() -> ExitCode {
    libmsb::cli::main("msb-intercept", msb_intercept::run)
}
