//! The krun engine: the plan as calls of libkrun, which then runs the guest in this process.
//!
//! The guest's first root is a file system that exists only in this process's memory: the mount points that the agent
//! needs, and the agent itself. How many devices there may be is checked by who makes the plan.
//!
//! libkrun never returns once the guest runs: this process ends with it, without destructors, and with status 0 also when
//! the guest's kernel has panicked. How a sandbox ended is told by its agent alone.

mod library;
mod placement;

use std::ffi::{CString, c_char};
use std::fs;
use std::io;
use std::path::Path;
use std::ptr;

use anyhow::{Context, bail};
use libmsb::machine::{Disk, Format, KrunKernel, Net, PORT_AGENT, Plan, Share};

use crate::share::SHARE;

use placement::Part;

/// The tag of the first root, and the path of the first process: libkrun's kernel command line names both.
const ROOT: &str = "/dev/root";
const INIT: &str = "init.krun";
/// Mount points of the agent. The first root cannot be written to.
const FOLDERS: [&str; 4] = ["dev", "proc", "sys", "msb"];

const MODE_FOLDER: u32 = 0o040755;
const MODE_PROGRAM: u32 = 0o100755;

/// What the guest accepts from the network (virtio 1.2, 5.1.3): unfinished checksums, and large segments of TCP over
/// IPv4 and IPv6. Without them the guest's buffers are too small for large frames, and libkrun then hangs in a loop.
const NET_FEATURES: u32 = 1 << 1 | 1 << 7 | 1 << 8;

/// libkrun's number for a VMDK (`KRUN_DISK_FORMAT_VMDK`), which libkrun-sys lacks.
const FORMAT_VMDK: u32 = 2;
/// Its numbers for whether a guest's flush reaches the host's disk (`KRUN_SYNC_…`).
const SYNC_NONE: u32 = 0;
const SYNC_FULL: u32 = 2;
/// Its number for files whose owners and modes are those of the host (`PermissionSemantics::LinuxComplete`).
const OWNERS_AS_THEY_ARE: u32 = 0;
/// Its number for logging that no environment variable changes (`KRUN_LOG_OPTION_NO_ENV`).
const LOG_NO_ENV: u32 = 1;

/// Descriptor of standard error, for libkrun's messages.
const STDERR: i32 = 2;

/// The declarations are of another release than the code: the compiler compares them. What they lack is called in the
/// code itself.
macro_rules! agree {
    ($($name:ident($($argument:ty),*);)*) => {
        $(const _: [unsafe extern "C" fn($($argument),*) -> i32; 2] = [libkrun_sys::$name, krun::$name];)*
    };
}

agree! {
    krun_init_log(i32, u32, u32, u32);
    krun_disable_implicit_vsock(u32);
    krun_set_vm_config(u32, u8, u32);
    krun_set_kernel(u32, *const c_char, u32, *const c_char, *const c_char);
    krun_set_console_output(u32, *const c_char);
    krun_add_net_unixstream(u32, *const c_char, i32, *const u8, u32, u32);
    krun_start_enter(u32);
}

/// What the guest begins with.
pub(crate) enum Kernel<'a> {
    /// libkrunfw's kernel, which this process has loaded, and the agent's program.
    Loaded {
        /// libkrun keeps a pointer to it as long as the guest lives, and that is as long as this process does.
        agent: &'static [u8],
        /// Where the kernel belongs in the guest.
        place: Part,
    },
    /// Files, which libkrun reads.
    Image {
        kernel: &'a Path,
        initrd: &'a Path,
        cmdline: &'a str,
    },
}

/// Loads what libkrun looks for where the host's files are.
pub(crate) fn load(kernel: &KrunKernel) -> anyhow::Result<Kernel<'_>> {
    match kernel {
        KrunKernel::Library { path, agent } => {
            let place = library::load(path)?;
            let agent = fs::read(agent)
                .with_context(|| format!("cannot read the agent '{}'", agent.display()))?
                .leak();
            Ok(Kernel::Loaded { agent, place })
        }
        KrunKernel::Image {
            path,
            initrd,
            cmdline,
        } => Ok(Kernel::Image {
            kernel: path,
            initrd,
            cmdline,
        }),
    }
}

