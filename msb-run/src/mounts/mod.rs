//! Mounts of a sandbox, from the command line to the VM.

/// Mount options of `run` and `create`.
mod args;
/// Volumes that a new sandbox mounts.
mod new_volumes;
/// Syntax of `--mount`.
mod pairs;
/// Host resources of a sandbox's mounts, opened before its VM starts.
mod prepare;
/// Syntax of one mount argument.
mod syntax;

pub(crate) use args::{MountArgs, apply_changes, resolved};
pub(crate) use new_volumes::{SandboxVolumes, create_volume, users};
pub(crate) use prepare::{PreparedMounts, prepare};
pub(crate) use syntax::{
    format_of_name, is_path, parse_format, parse_fstype, parse_size_mib, target as parse_target,
    volume as parse_volume,
};
