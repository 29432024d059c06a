//! Sibling tools: the paths of other msb programs.
//!
//! The programs of one installation belong together. So they are searched beside the running
//! program first: in its own directory, in `../lib/msb` (plumbing), in `../../bin` (if the running
//! program is plumbing itself), and then in `PATH`. The front command uses this module, and must
//! start fast.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cli::typed;
use crate::cli::verbosity::{Verbosity, log, pass_to_child};

/// Directory of plumbing, relative to that of the programs.
const PLUMBING: &str = "../lib/msb";
/// Directory of the programs, relative to that of plumbing.
const PROGRAMS: &str = "../../bin";

/// An error: a tool is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingTool {
    /// Name of the tool.
    pub name: String,
}

impl fmt::Display for MissingTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot find the program '{}' beside this one or in PATH", self.name)
    }
}

impl std::error::Error for MissingTool {}

/// Returns the path of a tool: beside the running program, in `../lib/msb`, then in `PATH`.
pub fn find(name: &str) -> Result<PathBuf, MissingTool> {
    let found = if is_plain(name) {
        search(name, &home_directories(), std::env::var_os("PATH").as_deref())
    } else {
        None
    };
    let found = found.ok_or_else(|| MissingTool { name: name.to_owned() })?;
    log(Verbosity::Debug, || format!("the program '{name}' is '{}'", found.display()));
    Ok(found)
}

/// Returns a command that starts a tool.
pub fn command(name: &str) -> Result<Command, MissingTool> {
    let mut command = Command::new(find(name)?);
    pass_to_child(&mut command);
    Ok(command)
}

/// Environment variables that are passed to the processes of a sandbox, which live as long as the
/// sandbox. All others, the caller's secrets among them, are removed.
const ENVIRONMENT: [&str; 15] = [
    // Paths of programs, libraries and the state directory.
    "PATH",
    "LD_LIBRARY_PATH",
    "HOME",
    "XDG_RUNTIME_DIR",
    "TMPDIR",
    "MSB_HOME",
    // Settings of the engine and of its start.
    "MSB_ENGINE",
    "MSB_BOOT",
    "MSB_KERNEL",
    "MSB_KRUNFW",
    // Form of errors.
    "MSB_ERRORS",
    "NO_COLOR",
    "RUST_BACKTRACE",
    // Time zone of logs.
    "TZ",
    "LANG",
];

/// Removes the environment variables that processes of a sandbox do not need.
pub fn clean_environment(command: &mut Command) {
    command.env_clear();
    for name in ENVIRONMENT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    pass_to_child(command);
}

/// Replaces this process by a tool (exec), which names itself as `typed` in its messages. Returns
/// only on failure.
pub fn exec(
    name: &str,
    typed: Option<&str>,
    args: impl IntoIterator<Item = OsString>,
) -> io::Error {
    match find(name) {
        Ok(program) => {
            let mut command = Command::new(program);
            pass_to_child(&mut command);
            if let Some(typed) = typed {
                typed::pass(&mut command, name, typed);
            }
            command.arg0(name).args(args).exec()
        }
        Err(missing) => io::Error::new(io::ErrorKind::NotFound, missing),
    }
}

/// Returns the names of all programs that start with a prefix, in the directories that [`find`]
/// searches; sorted, each once.
pub fn names_with_prefix(prefix: &str) -> Vec<String> {
    let path = std::env::var_os("PATH");
    let directories = home_directories().into_iter().chain(path_directories(path.as_deref()));
    let mut names: Vec<String> =
        directories.flat_map(|directory| programs_in(&directory, prefix)).collect();
    names.sort();
    names.dedup();
    names
}

/// Returns the directory of the running program, and the sibling directory of the same
/// installation.
pub fn home_directories() -> Vec<PathBuf> {
    // After an upgrade the link in /proc ends in " (deleted)", but its directory is still correct.
    let Some(here) =
        std::env::current_exe().ok().and_then(|program| Some(program.parent()?.to_owned()))
    else {
        return Vec::new();
    };
    let beside = if here.ends_with("lib/msb") { here.join(PROGRAMS) } else { here.join(PLUMBING) };
    vec![here, beside]
}

fn search(name: &str, home: &[PathBuf], path: Option<&OsStr>) -> Option<PathBuf> {
    home.iter()
        .cloned()
        .chain(path_directories(path))
        .map(|directory| directory.join(name))
        .find(|file| is_program(file))
}

/// Returns the directories of `PATH`. Relative ones are skipped: the program must not depend on the
/// working directory.
fn path_directories(path: Option<&OsStr>) -> impl Iterator<Item = PathBuf> {
    let directories: Vec<PathBuf> =
        path.map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
    directories.into_iter().filter(|directory| directory.is_absolute())
}

fn programs_in(directory: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix) && is_program(&directory.join(name))).collect()
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Returns whether a name has no path separator and is not `.` or `..`.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_the_same_installation_comes_before_one_in_path() {
        let path = Some(OsStr::new("/usr/bin:/bin"));
        assert_eq!(search("sh", &[PathBuf::from("/bin")], path), Some(PathBuf::from("/bin/sh")));
        assert_eq!(
            search("sh", &[PathBuf::from("/nowhere")], path),
            Some(PathBuf::from("/usr/bin/sh"))
        );
    }

    #[test]
    fn directories_and_files_without_permission_to_execute_are_no_programs() {
        assert_eq!(search("bin", &[PathBuf::from("/usr")], None), None);
        assert_eq!(search("passwd", &[PathBuf::from("/etc")], None), None);
    }

    #[test]
    fn relative_directories_in_path_do_not_count() {
        assert_eq!(
            path_directories(Some(OsStr::new(".::bin:/bin"))).collect::<Vec<_>>(),
            [PathBuf::from("/bin")]
        );
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_not_found() {
        for name in ["../bin/sh", "/bin/sh", "", "a\0b"] {
            assert_eq!(find(name), Err(MissingTool { name: name.to_owned() }));
        }
        let error = find("msb-no-such-tool").unwrap_err().to_string();
        assert_eq!(error, "cannot find the program 'msb-no-such-tool' beside this one or in PATH");
    }
}
