//! Processes on the host: child processes, their standard error and control groups.

pub(crate) mod cgroup;
pub(crate) mod child_process;
pub(crate) mod error_log;
pub(crate) mod log_rotation;
/// The unnamed file that passes a plan to a child process.
pub(crate) mod plan_file;
