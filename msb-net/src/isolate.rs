//! What this process gives up, when everything that it serves with is open.
//!
//! A guest that found a mistake in here would find itself in a process that has no files, no privileges, no way to start a
//! program or to gain rights, and sockets of the Internet only: what the policy forbids could be reached from there, and
//! nothing else.

use std::fs::File;
use std::io::{self, Write};

use anyhow::Context;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    RulesetStatus, Scope,
};
use libmsb::isolate::{Step, Taken};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The newest Landlock whose restrictions are asked for; an older kernel gives those that it has.
const LANDLOCK: ABI = ABI::V6;

/// Calls that serving needs, and why.
const CALLS: &[libc::c_long] = &[
    // The loop. Which of them waits depends on the C library.
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_clock_gettime,
    libc::SYS_restart_syscall,
    // Frames, connections, datagrams, events, and what the kernel tells of the host's addresses, over a socket that is
    // there already.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    // Connections begin, are prepared, and end. What a socket may be is said below.
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    libc::SYS_close,
    // The numbers of DNS, and the seeds of hash tables.
    libc::SYS_getrandom,
    // Memory, without code: see below for the calls that could make some.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // The standard library's locks, and the end.
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

/// What steps are told of as.
const PROCESS: &str = "net";

/// Gives up everything, in this order, and says so to whoever started us. What an old kernel does not know cannot be given
/// up; but for files, what fails ends us.
pub(crate) fn while_serving(report: Option<File>) -> anyhow::Result<()> {
    set_no_new_privs(true).context("cannot give up new privileges")?;
    forbid_dumps().context("cannot forbid core dumps")?;
    give_up_capabilities().context("cannot give up capabilities")?;
    let files = give_up_files().context("cannot give up files")?;
    let filter = filter().context("cannot make the filter of system calls")?;
    seccompiler::apply_filter(&filter).context("cannot give up system calls")?;
    let whole = |step| Step::of(PROCESS, step, Taken::Whole);
    let steps = [
        whole("privileges"),
        whole("core"),
        whole("capabilities"),
        Step::of(PROCESS, "paths", files),
        whole("calls"),
    ];
    // Should nobody listen, no isolation is shown.
    let _ = report.map(|report| tell(report, &steps));
    Ok(())
}

/// The steps, in one line, which is far shorter than a pipe.
fn tell(mut report: File, steps: &[Step]) -> io::Result<()> {
    let mut line = serde_json::to_vec(steps)?;
    line.push(b'\n');
    report.write_all(&line)
}

/// What passes through here is nobody's business, also when we crash.
fn forbid_dumps() -> rustix::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)
}

/// Root's too.
fn give_up_capabilities() -> rustix::io::Result<()> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)
}

/// No rule follows: nothing can be opened, and no socket of another program's be reached by its name.
fn give_up_files() -> Result<Taken, RulesetError> {
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    Ok(match restricted.ruleset {
        RulesetStatus::FullyEnforced => Taken::Whole,
        RulesetStatus::PartiallyEnforced => {
            Taken::Part("this kernel's Landlock is older and lacks some rights".to_owned())
        }
        RulesetStatus::NotEnforced => Taken::Not("this kernel has no Landlock".to_owned()),
    })
}

/// A call that is not on the list fails: rarely taken ways of a library are no reason to end.
fn filter() -> anyhow::Result<BpfProgram> {
    let mut rules: Vec<(libc::c_long, Vec<SeccompRule>)> =
        CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let is = |argument, value: libc::c_int| {
        SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            value as u64,
        )
    };
    let masked = |argument, mask: libc::c_int, value: libc::c_int| {
        SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(mask as u64),
            value as u64,
        )
    };
    // Streams and datagrams of the Internet, never raw packets; flags stand above the low bits.
    const KIND: libc::c_int = 0xf;
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            sockets.push(SeccompRule::new(vec![
                is(0, family)?,
                masked(1, KIND, kind)?,
            ])?);
        }
    }
    rules.push((libc::SYS_socket, sockets));
    // A stream to ourselves: questions for names over TCP.
    rules.push((
        libc::SYS_socketpair,
        // No datagrams, which could be sent to a socket's path.
        vec![SeccompRule::new(vec![
            is(0, libc::AF_UNIX)?,
            masked(1, KIND, libc::SOCK_STREAM)?,
        ])?],
    ));
    // Memory that could be run is none that we need.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.push((
            call,
            vec![SeccompRule::new(vec![masked(2, libc::PROT_EXEC, 0)?])?],
        ));
    }
    // Descriptors are made non-blocking and closed on exec.
    rules.push((libc::SYS_fcntl, Vec::new()));
    rules.push((
        libc::SYS_ioctl,
        vec![SeccompRule::new(vec![is(
            1,
            libc::FIONBIO as libc::c_int,
        )?])?],
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

    /// A thread of its own, since nothing that is given up comes back.
    #[test]
    fn what_is_given_up_is_gone_and_what_serves_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            set_no_new_privs(true).unwrap();
            give_up_files().unwrap();
            seccompiler::apply_filter(&filter().unwrap()).unwrap();
            let denied = |error: std::io::Error| error.kind() == ErrorKind::PermissionDenied;
            assert!(denied(std::fs::read("/proc/self/status").unwrap_err()));
            assert!(denied(
                std::os::unix::net::UnixStream::connect("/x").unwrap_err()
            ));
            assert!(denied(
                std::process::Command::new("/bin/true").spawn().unwrap_err()
            ));
            crate::host::dial(address).unwrap();
            vec![0u8; 64 * 1024 * 1024].len()
        });
        assert_eq!(thread.join().unwrap(), 64 * 1024 * 1024);
    }
}
