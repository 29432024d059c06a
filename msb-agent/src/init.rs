//! Start of the agent: console, modules, port, handshake, event loop.

use std::fs::File;
use std::os::fd::{IntoRawFd, RawFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use msb_wire::frame::{CONNECTION, FrameKind, put_message};
use msb_wire::handshake::{Hello, operation};
use rustix::io::fcntl_getfd;

use crate::console::{self, log, reason};
use crate::modules::KernelModules;
use crate::port::{self, AgentPort};
use crate::serve::Agent;
use crate::{clock, devices, free_memory, identity, kernel_mounts, shutdown};

/// Name of the console port.
const PORT_NAME: &str = "msb.agent";

/// Descriptor of standard error.
const STDERR: RawFd = 2;

/// Timeout for the port to appear.
const PORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Operations that this agent supports.
pub(crate) const OPERATIONS: &[&str] = &[
    operation::BOOT,
    operation::BOOT_ROOT,
    operation::BOOT_RLIMIT,
    operation::CLOCK,
    operation::CONNECT,
    operation::EXEC,
    operation::EXEC_LOGIN,
    operation::EXEC_RLIMIT,
    operation::FILES,
    operation::NET,
    operation::FILES_CHANGE,
    operation::FILES_PATCH,
    operation::FREEZE,
    operation::INIT,
    operation::KEY_AGENT,
    operation::MOUNTS,
    operation::PING,
    operation::QUIESCE,
    operation::SAMPLES,
    operation::SECURITY,
    operation::SFTP,
    operation::SHUTDOWN,
    operation::TRUST,
];

/// Runs PID 1.
pub(crate) fn run(start_ns: u64) -> ! {
    kernel_mounts::early();
    open_console();
    let mut modules = KernelModules::listed();
    let Some(mut port) = find_port(&mut modules) else {
        log(&format!("error: no console port '{PORT_NAME}' appeared{}", modules.failures()));
        shutdown::end_vm();
    };
    let held = modules.holds_devices() && hold_devices(&mut modules);
    send_hello(&mut port, start_ns, held);
    while modules.load_next() {}
    console::show_notices();
    match Agent::new(port, modules) {
        Ok(agent) => agent.serve(),
        Err(error) => {
            log(&format!("error: {error}"));
            shutdown::end_vm();
        }
    }
}

/// Opens the console if needed. With a root that has no `/dev/console` the kernel starts PID 1
/// without open descriptors, and the first files that are opened become descriptors 0 to 2.
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

/// Loads modules until the port exists.
fn find_port(modules: &mut KernelModules) -> Option<AgentPort> {
    let end = Instant::now() + PORT_TIMEOUT;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(port) = port::find(PORT_NAME) {
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

/// Loads all other modules and keeps their devices without a driver. Returns whether the guest's
/// memory can be saved from now on as boot state: the kernel does not know any disk, network or
/// share yet.
fn hold_devices(modules: &mut KernelModules) -> bool {
    kernel_mounts::early_proc();
    let held = devices::disable_autoprobe();
    while modules.load_next() {}
    modules.load_held();
    let unbound = held
        .map_err(|error| format!("cannot turn automatic probing off: {}", reason(error)))
        .and_then(|()| devices::unbind_devices());
    if let Err(error) = &unbound {
        log(&format!("cannot save the guest's memory: {error}"));
    }
    identity::set_common();
    // The page cache of the initramfs would be saved as well.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
    // Set by the host, through the kernel command line, for a VM whose state is saved. In all others
    // this would only take memory from the host.
    if unbound.is_ok() && std::env::var_os("msb_record").is_some() {
        free_memory::clear();
    }
    unbound.is_ok()
}

/// Sends the Hello as soon as the port exists, so that the host answers while the remaining modules
/// are loaded; or after all modules are loaded if devices are held.
fn send_hello(port: &mut AgentPort, start_ns: u64, held: bool) {
    let mut operations = OPERATIONS.to_vec();
    if held {
        operations.push(operation::BOOT_MEMORY);
    }
    let mut hello = Hello::of(concat!("msb-agent ", env!("CARGO_PKG_VERSION")), &operations);
    hello.agent_start_ns = Some(start_ns);
    hello.hello_ns = held.then(clock::boottime_ns);
    if let Ok(json) = serde_json::to_vec(&hello) {
        put_message(&mut port.outgoing, CONNECTION, FrameKind::Hello, 0, &json);
    }
    // The event loop writes the rest.
    let _ = port.write();
}
