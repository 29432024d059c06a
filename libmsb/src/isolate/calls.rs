//! System call filters: seccomp(2).
//!
//! The filter is a deny list, not an allow list. Libraries, and QEMU, differ from release to
//! release, and a call that is missing from an allow list would kill a sandbox. The list holds the
//! calls that matter: those that change mounts, load code into the kernel, access other processes,
//! or create namespaces in which an unprivileged process is root.

use std::collections::BTreeMap;

use libc::{EPERM, c_long};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

use super::StepOutcome;

/// System calls that are always denied.
const DENIED_ALWAYS: [c_long; 54] = [
    // Mounts and the root directory.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_acct,
    // Files by path: Landlock restricts it only from Linux 6.2 on. ftruncate(2) stays.
    libc::SYS_truncate,
    // Namespaces: each makes the whole of the kernel's privileged code reachable.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Files by handle, which bypasses path checks.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Kernel modules, and loading another kernel.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_bpf,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    // Large interfaces with a history of vulnerabilities, and unused here.
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    libc::SYS_modify_ldt,
    libc::SYS_lookup_dcookie,
    libc::SYS_vhangup,
    libc::SYS_syslog,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    // The host's clock and host name.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Denied to a process that starts no programs.
const DENIED_EXEC: [c_long; 2] = [libc::SYS_execve, libc::SYS_execveat];

/// Denied to a process that opens no connections. Landlock does not cover Unix sockets with a path,
/// so without this a process could reach the sockets of all other programs of its user. Open
/// sockets stay usable, and descriptors can be passed over them.
const DENIED_CONNECT: [c_long; 1] = [libc::SYS_connect];

/// Denied in addition to a process that accepts no connections.
const DENIED_ACCEPT: [c_long; 5] =
    [libc::SYS_socket, libc::SYS_bind, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4];

/// Address families of sockets for published ports.
const PUBLISHED_FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// Denied to a process that changes no file metadata. Landlock does not restrict these calls.
const DENIED_METADATA: [c_long; 19] = [
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    SYS_FCHMODAT2,
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    SYS_SETXATTRAT,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    SYS_REMOVEXATTRAT,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];

/// System call numbers that this libc crate lacks (linux/arch/x86/entry/syscalls/syscall_64.tbl).
const SYS_FCHMODAT2: c_long = 452;
const SYS_SETXATTRAT: c_long = 463;
const SYS_REMOVEXATTRAT: c_long = 466;

/// Groups of system calls that a process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedCalls {
    /// True to allow programs to be started.
    pub programs: bool,
    /// Allowed use of sockets.
    pub sockets: SocketUse,
    /// True to allow changes of modes, owners, times and attributes of files.
    pub metadata: bool,
}

/// Allowed use of sockets, in addition to those that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketUse {
    /// No new sockets.
    Open,
    /// Sockets of published ports: the process accepts connections and opens none.
    Publish,
    /// All: the process opens, binds and connects sockets.
    All,
}

impl AllowedCalls {
    /// No group.
    pub const NONE: AllowedCalls =
        AllowedCalls { programs: false, sockets: SocketUse::Open, metadata: false };

    fn refused(self) -> Vec<c_long> {
        let mut refused = DENIED_ALWAYS.to_vec();
        if !self.programs {
            refused.extend(DENIED_EXEC);
        }
        if self.sockets != SocketUse::All {
            refused.extend(DENIED_CONNECT);
        }
        if self.sockets == SocketUse::Open {
            refused.extend(DENIED_ACCEPT);
        }
        if !self.metadata {
            refused.extend(DENIED_METADATA);
            refused.push(libc::SYS_utimensat);
        }
        refused
    }
}

/// Flags of clone(2) that create namespaces.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// The bit of system call numbers of the x32 ABI, on x86-64: every call has such a second number,
/// which no list contains. All numbers this high are x32 calls.
const X32: u32 = 0x4000_0000;

/// Offset of the number in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;

/// Installs the seccomp filter: denies the system calls, except those that are `needed`. They fail
/// with EPERM.
pub fn refuse_system_calls(needed: AllowedCalls) -> StepOutcome {
    match filter(needed) {
        Ok(()) => StepOutcome::Complete,
        Err(error) => StepOutcome::Failed(error.to_string()),
    }
}

/// Denies the second numbers of system calls (x32 ABI), which bypass a list. Call it before a list
/// is installed.
pub fn refuse_x32_calls() -> Result<(), seccompiler::Error> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const SKIP_UNLESS_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    seccompiler::apply_filter(&[
        step(LOAD, 0, 0, NUMBER_AT),
        step(SKIP_UNLESS_AT_LEAST, 0, 1, X32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | EPERM.unsigned_abs()),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ])
}

