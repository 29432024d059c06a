//! What the machine's process gives up before the guest runs.
//!
//! The guest is the stranger here: whoever breaks out of it stands in this process. So it keeps what the plan names and
//! nothing else. Each step says what is gone after it, and the supervisor is told of all. What a host cannot do does not
//! stop a start, but for the two steps by which a guest's root makes no programs of this user: those a share's own server
//! insists on as well.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::isolate::{self, Access, Needed, Place, Reach, Sockets, Step, Taken};
use libmsb::machine::{Disk, Engine, Format, Krun, KrunKernel, Plan};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::share::{self, Kept, KeptAccess, SHARE};

/// Who takes the steps, in what is told of them.
const PROCESS: &str = "vmm";

/// Where programs and their libraries are, and what they read of themselves.
const PROGRAMS: [&str; 7] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/nix/store",
    "/opt",
];

/// What the loader of programs, the C library and QEMU look up. Of `/proc`, ourselves alone: with the rest, what other
/// processes of this user were started with.
const LOOKED_UP: [&str; 10] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/qemu",
    "/etc/localtime",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys/vm",
    "/sys/devices/system",
    "/sys/kernel/mm",
];

/// The processor's virtualization.
const KVM: &str = "/dev/kvm";

/// Where a process finds what it has open.
const OWN_FILES: &str = "/proc/self/fd";

