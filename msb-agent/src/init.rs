//! From the first instruction to the loop.

use std::fs::File;
use std::os::fd::{IntoRawFd, RawFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use msb_wire::frame::{CONNECTION, Kind, put_message};
use msb_wire::handshake::{Hello, operation};
use rustix::io::fcntl_getfd;

use crate::console::{self, log};
use crate::modules::Modules;
use crate::port::{self, Port};
use crate::serve::Agent;
use crate::{mount, shutdown};

/// Name of the console port.
const PORT: &str = "msb.agent";

/// Descriptor of standard error.
const STDERR: RawFd = 2;

/// Time for the port to appear.
const PATIENCE: Duration = Duration::from_secs(10);

/// Operations of this agent.
pub(crate) const OPERATIONS: &[&str] = &[
    operation::BOOT,
    operation::BOOT_ROOT,
    operation::CLOCK,
    operation::CONNECT,
    operation::EXEC,
    operation::EXEC_LOGIN,
    operation::EXEC_RLIMIT,
    operation::FILES,
    operation::NET,
    operation::FILES_CHANGE,
    operation::INIT,
    operation::KEY_AGENT,
    operation::MOUNTS,
    operation::PING,
    operation::SAMPLES,
    operation::SECURITY,
    operation::SFTP,
    operation::SHUTDOWN,
];

/// The life of the first process.
pub(crate) fn run(start_ns: u64) -> ! {
    mount::early();
    open_console();
    let mut modules = Modules::listed();
    let Some(port) = greet(&mut modules, start_ns) else {
        log(&format!(
            "error: no console port '{PORT}' appeared{}",
            modules.failures()
        ));
        shutdown::end();
    };
    while modules.load_next() {}
    console::show_notices();
    match Agent::new(port, modules) {
        Ok(agent) => agent.serve(),
        Err(error) => {
            log(&format!("error: {error}"));
            shutdown::end();
        }
    }
}

/// A root without `/dev/console` starts us with nothing open: what is opened first becomes descriptor 0, and so on.
fn open_console() {
    if fcntl_getfd(std::io::stderr()).is_ok() {
        return;
    }
    while let Ok(file) = File::options().read(true).write(true).open("/dev/console") {
        if file.into_raw_fd() >= STDERR {
            break;
        }
    }
}

/// Says hello as soon as the port is there, so that the host answers while the rest of the modules is loaded.
fn greet(modules: &mut Modules, start_ns: u64) -> Option<Port> {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(mut port) = port::find(PORT) {
            say_hello(&mut port, start_ns);
            return Some(port);
        }
        if modules.load_next() {
            continue;
        }
        if Instant::now() >= end {
            return None;
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn say_hello(port: &mut Port, start_ns: u64) {
    let mut hello = Hello::of(concat!("msb-agent ", env!("CARGO_PKG_VERSION")), OPERATIONS);
    hello.agent_start_ns = Some(start_ns);
    if let Ok(json) = serde_json::to_vec(&hello) {
        put_message(&mut port.outgoing, CONNECTION, Kind::Hello, 0, &json);
    }
    // What cannot be written yet is written by the loop.
    let _ = port.write();
}