fn filter(needed: AllowedCalls) -> Result<(), seccompiler::Error> {
    refuse_x32_calls()?;
    let refused = needed.refused().into_iter();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        refused.map(|call| (call, Vec::new())).collect();
    let mut clones = Vec::new();
    for flag in NAMESPACES {
        clones.push(SeccompRule::new(vec![has_flag(flag)?])?);
    }
    rules.insert(libc::SYS_clone, clones);
    if needed.sockets == SocketUse::Publish {
        let mut others = Vec::new();
        for family in PUBLISHED_FAMILIES {
            others.push(SeccompCondition::new(
                0,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Ne,
                family as u64,
            )?);
        }
        rules.insert(libc::SYS_socket, vec![SeccompRule::new(others)?]);
    }
    apply(rules, EPERM)?;
    // The flags of clone3(2) are in memory, which a filter cannot read. With ENOSYS the C library
    // falls back to clone(2).
    apply(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

/// Returns a condition: the first argument contains a flag.
fn has_flag(flag: i32) -> Result<SeccompCondition, seccompiler::Error> {
    let flag = u64::from(flag.unsigned_abs());
    let operator = SeccompCmpOp::MaskedEq(flag);
    Ok(SeccompCondition::new(0, SeccompCmpArgLen::Qword, operator, flag)?)
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, error: i32) -> Result<(), seccompiler::Error> {
    let refuse = SeccompAction::Errno(error.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a function in a thread of its own, to which the filter is limited.
    fn filtered<T: Send + 'static>(programs: bool, act: fn() -> T) -> T {
        let needed = AllowedCalls { programs, ..AllowedCalls::NONE };
        let thread = std::thread::spawn(move || {
            assert_eq!(refuse_system_calls(needed), StepOutcome::Complete);
            act()
        });
        thread.join().unwrap()
    }

    #[test]
    fn programs_are_started_only_where_they_may_be() {
        let start = || std::process::Command::new("/bin/true").status().is_ok();
        assert!(filtered(true, start));
        assert!(!filtered(false, start));
    }

    /// A kernel without x32 reports a missing call; the filter must report a denied one.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_call_is_refused_by_its_second_number_too() {
        let error = filtered(true, || {
            // SAFETY: every argument is 0, so that the call, were it made, would name no memory of
            // ours and fail.
            let answer =
                unsafe { libc::syscall(c_long::from(X32) | libc::SYS_mount, 0, 0, 0, 0, 0) };
            assert_eq!(answer, -1);
            std::io::Error::last_os_error().raw_os_error()
        });
        assert_eq!(error, Some(EPERM));
    }

    #[test]
    fn sockets_are_used_as_far_as_is_needed() {
        use std::os::unix::net::{UnixListener, UnixStream};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        for (sockets, connects, accepts) in [
            (SocketUse::Open, false, false),
            (SocketUse::Publish, false, true),
            (SocketUse::All, true, true),
        ] {
            let (path, ours) = (path.clone(), listener.try_clone().unwrap());
            let _waits = UnixStream::connect(&path).unwrap();
            let needed = AllowedCalls { sockets, ..AllowedCalls::NONE };
            let thread = std::thread::spawn(move || {
                assert_eq!(refuse_system_calls(needed), StepOutcome::Complete);
                let accepted = ours.accept().is_ok();
                // A pair connects this process with itself only.
                assert!(UnixStream::pair().is_ok());
                let published = std::net::TcpListener::bind("127.0.0.1:0").is_ok();
                assert_eq!(published, sockets != SocketUse::Open);
                (UnixStream::connect(&path).is_ok(), accepted)
            });
            assert_eq!(thread.join().unwrap(), (connects, accepts), "{sockets:?}");
            listener.set_nonblocking(true).unwrap();
            while listener.accept().is_ok() {}
            listener.set_nonblocking(false).unwrap();
        }
    }

    #[test]
    fn metadata_is_changed_only_where_it_may_be() {
        use std::fs::{File, Permissions};
        use std::os::unix::fs::{PermissionsExt, chown};
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "x").unwrap();
        for metadata in [false, true] {
            let path = path.clone();
            let needed = AllowedCalls { metadata, ..AllowedCalls::NONE };
            let thread = std::thread::spawn(move || {
                assert_eq!(refuse_system_calls(needed), StepOutcome::Complete);
                let file = File::options().write(true).open(&path).unwrap();
                [
                    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).is_ok(),
                    file.set_permissions(Permissions::from_mode(0o600)).is_ok(),
                    chown(&path, None, None).is_ok(),
                    file.set_modified(std::time::SystemTime::now()).is_ok(),
                ]
            });
            assert_eq!(thread.join().unwrap(), [metadata; 4]);
        }
    }

    #[test]
    fn threads_are_made_as_ever_and_roots_are_not_changed() {
        let thread = || std::thread::spawn(|| 5).join().unwrap();
        assert_eq!(filtered(false, thread), 5);
        let error = filtered(false, || rustix::process::chroot("/").unwrap_err());
        assert_eq!(error, rustix::io::Errno::PERM);
    }
}