/// Becomes the machine. Returns only when that fails, with the reason.
pub(crate) fn enter(plan: &Plan, kernel: &Kernel<'_>) -> anyhow::Result<()> {
    // Its messages go where ours go, and the user's environment does not change that.
    // SAFETY: it takes numbers, and keeps no descriptor for this one. Nothing has set a logger before.
    called("krun_init_log", unsafe {
        libkrun_sys::krun_init_log(
            STDERR,
            libkrun_sys::KRUN_LOG_LEVEL_ERROR,
            libkrun_sys::KRUN_LOG_STYLE_NEVER,
            LOG_NO_ENV,
        )
    })?;
    let machine = Machine::new()?;
    machine.set_size(plan)?;
    match kernel {
        Kernel::Loaded { agent, .. } => machine.add_root(agent)?,
        Kernel::Image {
            kernel,
            initrd,
            cmdline,
        } => machine.set_kernel(kernel, initrd, cmdline)?,
    }
    machine.add_consoles(plan)?;
    plan.disks
        .iter()
        .try_for_each(|disk| machine.add_disk(disk))?;
    plan.shares
        .iter()
        .try_for_each(|share| machine.add_share(share))?;
    plan.net.iter().try_for_each(|net| machine.add_net(net))?;
    place_memory(plan, kernel);
    machine.start()
}

/// The guest is the same without, and slower.
fn place_memory(plan: &Plan, kernel: &Kernel<'_>) {
    let place = match kernel {
        Kernel::Loaded { place, .. } => Some(*place),
        Kernel::Image { .. } => None,
    };
    let bytes = plan.memory_mib as usize * 1024 * 1024;
    let _ = placement::prepare(&placement::parts(bytes, place));
}

/// A context of libkrun: a machine that is being described.
struct Machine(u32);

impl Machine {
    fn new() -> anyhow::Result<Machine> {
        // SAFETY: it takes nothing and makes a context.
        let id = called("krun_create_ctx", unsafe { libkrun_sys::krun_create_ctx() })?;
        let machine = Machine(id);
        // What libkrun adds by itself is for its own first process, and for networking without a network.
        called(
            "krun_disable_implicit_init",
            krun::krun_disable_implicit_init(id),
        )?;
        // SAFETY: it takes the number of a context.
        called("krun_disable_implicit_vsock", unsafe {
            libkrun_sys::krun_disable_implicit_vsock(id)
        })?;
        Ok(machine)
    }

    fn set_size(&self, plan: &Plan) -> anyhow::Result<()> {
        let cpus = u8::try_from(plan.cpus).context("too many processors")?;
        // SAFETY: it takes numbers.
        let answer = unsafe { libkrun_sys::krun_set_vm_config(self.0, cpus, plan.memory_mib) };
        called("krun_set_vm_config", answer).map(drop)
    }

    /// The first root: in memory, with the agent as the first process.
    fn add_root(&self, program: &'static [u8]) -> anyhow::Result<()> {
        let tag = text(ROOT)?;
        // SAFETY: the tag is a string that outlives the call; no path means that there is no folder behind it.
        let answer = unsafe {
            krun::krun_add_virtiofs4(
                self.0,
                tag.as_ptr(),
                ptr::null(),
                0,
                false,
                OWNERS_AS_THEY_ARE,
            )
        };
        called("krun_add_virtiofs4", answer)?;
        for folder in FOLDERS {
            let path = text(folder)?;
            // SAFETY: both strings outlive the call.
            let answer = unsafe {
                krun::krun_fs_add_overlay_dir(self.0, tag.as_ptr(), path.as_ptr(), MODE_FOLDER)
            };
            called("krun_fs_add_overlay_dir", answer)?;
        }
        let path = text(INIT)?;
        // SAFETY: both strings outlive the call, and the bytes this process.
        let answer = unsafe {
            krun::krun_fs_add_overlay_file(
                self.0,
                tag.as_ptr(),
                path.as_ptr(),
                program.as_ptr(),
                program.len(),
                MODE_PROGRAM,
                false,
            )
        };
        called("krun_fs_add_overlay_file", answer).map(drop)
    }

    fn set_kernel(&self, kernel: &Path, initrd: &Path, cmdline: &str) -> anyhow::Result<()> {
        let (kernel, initrd, cmdline) = (path(kernel)?, path(initrd)?, text(cmdline)?);
        let format = libkrun_sys::KRUN_KERNEL_FORMAT_ELF;
        // SAFETY: the strings outlive the call.
        let answer = unsafe {
            libkrun_sys::krun_set_kernel(
                self.0,
                kernel.as_ptr(),
                format,
                initrd.as_ptr(),
                cmdline.as_ptr(),
            )
        };
        called("krun_set_kernel", answer).map(drop)
    }

