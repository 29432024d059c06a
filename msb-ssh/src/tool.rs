//! The name of the program.

/// Name of the program in messages.
pub const TOOL: &str = "msb-ssh";
