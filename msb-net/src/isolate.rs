//! Isolation: privileges and system calls that the process gives up once all its descriptors are
//! open.
//!
//! A guest that exploits a bug in this process gets a process without files and privileges, with no
//! way to start a program or to regain rights, and with Internet sockets only. It could reach
//! addresses that the policy denies, and nothing else.

use std::fs::File;
use std::io::{self, Write};

use anyhow::Context;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
};
use libmsb::isolate::{Step, StepOutcome, disable_core_dumps, keep_capabilities};
use rustix::thread::{CapabilitySet, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Newest Landlock ABI to request; an older kernel applies the restrictions that it supports.
const LANDLOCK: ABI = ABI::V6;

/// System calls that serving needs, with the reason.
const ALLOWED_SYSCALLS: &[libc::c_long] = &[
    // The event loop. The C library decides which of the two is called.
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    // Frames, connections, datagrams, events, and netlink messages on sockets that are already
    // open.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    // Opening, preparing and closing connections. The filter below restricts socket types.
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    libc::SYS_close,
    // DNS message identifiers, and seeds of hash tables.
    libc::SYS_getrandom,
    // Memory that is not executable; the calls that could map code are restricted below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Locks of the standard library, and exit.
    libc::SYS_futex,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Process name in the reported steps.
const PROCESS: &str = "net";

/// Applies every step in order and reports them to the parent process. Restrictions that an old
/// kernel lacks are skipped. Every failure is an error, except an incomplete Landlock.
pub(crate) fn confine(report: Option<File>) -> anyhow::Result<()> {
    set_no_new_privs(true).context("cannot set no_new_privs")?;
    disable_core_dumps().context("cannot disable core dumps")?;
    keep_capabilities(CapabilitySet::empty()).context("cannot drop capabilities")?;
    let files = restrict_files().context("cannot restrict file access")?;
    let filter = seccomp_filter().context("cannot build the seccomp filter")?;
    seccompiler::apply_filter(&filter).context("cannot apply the seccomp filter")?;
    let whole = |step| Step::of(PROCESS, step, StepOutcome::Complete);
    let steps = [
        whole("privileges"),
        whole("core"),
        whole("capabilities"),
        Step::of(PROCESS, "paths", files),
        whole("calls"),
    ];
    // Without a reader of the report, `msb inspect` shows no isolation.
    let _ = report.map(|report| write_report(report, &steps));
    Ok(())
}

/// Writes the steps as one line, which is far shorter than a pipe's buffer.
fn write_report(mut report: File, steps: &[Step]) -> io::Result<()> {
    let mut line = serde_json::to_vec(steps)?;
    line.push(b'\n');
    report.write_all(&line)
}

/// Denies all file access with Landlock: no rule follows, so no file can be opened and no abstract
/// socket of another program reached.
fn restrict_files() -> Result<StepOutcome, RulesetError> {
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    Ok(match restricted.ruleset {
        RulesetStatus::FullyEnforced => StepOutcome::Complete,
        RulesetStatus::PartiallyEnforced => {
            StepOutcome::Partial("this kernel's Landlock is older and lacks some rights".to_owned())
        }
        RulesetStatus::NotEnforced => StepOutcome::Failed("this kernel has no Landlock".to_owned()),
    })
}

/// Builds the seccomp filter. A call that is not on the list fails with `EPERM`, so that a rarely
/// used path in a library does not end the process.
fn seccomp_filter() -> anyhow::Result<BpfProgram> {
    let mut rules: Vec<(libc::c_long, Vec<SeccompRule>)> =
        ALLOWED_SYSCALLS.iter().map(|call| (*call, Vec::new())).collect();
    let is = |argument, value: libc::c_int| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value as u64)
    };
    let masked = |argument, mask: libc::c_int, value: libc::c_int| {
        SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(mask as u64),
            value as u64,
        )
    };
    // Internet stream and datagram sockets, never raw ones. The flags are above the low bits.
    const SOCKET_TYPE_MASK: libc::c_int = 0xf;
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            sockets
                .push(SeccompRule::new(vec![is(0, family)?, masked(1, SOCKET_TYPE_MASK, kind)?])?);
        }
    }
    rules.push((libc::SYS_socket, sockets));
    // A stream socket pair within this process, for DNS over TCP.
    rules.push((
        libc::SYS_socketpair,
        // No datagram sockets, which could send to a socket's path.
        vec![SeccompRule::new(vec![
            is(0, libc::AF_UNIX)?,
            masked(1, SOCKET_TYPE_MASK, libc::SOCK_STREAM)?,
        ])?],
    ));
    // No executable memory.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.push((call, vec![SeccompRule::new(vec![masked(2, libc::PROT_EXEC, 0)?])?]));
    }
    // Non-blocking mode and close-on-exec.
    rules.push((libc::SYS_fcntl, Vec::new()));
    rules.push((
        libc::SYS_ioctl,
        vec![SeccompRule::new(vec![is(1, libc::FIONBIO as libc::c_int)?])?],
    ));
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        arch,
    )?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::TcpListener;

    /// Runs in a thread of its own, because the restrictions cannot be undone.
    #[test]
    fn confinement_denies_the_rest_and_allows_serving() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            set_no_new_privs(true).unwrap();
            restrict_files().unwrap();
            seccompiler::apply_filter(&seccomp_filter().unwrap()).unwrap();
            let denied = |error: std::io::Error| error.kind() == ErrorKind::PermissionDenied;
            assert!(denied(std::fs::read("/proc/self/status").unwrap_err()));
            assert!(denied(std::os::unix::net::UnixStream::connect("/x").unwrap_err()));
            assert!(denied(std::process::Command::new("/bin/true").spawn().unwrap_err()));
            crate::host_sockets::dial(address).unwrap();
            vec![0u8; 64 * 1024 * 1024].len()
        });
        assert_eq!(thread.join().unwrap(), 64 * 1024 * 1024);
    }
}
