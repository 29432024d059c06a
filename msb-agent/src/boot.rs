//! The boot request, step by step.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use msb_wire::boot::{BootEvent, BootNet, BootRequest};
use msb_wire::exec::Rlimit;
use msb_wire::guest::Security;
use msb_wire::text::{Text, from_hex};
use rustix::fs::Mode;
use rustix::process::umask;

use crate::console::{log, reason};
use crate::env::BaseEnvironment;
use crate::modules::KernelModules;
use crate::{clock, devices, identity, kernel_mounts, machine_id, mounts, net, root, sys, trust};

/// A guest that is set up and accepts commands.
pub(crate) struct GuestState {
    /// Environment variables of every command.
    pub(crate) env: BaseEnvironment,
    /// Default working directory of a command.
    pub(crate) cwd: Option<Text>,
    /// Default user of a command.
    pub(crate) user: Option<Text>,
    /// Restrictions of commands.
    pub(crate) security: Security,
    /// Resource limits of commands.
    pub(crate) rlimits: Vec<Rlimit>,
    /// Top directory of the upper file system.
    pub(crate) upper: OwnedFd,
    /// Top directories of the file systems on writable disks.
    pub(crate) disks: Vec<OwnedFd>,
    /// The network, if the guest has one.
    pub(crate) net: Option<BootNet>,
}

/// Sets the guest up.
pub(crate) fn boot(request: BootRequest, modules: &KernelModules) -> Result<GuestState, BootEvent> {
    let failed = |stage: &str, message: String| BootEvent::Failed {
        stage: stage.to_owned(),
        message: format!("{message}{}", modules.failures()),
    };
    umask(Mode::from_raw_mode(0o022));
    if let Err(error) = clock::set(request.clock_unix_ns) {
        log(&format!("cannot set the clock: {}", reason(error)));
    }
    // First of all, because many guests may start from the same boot state: nothing may use
    // random numbers before.
    add_entropy(&request.entropy_hex);
    if modules.held_devices() {
        devices::probe().map_err(|message| failed("devices", message))?;
    }
    let root = root::enter(&request.root).map_err(|message| failed("root", message))?;
    kernel_mounts::mount_all().map_err(|message| failed("mounts", message))?;
    let restricted = request.guest.security.is_restricted();
    let mut disks = mounts::mount_all(&request.mounts, restricted, root.share)
        .map_err(|message| failed("mounts", message))?;
    if root.on_disk {
        // Last, because mounts may hold files of it open.
        let top = root.top.try_clone();
        disks.push(top.map_err(|error| failed("root", error.to_string()))?);
    }
    let hosts = request.net.as_ref().map_or(&[][..], |net| net.hosts.as_slice());
    identity::set(&request.hostname, hosts).map_err(|message| failed("hostname", message))?;
    if !modules.held_devices() {
        identity::set_common();
    }
    if let Some(net) = &request.net {
        net::set_up(net).map_err(|message| failed("network", message))?;
    }
    if let Some(id) = &request.machine_id {
        machine_id::set(id);
    }
    identity::create_directories(&request.guest.directories);
    if let Some(cwd) = &request.cwd {
        identity::create_cwd(Path::new(cwd.as_os_str()));
    }
    let trusted = request.trust.as_ref().map(|trust| trust::install(trust, &request.env));
    let variables: Vec<Text> =
        trusted.into_iter().flatten().chain(request.env.iter().cloned()).collect();
    let env = BaseEnvironment::new(&request.hostname, &variables, request.guest.scripts);
    Ok(GuestState {
        env,
        cwd: request.cwd,
        user: request.user,
        security: request.guest.security,
        rlimits: request.guest.rlimits,
        upper: root.top,
        disks,
        net: request.net,
    })
}

/// Adds random bytes of the host to the entropy pool, and uses them at once.
pub(crate) fn add_entropy(hex: &str) {
    let Some(random) = from_hex(hex) else {
        log("invalid entropy from the host: not a hexadecimal string");
        return;
    };
    if random.is_empty() {
        return;
    }
    let added = File::options().write(true).open("/dev/random").and_then(|device| {
        random
            .chunks(sys::ENTROPY_BYTES_MAX)
            .take(8)
            .try_for_each(|part| sys::add_entropy(device.as_fd(), part))?;
        sys::reseed(device.as_fd())
    });
    if let Err(error) = added {
        log(&format!("cannot add entropy: {}", reason(error)));
    }
}

/// Returns the event for a successful boot.
pub(crate) fn ready() -> BootEvent {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    BootEvent::Ready { kernel, ready_ns: clock::boottime_ns() }
}
