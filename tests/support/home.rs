//! A state directory of one's own.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::command::{self, Outcome, Running};
use super::processes::{self, Process};
use super::{fixture, ground, stage};

/// Time that processes have to end after their sandbox has.
const GRACE: Duration = Duration::from_secs(20);

/// A state directory, which is gone after the test. No process that knows it may be left by then.
pub(crate) struct Home {
    /// A directory for the test's own files; `state` in it is the state directory.
    pub(crate) directory: PathBuf,
    /// Directory of the programs.
    pub(crate) prefix: PathBuf,
}

impl Home {
    /// An empty one, not made yet: the first program to write makes it.
    pub(crate) fn new() -> Home {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // The last part ends in a letter, so that no name is the beginning of another.
        let directory = std::env::temp_dir().join(format!("{}-{number}h", std::process::id()));
        fs::create_dir(&directory).unwrap();
        Home { directory, prefix: stage("prefix") }
    }

    /// One with images, loaded from fixtures.
    pub(crate) fn with(images: &[&str]) -> Home {
        let home = Home::new();
        for image in images {
            home.load(image);
        }
        link_all(&boot_states(), &home.state().join("boot"));
        home
    }

    /// One with busybox, under the name `busybox:test`.
    pub(crate) fn with_busybox() -> Home {
        Home::with(&["busybox.docker.tar"])
    }

    /// The state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub(crate) fn load(&self, image: &str) {
        self.run(["image", "load", "--quiet", "--input", fixture(image).to_str().unwrap()]).done();
    }

    /// `msb` with arguments, ready to be started.
    pub(crate) fn msb<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Command {
        let mut command = self.program(self.prefix.join("bin/msb"));
        command.args(args);
        command
    }

    /// Any program, in the environment of the test.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().current_dir(&self.directory);
        command.env("PATH", self.path()).env("HOME", &self.directory).env("MSB_HOME", self.state());
        command.env("TMPDIR", &self.directory).env("LANG", "C.UTF-8");
        // The run's own: without it, skopeo and podman use directories of this user ID in /run and
        // /tmp, which another user may have left there.
        command.env("XDG_RUNTIME_DIR", ground("runtime"));
        // Named, so that no test depends on what the host has.
        let engine = std::env::var_os("MSB_ENGINE").unwrap_or("qemu".into());
        command.env("MSB_ENGINE", engine);
        if let Some(boot) = std::env::var_os("MSB_BOOT") {
            command.env("MSB_BOOT", boot);
        }
        command
    }

    /// The `PATH` of the test: the programs, then the system's.
    pub(crate) fn path(&self) -> String {
        format!(
            "{}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            self.prefix.join("bin").display()
        )
    }

    /// Runs `msb` to its end, its standard input empty.
    #[track_caller]
    pub(crate) fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Outcome {
        self.run_with(args, b"")
    }

    /// Runs `msb` to its end with some input.
    #[track_caller]
    pub(crate) fn run_with<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
        &self,
        args: I,
        input: &[u8],
    ) -> Outcome {
        command::run(self.msb(args), input)
    }

    /// Runs a script with the shell, in the environment of the test. Exactly what a user would
    /// type.
    #[track_caller]
    pub(crate) fn shell(&self, script: &str) -> Outcome {
        let mut command = self.program("/bin/bash");
        command.args(["-c", script]);
        command::run(command, b"")
    }

    /// Starts a script with the shell, to run along with the test.
    pub(crate) fn shell_in_background(&self, script: &str) -> Running {
        let mut command = self.program("/bin/bash");
        command.args(["-c", script]);
        Running::start(command)
    }

    /// Starts `msb`, to run along with the test.
    pub(crate) fn start<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Running {
        Running::start(self.msb(args))
    }

    /// `msb ls --format json`.
    #[track_caller]
    pub(crate) fn list(&self) -> serde_json::Value {
        let outcome = self.run(["ls", "--format", "json"]);
        serde_json::from_str(&outcome.done()).unwrap()
    }

    /// Name and status of each sandbox, as in `msb ls`.
    #[track_caller]
    pub(crate) fn sandboxes(&self) -> Vec<(String, String)> {
        let text = |row: &serde_json::Value, field: &str| row[field].as_str().unwrap().to_owned();
        let list = self.list();
        list.as_array()
            .unwrap()
            .iter()
            .map(|row| (text(row, "name"), text(row, "status")))
            .collect()
    }

    /// Living processes that belong to this test: any that know its directory.
    pub(crate) fn processes(&self) -> Vec<Process> {
        processes::with_text(self.directory.to_str().unwrap())
    }

    /// The process of the one virtual machine that runs, whatever its engine.
    #[track_caller]
    pub(crate) fn machine(&self) -> Process {
        let mut machines = self.machines();
        assert_eq!(machines.len(), 1, "{machines:#?}");
        machines.remove(0)
    }

    /// The processes of all virtual machines that run or are about to.
    pub(crate) fn machines(&self) -> Vec<Process> {
        let mut machines = self.processes();
        machines.retain(Process::is_machine);
        machines
    }

    /// Waits until no process of this test is left; gives those that stay.
    pub(crate) fn leftovers(&self) -> Vec<Process> {
        let deadline = Instant::now() + GRACE;
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Every file of a directory in the state directory (all of it for ""), with a hash of its
    /// content: to see whether anything changed. Locks are not content.
    pub(crate) fn snapshot(&self, directory: &str) -> Vec<String> {
        let mut lines = Vec::new();
        snapshot(&self.state().join(directory), &mut lines);
        lines.sort();
        lines
    }
}

