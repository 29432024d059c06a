//! System calls that are refused, by a filter of seccomp(2).
//!
//! It is a list of what nobody here needs, not of what they need: libraries, and QEMU, differ from release to release, and a
//! call that is missing from a list of the needed ones kills a sandbox. What matters is on the list: everything that
//! changes what is mounted, loads code into the kernel, looks into other processes, or makes namespaces in which an
//! unprivileged process is root.

use std::collections::BTreeMap;

use libc::{EPERM, c_long};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

use super::Taken;

/// Refused always.
const REFUSED: [c_long; 53] = [
    // What is mounted where, and in which root.
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
    // Namespaces: each makes the whole of the kernel's privileged code reachable.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Files by number, around every path.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Code in the kernel, and another kernel.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_bpf,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    // Large interfaces with a history, and no use here.
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
    // The host's clock and name.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Refused to whoever starts no program any more.
const PROGRAMS: [c_long; 2] = [libc::SYS_execve, libc::SYS_execveat];

/// Of clone(2): the namespaces that it can make.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// The bit that numbers of the x32 ABI have besides, on x86-64: every call is there under a second number, which no list
/// names. Nowhere is there a number so high that is no such call.
const X32: u32 = 0x4000_0000;

/// Where `struct seccomp_data` has the number of the call.
const NUMBER_AT: u32 = 0;

/// Refuses the calls from now on, those that start programs too unless one is to be `executed`. They fail with EPERM.
pub fn refuse_calls(executes: bool) -> Taken {
    match filter(executes) {
        Ok(()) => Taken::Whole,
        Err(error) => Taken::Not(error.to_string()),
    }
}

/// Refuses what goes around a list of refused calls by another number. To be taken before any such list.
pub fn refuse_second_numbers() -> Result<(), seccompiler::Error> {
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

fn filter(executes: bool) -> Result<(), seccompiler::Error> {
    refuse_second_numbers()?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    if !executes {
        rules.extend(PROGRAMS.iter().map(|call| (*call, Vec::new())));
    }
    let mut clones = Vec::new();
    for flag in NAMESPACES {
        clones.push(SeccompRule::new(vec![has_flag(flag)?])?);
    }
    rules.insert(libc::SYS_clone, clones);
    apply(rules, EPERM)?;
    // Its flags are in memory, where no filter can see them. The C library takes clone(2) for one that is not there.
    apply(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        libc::ENOSYS,
    )
}

/// That the first argument holds a flag.
fn has_flag(flag: i32) -> Result<SeccompCondition, seccompiler::Error> {
    let flag = u64::from(flag.unsigned_abs());
    let operator = SeccompCmpOp::MaskedEq(flag);
    Ok(SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        operator,
        flag,
    )?)
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

    /// In a thread of its own, which alone is filtered.
    fn filtered<T: Send + 'static>(executes: bool, act: fn() -> T) -> T {
        let thread = std::thread::spawn(move || {
            assert_eq!(refuse_calls(executes), Taken::Whole);
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

    /// A kernel without x32 says that there is no such call; it is ours to say that it is refused.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_call_is_refused_by_its_second_number_too() {
        let error = filtered(true, || {
            // SAFETY: every argument is 0, so that the call, were it made, would name no memory of ours and fail.
            let answer =
                unsafe { libc::syscall(c_long::from(X32) | libc::SYS_mount, 0, 0, 0, 0, 0) };
            assert_eq!(answer, -1);
            std::io::Error::last_os_error().raw_os_error()
        });
        assert_eq!(error, Some(EPERM));
    }

    #[test]
    fn threads_are_made_as_ever_and_roots_are_not_changed() {
        let thread = || std::thread::spawn(|| 5).join().unwrap();
        assert_eq!(filtered(false, thread), 5);
        let error = filtered(false, || rustix::process::chroot("/").unwrap_err());
        assert_eq!(error, rustix::io::Errno::PERM);
    }
}
