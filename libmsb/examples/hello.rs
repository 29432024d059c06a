//! Runs a command in a sandbox of its own, and another one that is talked to.
//!
//! ```text
//! cargo run --example hello -- alpine
//! ```

use libmsb::sdk::{Error, ExecOptions, Sandbox, Streamed};

fn main() -> Result<(), Error> {
    let image = std::env::args().nth(1).unwrap_or("alpine".to_owned());
    print!("{}", hello(&image)?);
    Ok(())
}

/// The sandbox is stopped when this returns, whatever happens; with `detached(true)` it would stay.
pub fn hello(image: &str) -> Result<String, Error> {
    let sandbox = Sandbox::builder("hello")
        .image(image)
        .label("example", "hello")
        .env("GREETING", "hello")
        .create()?;
    let output = sandbox.exec(["sh", "-c", "echo $GREETING from $(hostname)"])?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();

    // One that runs along: what it says comes as it says it.
    let mut cat = sandbox.exec_stream(["cat"], ExecOptions::default())?;
    cat.write(b"and back\n")?;
    cat.close_stdin()?;
    while let Some(piece) = cat.receive()? {
        match piece {
            Streamed::Stdout(bytes) | Streamed::Stderr(bytes) => {
                said.push_str(&String::from_utf8_lossy(&bytes));
            }
            Streamed::Exited(code) => said.push_str(&format!("ended with {code}\n")),
        }
    }
    sandbox.stop()?;
    sandbox.remove()?;
    Ok(said)
}
