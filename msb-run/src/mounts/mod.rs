//! Mounts of a sandbox, from what is typed to what its machine gets.

/// The options of `run` and `create`.
mod args;
/// What a sandbox's mounts need of the host, opened before its machine starts.
mod prepare;
/// One mount as it is typed.
mod syntax;

pub(crate) use args::{MountArgs, changed, make_volumes, resolved};
pub(crate) use prepare::{Prepared, open_plainly, prepare};
pub(crate) use syntax::{format_of_name, is_path, parse_format, parse_fstype, parse_size_mib};
