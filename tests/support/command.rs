//! Running a program to its end, or along with the test.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{PATIENCE, shown};

/// The result of a program.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The exit code; 128 + signal when a signal ended it.
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// The command, for messages.
    what: String,
}

impl Outcome {
    /// Compares all of it.
    #[track_caller]
    pub(crate) fn is(&self, code: i32, stdout: &str, stderr: &str) {
        let expected = format!("code {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        let found = format!(
            "code {}\n--- stdout\n{}\n--- stderr\n{}",
            self.code,
            self.stdout(),
            self.stderr()
        );
        assert!(found == expected, "{}\n=== expected {expected}\n=== found {found}", self.what);
    }

    /// It did what it was asked to, and had nothing to remark. Gives standard output.
    #[track_caller]
    pub(crate) fn done(&self) -> String {
        assert!(
            self.code == 0,
            "{}: code {}\n{}\n{}",
            self.what,
            self.code,
            self.stdout(),
            self.stderr()
        );
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    fn stdout(&self) -> String {
        shown(&self.stdout)
    }

    fn stderr(&self) -> String {
        shown(&self.stderr)
    }
}

/// A program that runs along with the test. It is killed when the test gives up on it.
pub(crate) struct Running {
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<ChildStdout>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    what: String,
}

impl Running {
    /// Starts a program with pipes.
    pub(crate) fn start(mut command: Command) -> Running {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::start_as_is(command)
    }

    /// Starts a program with the standard streams that `command` has.
    pub(crate) fn start_as_is(mut command: Command) -> Running {
        let what = format!("{:?}", command.get_args().collect::<Vec<_>>());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stderr = child.stderr.take().map(collect);
        Running { child, stdin, stdout, stderr, what }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Reads from standard output up to and with `end`.
    #[track_caller]
    pub(crate) fn read_until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        let mut byte = [0];
        let stdout = self.stdout.as_mut().unwrap();
        while !text.ends_with(end.as_bytes()) {
            let read = stdout.read(&mut byte).unwrap();
            assert!(read > 0, "{} ended after {:?}", self.what, shown(&text));
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Closes standard input and waits for the end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Outcome {
        self.stdin.take();
        let stdout = self.stdout.take().map(collect);
        let status = self.wait();
        let stdout = stdout.map(|reader| reader.join().unwrap()).unwrap_or_default();
        let stderr = self.stderr.take().map(|reader| reader.join().unwrap()).unwrap_or_default();
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        Outcome { code, stdout, stderr, what: std::mem::take(&mut self.what) }
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("{} does not end", self.what);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut stream: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}

/// Runs a program to its end, giving it `input`.
#[track_caller]
pub(crate) fn run(command: Command, input: &[u8]) -> Outcome {
    let mut running = Running::start(command);
    let input = input.to_vec();
    let mut stdin = running.stdin.take().unwrap();
    // A program that does not read all of it is within its rights.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let outcome = running.finish();
    drop(writer);
    outcome
}
