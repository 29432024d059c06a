//! What a server gives up before it reads the first request: all but what files need, if it serves and nothing else; its
//! capabilities and the bits that make programs somebody else's, if it is the machine too.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// What a file server that acts for several users needs, in its own namespace only. Not SETFCAP: with it a guest's root
/// could give a file capabilities (security.capability), which for root's sandboxes would be those of the host.
pub(super) const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// The bits that make a program somebody else's: on the host the file would be the user's.
const SETID_BITS: u64 = 0o6000;

/// System calls of the server, by what they are for. All others fail with EPERM.
const ALLOWED: &[libc::c_long] = &[
    // Files that are open.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_copy_file_range,
    libc::SYS_getdents64,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fcntl,
    // Files by their names.
    libc::SYS_readlinkat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_readlink,
    // What is known of files, and is set.
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_umask,
    // Acting for a user of the guest, without the right to change what is not its own.
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_capget,
    libc::SYS_capset,
    // The machine, its memory and its notifications.
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads, time, and the end.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_prctl,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// System calls that take a mode, and in which argument: allowed without [`SETID_BITS`]. Others that do (openat2, the
/// newer fchmodat2) are not allowed at all.
const WITH_MODE: &[(libc::c_long, u8)] = &[
    (libc::SYS_openat, 3),
    (libc::SYS_mkdirat, 2),
    (libc::SYS_mknodat, 2),
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
];

/// The same of older calls, which the list of [`ALLOWED`] ones does not have.
const WITH_MODE_BY_PATH: &[(libc::c_long, u8)] = &[
    (libc::SYS_open, 2),
    (libc::SYS_creat, 1),
    (libc::SYS_mkdir, 1),
    (libc::SYS_mknod, 1),
    (libc::SYS_chmod, 1),
];

/// fchmodat2(2), which this libc does not number.
const SYS_FCHMODAT2: libc::c_long = 452;

/// The steps of a server, by the names that the machine's have. Each must be taken: without it nothing is served.
/// `network` and `paths` are taken with its namespaces and its stage, `setid` with its `calls`.
pub(super) const STEPS: [&str; 7] = [
    "network",
    "paths",
    "privileges",
    "core",
    "capabilities",
    "setid",
    "calls",
];

/// After this nothing is left of the process's rights but to serve what is on its stage.
pub(super) fn before_requests() -> anyhow::Result<()> {
    open_many_files();
    set_no_new_privs(true).context("cannot give up new privileges")?;
    forbid_core_dumps()?;
    keep_capabilities(KEPT)?;
    let filter = filter().context("cannot make the filter of system calls")?;
    seccompiler::apply_filter(&filter)
        .map_err(|error| anyhow!("cannot filter system calls: {error}"))
}

/// Every file that the guest's kernel knows is an open one here. More than the limit are an error of the guest's.
pub(super) fn open_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// The guest's memory is nobody's business, also when we crash.
fn forbid_core_dumps() -> anyhow::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).context("cannot forbid core dumps")
}

pub(super) fn keep_capabilities(kept: CapabilitySet) -> anyhow::Result<()> {
    for capability in CapabilitySet::all().difference(kept).iter() {
        // One that this kernel does not know cannot be had either.
        let _ = remove_capability_from_bounding_set(capability);
    }
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).context("cannot give up capabilities")
}

/// For a machine that serves its files itself: it makes calls that no server makes, so only what [`SETID_BITS`] would do is
/// refused.
pub(super) fn refuse_setid() -> anyhow::Result<()> {
    libmsb::isolate::refuse_second_numbers()
        .map_err(|error| anyhow!("cannot filter system calls: {error}"))?;
    let filter = setid_filter().context("cannot make the filter of system calls")?;
    seccompiler::apply_filter(&filter)
        .map_err(|error| anyhow!("cannot filter system calls: {error}"))
}

fn setid_filter() -> anyhow::Result<BpfProgram> {
    let mut rules = BTreeMap::new();
    for (call, argument) in WITH_MODE.iter().chain(WITH_MODE_BY_PATH) {
        let mut either = Vec::new();
        for bit in [SETID_BITS & 0o4000, SETID_BITS & 0o2000] {
            let set = SeccompCondition::new(
                *argument,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::MaskedEq(bit),
                bit,
            )?;
            either.push(SeccompRule::new(vec![set])?);
        }
        rules.insert(*call, either);
    }
    // Their mode is where no filter can look, or they are newer than this list.
    for call in [libc::SYS_openat2, SYS_FCHMODAT2] {
        rules.insert(call, Vec::new());
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}

fn filter() -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    for (call, argument) in WITH_MODE {
        let plain = SeccompCondition::new(
            *argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(SETID_BITS),
            0,
        )?;
        rules.insert(*call, vec![SeccompRule::new(vec![plain])?]);
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_machine_that_serves_makes_files_and_none_that_is_a_program_of_its_user() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        // In a thread of its own, which alone is filtered.
        let changed = std::thread::spawn(move || {
            set_no_new_privs(true).unwrap();
            refuse_setid().unwrap();
            fs::write(&file, "x").unwrap();
            [0o755, 0o4755, 0o2755, 0o6755, 0o1644]
                .map(|mode| fs::set_permissions(&file, Permissions::from_mode(mode)).is_ok())
        });
        assert_eq!(changed.join().unwrap(), [true, false, false, false, true]);
    }
}
