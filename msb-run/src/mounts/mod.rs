//! Mounts of a sandbox, from what is typed to what its machine gets.

/// The options of `run` and `create`.
mod args;
/// What a sandbox's mounts need of the host, opened before its machine starts.
mod prepare;
/// One mount as it is typed.
mod syntax;

pub(crate) use args::{MountArgs, make_volumes};
pub(crate) use prepare::{Prepared, prepare};
pub(crate) use syntax::parse_size_mib;
