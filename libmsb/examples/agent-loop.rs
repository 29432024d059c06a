//! An agent's loop: code from a model runs in a sandbox without network, with limits of time and
//! output, and what it printed goes back to the model.
//!
//! ```text
//! cargo run --example agent-loop -- alpine
//! ```

use std::time::Duration;

use libmsb::sdk::{Code, Error, ExecOptions, ExecOutput, Sandbox};

const STEP_TIME: Duration = Duration::from_secs(30);
const OUTPUT_BYTES: u64 = 4096;

fn main() -> Result<(), Error> {
    let image = std::env::args().nth(1).unwrap_or("alpine".to_owned());
    let answers = ["echo $((6 * 7)) > /root/answer", "cat /root/answer; exit 3"];
    for seen in agent_loop(&image, &answers, STEP_TIME)? {
        println!("{seen}");
    }
    Ok(())
}

/// Runs what a model has answered. Returns what the model is told.
pub(crate) fn agent_loop(
    image: &str,
    answers: &[&str],
    time: Duration,
) -> Result<Vec<String>, Error> {
    let sandbox = Sandbox::builder("example-agent").image(image).disable_network().create()?;
    let seen = answers.iter().map(|code| run_code(&sandbox, code, time)).collect();
    sandbox.kill()?;
    sandbox.remove()?;
    seen
}

fn run_code(sandbox: &Sandbox, code: &str, time: Duration) -> Result<String, Error> {
    let limits = ExecOptions {
        timeout: Some(time),
        capture_max: Some(OUTPUT_BYTES),
        ..ExecOptions::default()
    };
    match sandbox.shell_with(code, limits) {
        Ok(output) => Ok(format!("exit code {}\n{}", output.code, text(&output))),
        Err(Error { code: Code::ExecTimeout, output: Some(output), .. }) => {
            Ok(format!("timed out\n{}", text(&output)))
        }
        Err(error) => Err(error),
    }
}

fn text(output: &ExecOutput) -> String {
    let cut = if output.truncated { " [cut]" } else { "" };
    format!("{}{}{cut}", output.stdout_text(), output.stderr_text())
}