    /// One console for what the kernel prints, one with the agent's port.
    fn add_consoles(&self, plan: &Plan) -> anyhow::Result<()> {
        // It wants a path. That of a pipe's end gives the same pipe, as that of a socket would not.
        let log = text(&format!("/proc/self/fd/{}", plan.console_fd))?;
        // SAFETY: the string outlives the call.
        called("krun_set_console_output", unsafe {
            libkrun_sys::krun_set_console_output(self.0, log.as_ptr())
        })?;
        // SAFETY: it takes the number of a context.
        let console = called("krun_add_virtio_console_multiport", unsafe {
            krun::krun_add_virtio_console_multiport(self.0)
        })?;
        let name = text(PORT_AGENT)?;
        let fd = plan.agent_fd;
        // SAFETY: the string outlives the call. The descriptor is duplicated later, which fails for one that is not open.
        let answer =
            unsafe { krun::krun_add_console_port_inout(self.0, console, name.as_ptr(), fd, fd) };
        called("krun_add_console_port_inout", answer).map(drop)
    }

    fn add_disk(&self, disk: &Disk) -> anyhow::Result<()> {
        let (serial, file) = (text(&disk.serial)?, path(&disk.path)?);
        let format = match disk.format {
            Format::Raw => libkrun_sys::KRUN_DISK_FORMAT_RAW,
            Format::Vmdk => FORMAT_VMDK,
            Format::Qcow2 => libkrun_sys::KRUN_DISK_FORMAT_QCOW2,
        };
        let sync = if disk.volatile { SYNC_NONE } else { SYNC_FULL };
        // SAFETY: the strings outlive the call.
        let answer = unsafe {
            krun::krun_add_disk3(
                self.0,
                serial.as_ptr(),
                file.as_ptr(),
                format,
                disk.read_only,
                false,
                sync,
            )
        };
        called("krun_add_disk3", answer)
            .with_context(|| format!("cannot add the disk '{}'", disk.path.display()))
            .map(drop)
    }

    /// What is shared, which stands in a folder of this process's own root. Who may write what is told by its mounts.
    fn add_share(&self, share: &Share) -> anyhow::Result<()> {
        let (tag, folder) = (text(&share.tag)?, text(SHARE)?);
        // No window of memory: a guest would map files of the host into itself, past every bound.
        // SAFETY: both strings outlive the call, in which they are copied.
        let answer = unsafe {
            krun::krun_add_virtiofs4(
                self.0,
                tag.as_ptr(),
                folder.as_ptr(),
                0,
                false,
                OWNERS_AS_THEY_ARE,
            )
        };
        called("krun_add_virtiofs4", answer).map(drop)
    }

    fn add_net(&self, net: &Net) -> anyhow::Result<()> {
        // SAFETY: no path, an inherited descriptor, and six bytes that outlive the call, in which they are copied.
        let answer = unsafe {
            libkrun_sys::krun_add_net_unixstream(
                self.0,
                ptr::null(),
                net.fd,
                net.mac.as_ptr(),
                NET_FEATURES,
                0,
            )
        };
        called("krun_add_net_unixstream", answer).map(drop)
    }

    /// Runs the guest. This process ends with it.
    fn start(self) -> anyhow::Result<()> {
        // SAFETY: it takes the number of a context, whose strings it has copied; what it points to is never freed.
        called("krun_start_enter", unsafe {
            libkrun_sys::krun_start_enter(self.0)
        })?;
        bail!("libkrun came back")
    }
}

/// The answer of a function of libkrun: below zero it is an error of the system.
fn called(function: &str, answer: i32) -> anyhow::Result<u32> {
    u32::try_from(answer)
        .map_err(|_| io::Error::from_raw_os_error(answer.wrapping_neg()))
        .with_context(|| format!("libkrun refuses ({function})"))
}

fn text(text: &str) -> anyhow::Result<CString> {
    CString::new(text).with_context(|| format!("there is a NUL byte in '{}'", text.escape_debug()))
}

/// libkrun takes paths in UTF-8 only.
fn path(path: &Path) -> anyhow::Result<CString> {
    let shown = path.display();
    text(
        path.to_str().with_context(|| {
            format!("the engine krun takes no path that is not UTF-8: '{shown}'")
        })?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_below_zero_is_an_error_of_the_system() {
        assert_eq!(called("f", 3).unwrap(), 3);
        let error = format!("{:#}", called("f", -22).unwrap_err());
        assert!(
            error.contains("(f)") && error.contains("Invalid argument"),
            "{error}"
        );
        assert!(called("f", i32::MIN).is_err());
    }

    #[test]
    fn what_libkrun_cannot_be_told_is_refused() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        assert!(path(Path::new(OsStr::from_bytes(b"/\xff"))).is_err());
        assert!(text("a\0b").is_err());
    }
}
