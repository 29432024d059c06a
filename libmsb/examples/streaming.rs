//! The output of a command while it runs, and a command that another thread ends.
//!
//! ```text
//! cargo run --example streaming -- alpine
//! ```

use std::io::Write;

use libmsb::sdk::{Error, ExecEvent, ExecOptions, Sandbox};

fn main() -> Result<(), Error> {
    let image = std::env::args().nth(1).unwrap_or("alpine".to_owned());
    streaming(&image, &mut std::io::stdout())
}

/// Writes the events of two commands to `out`.
pub(crate) fn streaming(image: &str, out: &mut dyn Write) -> Result<(), Error> {
    let sandbox = Sandbox::builder("example-streaming").image(image).create()?;
    let script = "for n in 1 2 3; do echo step $n; sleep 0.2; done; echo done >&2; exit 4";
    let mut steps = sandbox.shell_stream(script, ExecOptions::default())?;
    while let Some(event) = steps.recv()? {
        match event {
            ExecEvent::Started(_) => {}
            ExecEvent::Stdout(bytes) => write!(out, "out: {}", String::from_utf8_lossy(&bytes))?,
            ExecEvent::Stderr(bytes) => write!(out, "err: {}", String::from_utf8_lossy(&bytes))?,
            ExecEvent::Exited(code) => writeln!(out, "exit code: {code}")?,
        }
    }

    // One thread feeds the command, another one ends it.
    let mut cat = sandbox.exec_stream(["cat"], ExecOptions::default())?;
    let (mut stdin, control) = (cat.take_stdin(), cat.control());
    std::thread::scope(|scope| {
        scope.spawn(|| stdin.as_mut().map(|stdin| stdin.write_all(b"fed\n")));
        while let Some(event) = cat.recv()? {
            match event {
                ExecEvent::Stdout(bytes) => {
                    write!(out, "cat: {}", String::from_utf8_lossy(&bytes))?;
                    scope.spawn(|| control.kill());
                }
                ExecEvent::Exited(code) => writeln!(out, "cat ended with {code}")?,
                _ => {}
            }
        }
        Ok::<(), Error>(())
    })?;
    sandbox.kill()?;
    sandbox.remove()
}
