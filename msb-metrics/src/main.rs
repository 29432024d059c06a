//! `msb-metrics`: what every sandbox costs.

fn main() {}
