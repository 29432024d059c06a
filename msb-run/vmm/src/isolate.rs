//! Isolation of the VMM process: the privileges that it gives up before the guest runs.
//!
//! The guest is not trusted, and an exploit of the VMM runs in this process. It therefore keeps
//! only what the plan names. Namespaces, Landlock, a seccomp filter and dropped capabilities
//! enforce that. Each step says what is no longer possible after it, and all steps are reported to
//! the supervisor. A step that the host does not support does not prevent a start. The exceptions
//! are the two steps that keep a guest's root from making programs of this user (setuid bits and
//! capabilities), when this process serves shares; a share server requires them as well.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use libmsb::isolate::{
    self, AllowedCalls, LandlockScope, PathAccess, RulePath, SocketUse, Step, StepOutcome,
};
use libmsb::machine::{DiskDevice, DiskImageFormat, Engine, KrunKernel, KrunPlan, VmPlan};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::share::{self, HostFile, HostFileAccess, SHARE};

/// Name of this process in isolation reports.
const PROCESS: &str = "vmm";

/// Directories of programs, of their libraries and of their data.
const PROGRAMS: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/opt"];

/// Files that the dynamic linker, the C library and QEMU read. Of `/proc` only this process: the
/// rest shows the arguments of the user's other processes.
const READ_PATHS: [&str; 10] = [
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

/// The device of KVM.
const KVM: &str = "/dev/kvm";

/// Directory of a process's open descriptors.
const OWN_DESCRIPTORS: &str = "/proc/self/fd";

/// Devices that an engine uses.
const DEVICES: [&str; 5] = [KVM, "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];

/// Maximum size of a disk's description, in bytes; see [`vmdk_extents`].
const VMDK_BYTES_MAX: u64 = 1024 * 1024;

/// Takes the steps in order: each of the later ones would prevent an earlier one.
pub(crate) fn before_guest(plan: &VmPlan) -> anyhow::Result<Vec<Step>> {
    let executes = matches!(plan.engine, Engine::Qemu(_));
    let serves = serves(plan);
    // A process that serves shares has left the network with its mount namespace.
    let network = if serves { StepOutcome::Complete } else { isolate::unshare_network() };
    let mut steps = vec![
        // No network of the host, no abstract sockets, no shared memory, and of root's rights only
        // those over its files.
        Step::of(PROCESS, "network", network),
        // No core dump may contain the guest's memory.
        Step::of(PROCESS, "core", isolate::disable_core_dumps().into()),
        // No set-user-id program has an effect.
        Step::of(PROCESS, "privileges", isolate::set_no_new_privileges()),
        // No file but the VM's own disks, kernel, shared directories and programs.
        Step::of(PROCESS, "paths", restrict_paths(plan)),
    ];
    if serves {
        // No file of a share becomes a program of this user.
        steps.push(needed(serves, "setid", share::refuse_setid())?);
    }
    // Of the capabilities of a namespace's root, only those that serving files needs. The bounding
    // set keeps programs that root executes, QEMU among them, from gaining any.
    let capabilities = share::keep_capabilities(serves);
    steps.push(needed(serves, "capabilities", capabilities)?);
    steps.push(
        // No mounts, namespaces, modules or other processes, no sockets but those of the plan, and
        // no change of modes, owners and attributes. With libkrun no programs either; QEMU is
        // executed after this step and then refuses them itself (-sandbox).
        Step::of(
            PROCESS,
            "calls",
            isolate::refuse_system_calls(AllowedCalls {
                programs: executes,
                sockets: SocketUse::Open,
                metadata: serves,
            }),
        ),
    );
    Ok(steps)
}

/// Returns a step. A VMM process that serves files must have taken it; another one may run without
/// it.
fn needed(serves: bool, step: &str, taken: anyhow::Result<()>) -> anyhow::Result<Step> {
    match taken {
        Err(error) if serves => {
            Err(error).with_context(|| format!("cannot share directories safely (step '{step}')"))
        }
        Err(error) => Ok(Step::of(PROCESS, step, StepOutcome::Failed(format!("{error:#}")))),
        Ok(()) => Ok(Step::of(PROCESS, step, StepOutcome::Complete)),
    }
}

/// Returns whether this process serves the guest's shares itself.
pub(crate) fn serves(plan: &VmPlan) -> bool {
    matches!(plan.engine, Engine::Krun(_)) && !plan.shares.is_empty()
}

/// Returns the files that a VMM process which serves shares still needs at their paths. Descriptors
/// have paths in its mount namespace anyway.
pub(crate) fn disk_files(plan: &VmPlan) -> Vec<HostFile> {
    let mut kept = vec![HostFile { path: KVM.into(), access: HostFileAccess::Device }];
    let mut keep = |path: &Path, access| {
        if !path.starts_with(OWN_DESCRIPTORS) {
            kept.push(HostFile { path: path.to_owned(), access });
        }
    };
    if let Engine::Krun(KrunPlan { kernel: KrunKernel::Image { path, initrd, .. } }) = &plan.engine
    {
        keep(path, HostFileAccess::Read);
        keep(initrd, HostFileAccess::Read);
    }
    let mut kept_extents = BTreeSet::new();
    for disk in &plan.disks {
        let access = if disk.read_only { HostFileAccess::Read } else { HostFileAccess::Write };
        keep(&disk.path, access);
        kept_extents.extend(vmdk_extents(disk));
    }
    kept_extents.iter().for_each(|extent| keep(extent, HostFileAccess::Read));
    kept
}

/// Reports the steps to the supervisor. If that does not read them, it shows no isolation.
pub(crate) fn report(report_fd: Option<i32>, steps: &[Step]) {
    let Some(number) = report_fd.filter(|number| *number > 2) else {
        return;
    };
    // SAFETY: the descriptor was inherited, nothing in this process closes it, and the borrow ends
    // with this function. If the number is not an open descriptor, the calls say so.
    let pipe = unsafe { BorrowedFd::borrow_raw(number) };
    let _ = fcntl_setfd(pipe, FdFlags::CLOEXEC);
    if let Ok(json) = serde_json::to_vec(steps) {
        // It is far shorter than a pipe's capacity and is written as a whole.
        let _ = rustix::io::write(pipe, &[json, b"\n".to_vec()].concat());
    }
}

fn restrict_paths(plan: &VmPlan) -> StepOutcome {
    let mut rules: Vec<(RulePath<'_>, PathAccess)> = Vec::new();
    let mut keep = |path: &Path, access| rules.push((RulePath::from(path), access));
    PROGRAMS.iter().for_each(|path| keep(Path::new(path), PathAccess::Execute));
    READ_PATHS.iter().for_each(|path| keep(Path::new(path), PathAccess::Read));
    DEVICES.iter().for_each(|path| keep(Path::new(path), PathAccess::Write));
    match &plan.engine {
        Engine::Qemu(engine) => {
            keep(&engine.program, PathAccess::Execute);
            keep(&engine.kernel, PathAccess::Read);
            keep(&engine.initrd, PathAccess::Read);
            // A QEMU that was built by the user has its firmware in its own prefix.
            if let Some(prefix) = engine.program.ancestors().nth(2) {
                keep(&prefix.join("share/qemu"), PathAccess::Read);
                keep(&prefix.join("lib"), PathAccess::Read);
            }
        }
        Engine::Krun(engine) => match &engine.kernel {
            KrunKernel::Library { path, agent } => {
                keep(path, PathAccess::Read);
                keep(agent, PathAccess::Read);
            }
            KrunKernel::Image { path, initrd, .. } => {
                keep(path, PathAccess::Read);
                keep(initrd, PathAccess::Read);
            }
        },
    }
    if serves(plan) {
        // Its mount makes a read-only share read-only.
        keep(Path::new(SHARE), PathAccess::Write);
    }
    for disk in &plan.disks {
        let access = if disk.read_only { PathAccess::Read } else { PathAccess::Write };
        keep(&disk.path, access);
        vmdk_extents(disk).iter().for_each(|extent| keep(extent, PathAccess::Read));
    }
    isolate::restrict_paths(&rules, LandlockScope::Confined)
}

/// Returns the files of which a disk consists besides its description.
fn vmdk_extents(disk: &DiskDevice) -> Vec<PathBuf> {
    if disk.format != DiskImageFormat::Vmdk {
        return Vec::new();
    }
    let text = libmsb::state::write::read_bounded(&disk.path, VMDK_BYTES_MAX);
    let text = text.ok().flatten().unwrap_or_default();
    let directory = disk.path.parent().unwrap_or(Path::new("/"));
    let lines = text.split(|byte| *byte == b'\n');
    lines
        .filter(|line| line.starts_with(b"RW ") || line.starts_with(b"RDONLY "))
        .filter_map(|line| line.split(|byte| *byte == b'"').nth(1))
        .map(|name| directory.join(OsStr::from_bytes(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_that_serves_shares_does_not_run_without_the_required_steps() {
        let fails = || Err(anyhow::anyhow!("no such call"));
        let error = needed(true, "setid", fails()).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "cannot share directories safely (step 'setid'): no such call"
        );
        let step = needed(false, "capabilities", fails()).unwrap();
        assert_eq!((step.holds, step.reason.as_deref()), (false, Some("no such call")));
        assert!(needed(true, "setid", Ok(())).unwrap().holds);
    }

    #[test]
    fn the_files_of_a_disk_are_those_that_its_description_names() {
        let directory = std::env::temp_dir().join(format!("msb-vmm-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("x.vmdk");
        let text = "# \"no\"\nRW 8 FLAT \"a b\" 0\nRW 8 FLAT \"../c\" 0\nddb.x = \"4\"\n";
        std::fs::write(&path, text).unwrap();
        let disk = |format| DiskDevice {
            serial: "s".into(),
            path: path.clone(),
            format,
            read_only: true,
            volatile: false,
        };
        let expected = [directory.join("a b"), directory.join("../c")];
        assert_eq!(vmdk_extents(&disk(DiskImageFormat::Vmdk)), expected);
        assert_eq!(vmdk_extents(&disk(DiskImageFormat::Raw)), Vec::<PathBuf>::new());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