/// What an engine uses of the host's devices.
const DEVICES: [&str; 5] = [KVM, "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];

/// Longest description of a disk, in bytes; see [`extents`].
const VMDK_BYTES_MAX: u64 = 1024 * 1024;

/// Takes the steps, in their order: each of the later ones would keep an earlier one from being taken.
pub(crate) fn before_guest(plan: &Plan) -> anyhow::Result<Vec<Step>> {
    let executes = matches!(plan.engine, Engine::Qemu(_));
    let serves = serves(plan);
    // Whoever serves has left it on the way to its stage.
    let network = if serves {
        Taken::Whole
    } else {
        isolate::leave_network()
    };
    let mut steps = vec![
        // No network of the host, no abstract socket, no shared memory, and of root no more than its files.
        Step::of(PROCESS, "network", network),
        // The guest's memory is nobody's business, also when we crash.
        Step::of(PROCESS, "core", refuse_core_dumps()),
        // No set-user-id program helps.
        Step::of(PROCESS, "privileges", isolate::refuse_privileges()),
        // No file but the machine's own disks, kernel, folders and programs.
        Step::of(PROCESS, "paths", keep_paths(plan)),
    ];
    if serves {
        // No file of a share becomes a program of this user.
        steps.push(needed(serves, "setid", share::refuse_setid())?);
    }
    // Of what root of a namespace has, no more than files of its users need. The bounding set keeps root's programs, QEMU
    // among them, from getting any by being executed.
    let capabilities = share::keep_capabilities(serves);
    steps.push(needed(serves, "capabilities", capabilities)?);
    steps.push(
        // No mounts, namespaces, modules, nor other processes, no sockets but those of the plan, and no change of modes, owners
        // and attributes; with libkrun no programs either, and QEMU, which is to be executed yet, then refuses them itself
        // (-sandbox).
        Step::of(
            PROCESS,
            "calls",
            isolate::refuse_calls(Needed {
                programs: executes,
                sockets: Sockets::Open,
                metadata: serves,
            }),
        ),
    );
    Ok(steps)
}

/// A step that a machine which serves files must have taken. Another may do without it.
fn needed(serves: bool, step: &str, taken: anyhow::Result<()>) -> anyhow::Result<Step> {
    match taken {
        Err(error) if serves => {
            Err(error).with_context(|| format!("cannot share folders safely (step '{step}')"))
        }
        Err(error) => Ok(Step::of(PROCESS, step, Taken::Not(format!("{error:#}")))),
        Ok(()) => Ok(Step::of(PROCESS, step, Taken::Whole)),
    }
}

/// Whether this process serves the guest's shares itself.
pub(crate) fn serves(plan: &Plan) -> bool {
    matches!(plan.engine, Engine::Krun(_)) && !plan.shares.is_empty()
}

/// What a machine that serves must still find at its path. Descriptors have theirs on the stage anyway.
pub(crate) fn kept(plan: &Plan) -> Vec<Kept> {
    let mut kept = vec![Kept {
        path: KVM.into(),
        access: KeptAccess::Device,
    }];
    let mut keep = |path: &Path, access| {
        if !path.starts_with(OWN_FILES) {
            kept.push(Kept {
                path: path.to_owned(),
                access,
            });
        }
    };
    if let Engine::Krun(Krun {
        kernel: KrunKernel::Image { path, initrd, .. },
    }) = &plan.engine
    {
        keep(path, KeptAccess::Read);
        keep(initrd, KeptAccess::Read);
    }
    let mut extents_kept = BTreeSet::new();
    for disk in &plan.disks {
        let access = if disk.read_only {
            KeptAccess::Read
        } else {
            KeptAccess::Write
        };
        keep(&disk.path, access);
        extents_kept.extend(extents(disk));
    }
    extents_kept
        .iter()
        .for_each(|extent| keep(extent, KeptAccess::Read));
    kept
}

/// Tells the supervisor. Should it not listen, it shows no isolation.
pub(crate) fn report(report_fd: Option<i32>, steps: &[Step]) {
    let Some(number) = report_fd.filter(|number| *number > 2) else {
        return;
    };
    // SAFETY: the descriptor was inherited, nothing in this process closes it, and the borrow ends with this function. If
    // the number is none of an open file, the calls say so.
    let pipe = unsafe { BorrowedFd::borrow_raw(number) };
    let _ = fcntl_setfd(pipe, FdFlags::CLOEXEC);
    if let Ok(json) = serde_json::to_vec(steps) {
        // It is far shorter than a pipe, and so is written whole.
        let _ = rustix::io::write(pipe, &[json, b"\n".to_vec()].concat());
    }
}

fn refuse_core_dumps() -> Taken {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    match setrlimit(Resource::Core, none) {
        Ok(()) => Taken::Whole,
        Err(error) => Taken::Not(std::io::Error::from(error).to_string()),
    }
}

fn keep_paths(plan: &Plan) -> Taken {
    let mut rules: Vec<(Place<'_>, Access)> = Vec::new();
    let mut keep = |path: &Path, access| rules.push((Place::from(path), access));
    PROGRAMS
        .iter()
        .for_each(|path| keep(Path::new(path), Access::Execute));
    LOOKED_UP
        .iter()
        .for_each(|path| keep(Path::new(path), Access::Read));
    DEVICES
        .iter()
        .for_each(|path| keep(Path::new(path), Access::Write));
    match &plan.engine {
        Engine::Qemu(engine) => {
            keep(&engine.program, Access::Execute);
            keep(&engine.kernel, Access::Read);
            keep(&engine.initrd, Access::Read);
            // One that was built by the user has its firmware beside it.
            if let Some(prefix) = engine.program.ancestors().nth(2) {
                keep(&prefix.join("share/qemu"), Access::Read);
                keep(&prefix.join("lib"), Access::Read);
            }
        }
        Engine::Krun(engine) => match &engine.kernel {
            KrunKernel::Library { path, agent } => {
                keep(path, Access::Read);
                keep(agent, Access::Read);
            }
            KrunKernel::Image { path, initrd, .. } => {
                keep(path, Access::Read);
                keep(initrd, Access::Read);
            }
        },
    }
    if serves(plan) {
        // What is shared read-only is so by its mount.
        keep(Path::new(SHARE), Access::Write);
    }
    for disk in &plan.disks {
        let access = if disk.read_only {
            Access::Read
        } else {
            Access::Write
        };
        keep(&disk.path, access);
        extents(disk)
            .iter()
            .for_each(|extent| keep(extent, Access::Read));
    }
    isolate::keep_paths(&rules, Reach::Alone)
}

/// The files that a disk consists of beside its description.
fn extents(disk: &Disk) -> Vec<PathBuf> {
    if disk.format != Format::Vmdk {
        return Vec::new();
    }
    let text = libmsb::state::write::read_bounded(&disk.path, VMDK_BYTES_MAX);
    let text = text.ok().flatten().unwrap_or_default();
    let folder = disk.path.parent().unwrap_or(Path::new("/"));
    let lines = text.split(|byte| *byte == b'\n');
    lines
        .filter(|line| line.starts_with(b"RW ") || line.starts_with(b"RDONLY "))
        .filter_map(|line| line.split(|byte| *byte == b'"').nth(1))
        .map(|name| folder.join(OsStr::from_bytes(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_serves_files_does_not_run_without_the_steps_that_this_needs() {
        let fails = || Err(anyhow::anyhow!("no such call"));
        let error = needed(true, "setid", fails()).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "cannot share folders safely (step 'setid'): no such call"
        );
        let step = needed(false, "capabilities", fails()).unwrap();
        assert_eq!(
            (step.holds, step.reason.as_deref()),
            (false, Some("no such call"))
        );
        assert!(needed(true, "setid", Ok(())).unwrap().holds);
    }

    #[test]
    fn the_files_of_a_disk_are_those_that_its_description_names() {
        let folder = std::env::temp_dir().join(format!("msb-vmm-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("x.vmdk");
        let text = "# \"no\"\nRW 8 FLAT \"a b\" 0\nRW 8 FLAT \"../c\" 0\nddb.x = \"4\"\n";
        std::fs::write(&path, text).unwrap();
        let disk = |format| Disk {
            serial: "s".into(),
            path: path.clone(),
            format,
            read_only: true,
            volatile: false,
        };
        let expected = [folder.join("a b"), folder.join("../c")];
        assert_eq!(extents(&disk(Format::Vmdk)), expected);
        assert_eq!(extents(&disk(Format::Raw)), Vec::<PathBuf>::new());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
