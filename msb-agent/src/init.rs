//! From the first instruction to the loop.

use std::fs::File;
use std::os::fd::{IntoRawFd, RawFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use msb_wire::frame::{CONNECTION, Kind, put_message};
use msb_wire::handshake::{Hello, operation};
use rustix::io::fcntl_getfd;

use crate::console::{self, log, reason};
use crate::modules::Modules;
use crate::port::{self, Port};
use crate::serve::Agent;
use crate::{clock, devices, identity, mount, shutdown};

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
    let Some(mut port) = find_port(&mut modules) else {
        log(&format!(
            "error: no console port '{PORT}' appeared{}",
            modules.failures()
        ));
        shutdown::end();
    };
    let held = modules.holds_devices() && hold_devices(&mut modules);
    say_hello(&mut port, start_ns, held);
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

/// Loads modules until the port is there.
fn find_port(modules: &mut Modules) -> Option<Port> {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(port) = port::find(PORT) {
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

/// Loads all other modules, so that their devices stay without a driver. Returns whether the memory of the guest can be kept
/// from now on: it knows nothing yet of disks, network and shares.
fn hold_devices(modules: &mut Modules) -> bool {
    mount::early_proc();
    let held = devices::hold();
    while modules.load_next() {}
    modules.load_held();
    let settled = held
        .map_err(|error| format!("cannot turn automatic probing off: {}", reason(error)))
        .and_then(|()| devices::settle());
    if let Err(error) = &settled {
        log(&format!("the guest's memory cannot be kept: {error}"));
    }
    identity::assume_common();
    // Files of the initramfs that were read once would be kept with it.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
    settled.is_ok()
}

/// Says hello as soon as the port is there, so that the host answers while the rest of the modules is loaded; or when all
/// are loaded, if devices are held.
fn say_hello(port: &mut Port, start_ns: u64, held: bool) {
    let mut operations = OPERATIONS.to_vec();
    if held {
        operations.push(operation::BOOT_MEMORY);
    }
    let mut hello = Hello::of(
        concat!("msb-agent ", env!("CARGO_PKG_VERSION")),
        &operations,
    );
    hello.agent_start_ns = Some(start_ns);
    hello.hello_ns = held.then(clock::boottime_ns);
    if let Ok(json) = serde_json::to_vec(&hello) {
        put_message(&mut port.outgoing, CONNECTION, Kind::Hello, 0, &json);
    }
    // What cannot be written yet is written by the loop.
    let _ = port.write();
}
