//! Isolation: privileges and system calls that the process gives up before the first connection.
//!
//! A server or a guest that exploits a bug in this process gets the values of secrets, which cannot
//! be avoided, and the connections that are open. It can open no other one, no file and no program.

use std::fs::File;
use std::io::{self, Write};

use anyhow::Context;
use libmsb::isolate::{
    LandlockScope, Step, StepOutcome, disable_core_dumps, keep_capabilities, refuse_x32_calls,
    restrict_paths, set_no_new_privileges, unshare_network,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::CapabilitySet;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// System calls that serving needs.
const ALLOWED_SYSCALLS: &[libc::c_long] = &[
    // The event loop.
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    // Connections, events and the wake-up of the loop.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    libc::SYS_close,
    // Keys of connections.
    libc::SYS_getrandom,
    // Memory that is not executable; the calls that could map code are restricted below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Locks of the standard library, and exit.
    libc::SYS_futex,
    libc::SYS_sched_yield,
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
const PROCESS: &str = "intercept";

/// Applies every step in order and reports them to the parent process. What an old kernel lacks is
/// reported and does not prevent the start; the filter of system calls is required.
pub(crate) fn confine(report: Option<File>) -> anyhow::Result<()> {
    let network = unshare_network();
    disable_core_dumps().context("cannot disable core dumps")?;
    // Neither debuggers nor /proc/PID/mem of the same user.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot protect the memory")?;
    let privileges = set_no_new_privileges();
    let paths = restrict_paths(&[], LandlockScope::Confined);
    keep_capabilities(CapabilitySet::empty()).context("cannot drop capabilities")?;
    refuse_x32_calls().context("cannot apply the seccomp filter")?;
    let filter = seccomp_filter().context("cannot build the seccomp filter")?;
    seccompiler::apply_filter(&filter).context("cannot apply the seccomp filter")?;
    let steps = [
        Step::of(PROCESS, "network", network),
        Step::of(PROCESS, "core", StepOutcome::Complete),
        Step::of(PROCESS, "privileges", privileges),
        Step::of(PROCESS, "paths", paths),
        Step::of(PROCESS, "capabilities", StepOutcome::Complete),
        Step::of(PROCESS, "calls", StepOutcome::Complete),
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

/// Builds the seccomp filter. A call that is not on the list fails with `EPERM`.
fn seccomp_filter() -> anyhow::Result<BpfProgram> {
    let mut rules: Vec<(libc::c_long, Vec<SeccompRule>)> =
        ALLOWED_SYSCALLS.iter().map(|call| (*call, Vec::new())).collect();
    let (dword, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let no_exec = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, no_exec, 0)?;
        rules.push((call, vec![SeccompRule::new(vec![condition])?]));
    }
    // Non-blocking mode.
    let fionbio = SeccompCondition::new(1, dword, equal, libc::FIONBIO)?;
    rules.push((libc::SYS_ioctl, vec![SeccompRule::new(vec![fionbio])?]));
    let mut fcntl = Vec::new();
    for command in [libc::F_GETFL, libc::F_SETFL, libc::F_GETFD, libc::F_SETFD] {
        let command = SeccompCondition::new(
            1,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            u64::from(command.unsigned_abs()),
        )?;
        fcntl.push(SeccompRule::new(vec![command])?);
    }
    rules.push((libc::SYS_fcntl, fcntl));
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
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;

    /// Runs in a thread of its own, because the restrictions cannot be undone.
    #[test]
    fn the_process_opens_nothing_and_uses_what_it_has() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            assert_eq!(set_no_new_privileges(), StepOutcome::Complete);
            seccompiler::apply_filter(&seccomp_filter().unwrap()).unwrap();
            let denied = |error: io::Error| error.kind() == ErrorKind::PermissionDenied;
            assert!(denied(std::fs::read("/proc/self/status").unwrap_err()));
            assert!(denied(std::fs::write("/tmp/msb-intercept", "x").unwrap_err()));
            assert!(denied(UnixStream::connect("/x").unwrap_err()));
            assert!(denied(UnixStream::pair().unwrap_err()));
            assert!(denied(TcpStream::connect(address).unwrap_err()));
            assert!(denied(UdpSocket::bind("127.0.0.1:0").unwrap_err()));
            assert!(denied(listener.accept().unwrap_err()));
            assert!(denied(std::process::Command::new("/bin/true").spawn().unwrap_err()));
            (&theirs).write_all(b"used").unwrap();
            vec![0u8; 64 * 1024 * 1024].len()
        });
        assert_eq!(thread.join().unwrap(), 64 * 1024 * 1024);
        let mut used = [0; 4];
        ours.read_exact(&mut used).unwrap();
        assert_eq!(&used, b"used");
    }
}
