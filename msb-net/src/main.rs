//! `msb-net`: Ethernet frames on a descriptor, sockets of the host, and a policy between them.

fn main() {}
