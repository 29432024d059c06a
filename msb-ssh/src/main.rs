//! `msb-ssh`: a sandbox as an SSH host.

fn main() {}
