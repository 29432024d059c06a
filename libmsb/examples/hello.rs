//! Runs a command in a new sandbox, and another one with streamed input and output.
//!
//! ```text
//! cargo run --example hello -- alpine
//! ```

use libmsb::sdk::{Error, ExecEvent, ExecOptions, Sandbox};

fn main() -> Result<(), Error> {
    let image = std::env::args().nth(1).unwrap_or("alpine".to_owned());
    print!("{}", hello(&image)?);
    Ok(())
}

/// Runs the example. The sandbox is stopped when this function returns, in any case; with
/// `detached(true)` it would stay.
pub(crate) fn hello(image: &str) -> Result<String, Error> {
    let sandbox = Sandbox::builder("hello")
        .image(image)
        .label("example", "hello")
        .env("GREETING", "hello")
        .create()?;
    let output = sandbox.exec(["sh", "-c", "echo $GREETING from $(hostname)"])?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();

    // A command that runs in parallel: its output is read as it comes.
    let mut cat = sandbox.exec_stream(["cat"], ExecOptions::default())?;
    cat.write(b"and back\n")?;
    cat.close_stdin()?;
    while let Some(event) = cat.recv()? {
        match event {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => {
                said.push_str(&String::from_utf8_lossy(&bytes));
            }
            ExecEvent::Started(_) => {}
            ExecEvent::Exited(code) => said.push_str(&format!("ended with {code}\n")),
        }
    }
    sandbox.stop()?;
    sandbox.remove()?;
    Ok(said)
}
