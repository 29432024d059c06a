//! Finding a sibling tool.
//!
//! The programs of one installation belong together, so they are looked for beside the running program first:
//! in its own folder, in `../lib/msb` (plumbing), in `../../bin` (when the running program is plumbing itself), and only
//! then in `PATH`. The front command uses this, and must start fast.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cli::verbosity::{Verbosity, hand_on, say};

/// The folder of plumbing, from that of the programs.
const PLUMBING: &str = "../lib/msb";
/// The folder of the programs, from that of plumbing.
const PROGRAMS: &str = "../../bin";

/// A tool is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name.
    pub name: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot find the program '{}' beside this one or in PATH",
            self.name
        )
    }
}

impl std::error::Error for Missing {}

/// The path of a tool: beside the running program, in `../lib/msb`, then in `PATH`.
pub fn find(name: &str) -> Result<PathBuf, Missing> {
    let found = if is_plain(name) {
        search(name, &home_folders(), std::env::var_os("PATH").as_deref())
    } else {
        None
    };
    let found = found.ok_or_else(|| Missing {
        name: name.to_owned(),
    })?;
    say(Verbosity::Debug, || {
        format!("the program '{name}' is '{}'", found.display())
    });
    Ok(found)
}

/// A command that starts a tool.
pub fn command(name: &str) -> Result<Command, Missing> {
    let mut command = Command::new(find(name)?);
    hand_on(&mut command);
    Ok(command)
}

/// Variables that processes of a sandbox get, which live as long as it does; all others, secrets of the caller's among them,
/// stay behind.
const ENVIRONMENT: [&str; 15] = [
    // Where programs, their libraries and the state directory are.
    "PATH",
    "LD_LIBRARY_PATH",
    "HOME",
    "XDG_RUNTIME_DIR",
    "TMPDIR",
    "MSB_HOME",
    // What was chosen about the engine and its start.
    "MSB_ENGINE",
    "MSB_BOOT",
    "MSB_KERNEL",
    "MSB_KRUNFW",
    // How errors are told.
    "MSB_ERRORS",
    "NO_COLOR",
    "RUST_BACKTRACE",
    // Times in logs.
    "TZ",
    "LANG",
];

/// Leaves a command only the variables that processes of a sandbox need.
pub fn clean_environment(command: &mut Command) {
    command.env_clear();
    for name in ENVIRONMENT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    hand_on(command);
}

/// Becomes a tool. Returns only when that fails.
pub fn exec(name: &str, args: impl IntoIterator<Item = OsString>) -> io::Error {
    match find(name) {
        Ok(program) => {
            let mut command = Command::new(program);
            hand_on(&mut command);
            command.arg0(name).args(args).exec()
        }
        Err(missing) => io::Error::new(io::ErrorKind::NotFound, missing),
    }
}

/// Names of all programs that start with a prefix, in the folders where [`find`] looks; sorted, each once.
pub fn names_with_prefix(prefix: &str) -> Vec<String> {
    let path = std::env::var_os("PATH");
    let folders = home_folders()
        .into_iter()
        .chain(path_folders(path.as_deref()));
    let mut names: Vec<String> = folders
        .flat_map(|folder| programs_in(&folder, prefix))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The folder of the running program, and the one beside it that belongs to the same installation.
pub fn home_folders() -> Vec<PathBuf> {
    // After an upgrade the link in /proc ends in " (deleted)", but its folder is still the right one.
    let Some(here) = std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.to_owned()))
    else {
        return Vec::new();
    };
    let beside = if here.ends_with("lib/msb") {
        here.join(PROGRAMS)
    } else {
        here.join(PLUMBING)
    };
    vec![here, beside]
}

fn search(name: &str, home: &[PathBuf], path: Option<&OsStr>) -> Option<PathBuf> {
    home.iter()
        .cloned()
        .chain(path_folders(path))
        .map(|folder| folder.join(name))
        .find(|file| is_program(file))
}

/// Folders of `PATH`. Relative ones are left out: what runs must not depend on where one stands.
fn path_folders(path: Option<&OsStr>) -> impl Iterator<Item = PathBuf> {
    let folders: Vec<PathBuf> = path
        .map(|path| std::env::split_paths(path).collect())
        .unwrap_or_default();
    folders.into_iter().filter(|folder| folder.is_absolute())
}

fn programs_in(folder: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter(|name| name.starts_with(prefix) && is_program(&folder.join(name)))
        .collect()
}

fn is_program(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A name leads nowhere else.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_the_same_installation_comes_before_one_in_path() {
        let path = Some(OsStr::new("/usr/bin:/bin"));
        assert_eq!(
            search("sh", &[PathBuf::from("/bin")], path),
            Some(PathBuf::from("/bin/sh"))
        );
        assert_eq!(
            search("sh", &[PathBuf::from("/nowhere")], path),
            Some(PathBuf::from("/usr/bin/sh"))
        );
    }

    #[test]
    fn folders_and_files_without_permission_to_execute_are_no_programs() {
        assert_eq!(search("bin", &[PathBuf::from("/usr")], None), None);
        assert_eq!(search("passwd", &[PathBuf::from("/etc")], None), None);
    }

    #[test]
    fn relative_folders_in_path_do_not_count() {
        assert_eq!(
            path_folders(Some(OsStr::new(".::bin:/bin"))).collect::<Vec<_>>(),
            [PathBuf::from("/bin")]
        );
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_not_found() {
        for name in ["../bin/sh", "/bin/sh", "", "a\0b"] {
            assert_eq!(
                find(name),
                Err(Missing {
                    name: name.to_owned()
                })
            );
        }
        let error = find("msb-no-such-tool").unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot find the program 'msb-no-such-tool' beside this one or in PATH"
        );
    }
}
