//! The boot request, step by step.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use msb_wire::boot::{BootEvent, BootRequest};
use msb_wire::guest::Security;
use msb_wire::text::{Text, from_hex};
use rustix::fs::Mode;
use rustix::process::umask;

use crate::console::{log, reason};
use crate::env::Base;
use crate::modules::Modules;
use crate::{attach, clock, devices, identity, machine_id, mount, net, root, sys};

/// A guest that takes commands.
pub(crate) struct Guest {
    /// Variables of every command.
    pub(crate) env: Base,
    /// Directory of a command that names none.
    pub(crate) cwd: Option<Text>,
    /// User of a command that names none.
    pub(crate) user: Option<Text>,
    /// What commands may do.
    pub(crate) security: Security,
    /// Top of the file system that is written to.
    pub(crate) upper: OwnedFd,
    /// Tops of the file systems on disks that are written to.
    pub(crate) disks: Vec<OwnedFd>,
}

/// Sets the guest up.
pub(crate) fn boot(request: BootRequest, modules: &Modules) -> Result<Guest, BootEvent> {
    let failed = |stage: &str, message: String| BootEvent::Failed {
        stage: stage.to_owned(),
        message: format!("{message}{}", modules.failures()),
    };
    umask(Mode::from_raw_mode(0o022));
    if let Err(error) = clock::set(request.clock_unix_ns) {
        log(&format!("cannot set the clock: {}", reason(error)));
    }
    // Before anything else is made of random numbers: many guests may start from the same memory.
    add_entropy(&request.entropy_hex);
    if modules.held_devices() {
        devices::probe().map_err(|message| failed("devices", message))?;
    }
    let root = root::enter(&request.root).map_err(|message| failed("root", message))?;
    mount::guest().map_err(|message| failed("mounts", message))?;
    let restricted = request.guest.security.is_restricted();
    let mut disks = attach::attach(&request.mounts, restricted, root.share)
        .map_err(|message| failed("mounts", message))?;
    if root.on_disk {
        // Last: mounts may hold files of it open.
        let top = root.top.try_clone();
        disks.push(top.map_err(|error| failed("root", error.to_string()))?);
    }
    let hosts = request
        .net
        .as_ref()
        .map_or(&[][..], |net| net.hosts.as_slice());
    identity::assume(&request.hostname, hosts).map_err(|message| failed("hostname", message))?;
    if !modules.held_devices() {
        identity::assume_common();
    }
    if let Some(net) = &request.net {
        net::set_up(net).map_err(|message| failed("network", message))?;
    }
    if let Some(id) = &request.machine_id {
        machine_id::assume(id);
    }
    if let Some(cwd) = &request.cwd {
        identity::create_cwd(Path::new(cwd.as_os_str()));
    }
    let env = Base::new(&request.hostname, &request.env, request.guest.scripts);
    Ok(Guest {
        env,
        cwd: request.cwd,
        user: request.user,
        security: request.guest.security,
        upper: root.top,
        disks,
    })
}

fn add_entropy(hex: &str) {
    let Some(random) = from_hex(hex) else {
        log("the entropy that the host sent is no string of hexadecimal digits");
        return;
    };
    if random.is_empty() {
        return;
    }
    let added = File::options()
        .write(true)
        .open("/dev/random")
        .and_then(|device| {
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

/// The good answer to a boot request.
pub(crate) fn ready() -> BootEvent {
    let kernel = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    BootEvent::Ready {
        kernel,
        ready_ns: clock::boottime_ns(),
    }
}
