//! A server in a guest, reached from this program: by a connection of the guest's own, without a
//! published port.
//!
//! ```text
//! cargo run --example web-server -- busybox
//! ```

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use libmsb::sdk::{Error, ExecOptions, Sandbox};

const SERVER: &str = "mkdir -p /www; echo hello from the guest > /www/index.html; \
    httpd -f -p 127.0.0.1:80 -h /www";

/// Time for the server to listen.
const START_TIME: Duration = Duration::from_secs(60);

fn main() -> Result<(), Error> {
    let image = std::env::args().nth(1).unwrap_or("busybox".to_owned());
    print!("{}", page(&image)?);
    Ok(())
}

/// Serves a page. Returns its text.
pub(crate) fn page(image: &str) -> Result<String, Error> {
    let sandbox = Sandbox::builder("example-web").image(image).create()?;
    let server = sandbox.start_job(["sh", "-c", SERVER], &ExecOptions::default())?;
    let started = Instant::now();
    let mut peer = loop {
        match sandbox.connect_tcp("127.0.0.1", 80, Duration::from_secs(1)) {
            Err(_) if started.elapsed() < START_TIME => {
                std::thread::sleep(Duration::from_millis(50));
            }
            connected => break connected?,
        }
    };
    peer.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    peer.read_to_string(&mut answer)?;
    server.kill()?;
    sandbox.kill()?;
    sandbox.remove()?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Ok(body.unwrap_or(answer))
}
