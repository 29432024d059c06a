//! Runs commands as standard input says, and prints their times. `tests/bench/sdk` compares them
//! with those of the other SDKs.

use std::io::BufRead;
use std::time::Instant;

use libmsb::sdk::{Error, ExecEvent, ExecOptions, Sandbox};

const OUTPUT_BYTES: usize = 200 << 20;

fn main() -> Result<(), Error> {
    let sandbox = Sandbox::get("bench")?;
    for line in std::io::stdin().lock().lines() {
        let begin = Instant::now();
        if line? == "exec" {
            sandbox.exec(["true"])?;
        } else {
            let script = format!("head -c {OUTPUT_BYTES} /dev/zero");
            let mut session = sandbox.exec_stream(["sh", "-c", &script], ExecOptions::default())?;
            let mut received = 0;
            while let Some(event) = session.recv()? {
                if let ExecEvent::Stdout(bytes) = event {
                    received += bytes.len();
                }
            }
            assert_eq!(received, OUTPUT_BYTES);
        }
        println!("{}", begin.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(())
}
