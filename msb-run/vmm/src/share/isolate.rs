//! Isolation of a share server before the first request: capabilities, a seccomp filter, and
//! limits. A server process keeps only what files need. A VMM process that serves shares itself
//! keeps the same capabilities, and a seccomp filter refuses setuid and setgid bits.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use libmsb::isolate::{disable_core_dumps, keep_capabilities, raise_file_limit};
use rustix::thread::{CapabilitySet, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Capabilities that a file server for several users needs, in its own namespace only. SETFCAP is
/// missing: with it a guest's root could give capabilities to a file (security.capability), which
/// for root's sandboxes would be those of the host.
pub(super) const KEPT_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// The setuid and setgid bits: on the host the file would be a program of the user.
const SETID_BITS: u64 = 0o6000;

/// The seccomp allow list of the server: system calls by purpose. All others fail with EPERM.
const ALLOWED_CALLS: &[libc::c_long] = &[
    // Open files.
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
    libc::SYS_flock,
    // Files by name.
    libc::SYS_readlinkat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_readlink,
    // Metadata of files.
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
    // Acting for a user of the guest, without permission to change files of others.
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_capget,
    libc::SYS_capset,
    // The VM, its memory and its notifications.
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
    // Threads, time, and exit.
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

/// System calls with a mode, and the number of that argument: allowed without [`SETID_BITS`].
/// Others with a mode (openat2, the newer fchmodat2) are not allowed at all.
const WITH_MODE: &[(libc::c_long, u8)] = &[
    (libc::SYS_openat, 3),
    (libc::SYS_mkdirat, 2),
    (libc::SYS_mknodat, 2),
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
];

/// Older calls with a mode, which [`ALLOWED_CALLS`] does not contain.
const WITH_MODE_BY_PATH: &[(libc::c_long, u8)] = &[
    (libc::SYS_open, 2),
    (libc::SYS_creat, 1),
    (libc::SYS_mkdir, 1),
    (libc::SYS_mknod, 1),
    (libc::SYS_chmod, 1),
];

/// fchmodat2(2), for which this libc has no number.
const SYS_FCHMODAT2: libc::c_long = 452;

/// The steps of a server, by the names of the VMM process's steps. All are required: without one
/// nothing is served. `network` and `paths` are taken with the namespaces, `setid` with `calls`.
pub(super) const STEPS: [&str; 7] =
    ["network", "paths", "privileges", "core", "capabilities", "setid", "calls"];

/// Takes all steps. Afterwards the process can only serve the share.
pub(super) fn before_requests() -> anyhow::Result<()> {
    // Each file that the guest's kernel knows is an open file here. Beyond the limit the guest gets
    // an error.
    raise_file_limit();
    set_no_new_privs(true).context("cannot set no_new_privs")?;
    disable_core_dumps().context("cannot disable core dumps")?;
    keep_capabilities(KEPT_CAPABILITIES).context("cannot drop capabilities")?;
    let filter = filter().context("cannot create the seccomp filter")?;
    seccompiler::apply_filter(&filter)
        .map_err(|error| anyhow!("cannot apply the seccomp filter: {error}"))
}

/// Refuses only [`SETID_BITS`], for a VMM process that serves shares itself: it makes system calls
/// that no server makes.
pub(super) fn refuse_setid() -> anyhow::Result<()> {
    libmsb::isolate::refuse_x32_calls()
        .map_err(|error| anyhow!("cannot apply the seccomp filter: {error}"))?;
    let filter = setid_filter().context("cannot create the seccomp filter")?;
    seccompiler::apply_filter(&filter)
        .map_err(|error| anyhow!("cannot apply the seccomp filter: {error}"))
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
    // A filter cannot read the mode of openat2(2); fchmodat2(2) is newer than the list.
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
        ALLOWED_CALLS.iter().map(|call| (*call, Vec::new())).collect();
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
    fn a_vmm_that_serves_shares_creates_files_without_setuid_and_setgid() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        // In a thread of its own: the filter applies to that thread only.
        let changed = std::thread::spawn(move || {
            set_no_new_privs(true).unwrap();
            refuse_setid().unwrap();
            fs::write(&file, "x").unwrap();
            [0o755, 0o4755, 0o2755, 0o6755, 0o1644]
                .map(|mode| fs::set_permissions(&file, Permissions::from_mode(mode)).is_ok())
        });
        assert_eq!(changed.join().unwrap(), [true, false, false, false, true]);
    }

    /// System calls that a file server does not make. With these arguments each fails with another
    /// error, or changes nothing, where it is not refused.
    #[rustfmt::skip]
    const REFUSED: [(&str, libc::c_long, [libc::c_long; 4]); 34] = [
        ("unix socket", libc::SYS_socket, [libc::AF_UNIX as i64, libc::SOCK_STREAM as i64, 0, 0]),
        ("inet socket", libc::SYS_socket, [libc::AF_INET as i64, libc::SOCK_STREAM as i64, 0, 0]),
        ("netlink socket", libc::SYS_socket, [libc::AF_NETLINK as i64, libc::SOCK_RAW as i64, 0, 0]),
        ("socket pair", libc::SYS_socketpair, [libc::AF_UNIX as i64, libc::SOCK_STREAM as i64, 0, 0]),
        ("connect", libc::SYS_connect, [-1, 0, 0, 0]),
        ("bind", libc::SYS_bind, [-1, 0, 0, 0]),
        ("listen", libc::SYS_listen, [-1, 0, 0, 0]),
        ("accept", libc::SYS_accept4, [-1, 0, 0, 0]),
        ("execute", libc::SYS_execve, [0, 0, 0, 0]),
        ("execute a descriptor", libc::SYS_execveat, [-1, 0, 0, 0]),
        ("fork", libc::SYS_fork, [0, 0, 0, 0]),
        ("namespace", libc::SYS_unshare, [libc::CLONE_NEWNS as i64, 0, 0, 0]),
        ("join", libc::SYS_setns, [-1, 0, 0, 0]),
        ("mount", libc::SYS_mount, [0, 0, 0, 0]),
        ("mount tree", libc::SYS_open_tree, [-1, 0, 0, 0]),
        ("root", libc::SYS_chroot, [0, 0, 0, 0]),
        ("pivot", libc::SYS_pivot_root, [0, 0, 0, 0]),
        ("handle", libc::SYS_open_by_handle_at, [-1, 0, 0, 0]),
        ("signal", libc::SYS_kill, [1, 0, 0, 0]),
        ("process descriptor", libc::SYS_pidfd_open, [1, 0, 0, 0]),
        ("trace", libc::SYS_ptrace, [libc::PTRACE_PEEKDATA as i64, 1, 0, 0]),
        ("memory", libc::SYS_process_vm_readv, [1, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, [-1, 0, 0, 0]),
        ("perf", libc::SYS_perf_event_open, [0, 0, -1, -1]),
        ("userfaultfd", libc::SYS_userfaultfd, [-1, 0, 0, 0]),
        ("io_uring", libc::SYS_io_uring_setup, [0, 0, 0, 0]),
        ("keys", libc::SYS_keyctl, [0, -3, 0, 0]),
        ("personality", libc::SYS_personality, [0xffff_ffff, 0, 0, 0]),
        ("module", libc::SYS_finit_module, [-1, 0, 0, 0]),
        ("clock", libc::SYS_clock_settime, [-1, 0, 0, 0]),
        ("limits", libc::SYS_prlimit64, [1, 7, 0, 0]),
        ("device control", libc::SYS_ioctl, [-1, 0, 0, 0]),
        ("open by its structure", libc::SYS_openat2, [-1, 0, 0, 0]),
        ("mode without a filter", SYS_FCHMODAT2, [-1, 0, 0, 0]),
    ];

    /// The system calls of the confined server, made from inside: [`before_requests`] without the
    /// limits, which belong to the whole process, in a thread, which alone gives up its rights.
    #[test]
    fn a_server_is_refused_every_call_that_files_do_not_need() {
        let could = std::thread::spawn(|| {
            set_no_new_privs(true).unwrap();
            keep_capabilities(CapabilitySet::empty()).unwrap();
            seccompiler::apply_filter(&filter().unwrap()).unwrap();
            let refused = |(_, number, [a, b, c, d]): &(&str, libc::c_long, [libc::c_long; 4])| {
                // SAFETY: no argument is an address of memory, so that a call that were made would
                // fail or change nothing of this process.
                let answer = unsafe { libc::syscall(*number, *a, *b, *c, *d) };
                answer == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
            };
            let could = REFUSED.iter().filter(|call| !refused(call)).map(|(name, ..)| *name);
            could.collect::<Vec<_>>()
        });
        assert_eq!(could.join().unwrap(), Vec::<&str>::new());
    }
}