fn snapshot(directory: &Path, lines: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        // A program that is still running may remove what was there a moment ago.
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            metadata => metadata.unwrap(),
        };
        if metadata.is_dir() {
            lines.push(format!("{} {:o}", path.display(), metadata.mode()));
            snapshot(&path, lines);
        } else if metadata.is_symlink() {
            lines.push(format!("{} -> {:?}", path.display(), fs::read_link(&path).ok()));
        } else if path.file_name() != Some(OsStr::new("lock")) {
            let bytes = match fs::read(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                bytes => bytes.unwrap(),
            };
            let hash = Sha256::digest(bytes);
            let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            lines.push(format!("{} {:o} {hash}", path.display(), metadata.mode()));
        }
    }
}

impl Home {
    /// Kills all processes that know this home, at one moment: each is halted first, so that none
    /// sees another go.
    pub(crate) fn kill_all(&self) {
        let processes = self.processes();
        for signal in [rustix::process::Signal::STOP, rustix::process::Signal::KILL] {
            for process in &processes {
                process.signal(signal);
            }
        }
    }
}

/// Directory in which tests share boot states: to boot a guest takes most of a test's time. A start
/// from memory itself is tested in `from_memory.rs`, with homes that have none.
fn boot_states() -> PathBuf {
    std::env::temp_dir().join("boot-states")
}

/// Gives the finished files of a directory a name in another one too.
fn link_all(from: &Path, to: &Path) {
    let Ok(entries) = fs::read_dir(from) else {
        return;
    };
    let _ = DirBuilder::new().mode(0o700).create(to);
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ending = Path::new(&name).extension();
        if ending.is_some_and(|ending| ending == "state" || ending == "cpio") {
            // There already, if another test has left it.
            let _ = fs::hard_link(entry.path(), to.join(&name));
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let left = if std::thread::panicking() { self.processes() } else { self.leftovers() };
        for process in &left {
            process.signal(rustix::process::Signal::KILL);
        }
        link_all(&self.state().join("boot"), &boot_states());
        let _ = fs::remove_dir_all(&self.directory);
        if !std::thread::panicking() {
            assert!(left.is_empty(), "processes are left: {left:#?}");
        }
    }
}
