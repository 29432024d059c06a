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

/// Refuses the calls from now on, those that start programs too unless one is to be `executed`. They fail with EPERM.
pub fn refuse_calls(executes: bool) -> Taken {
    match filter(executes) {
        Ok(()) => Taken::Whole,
        Err(error) => Taken::Not(error.to_string()),
    }
}

fn filter(executes: bool) -> Result<(), seccompiler::Error> {
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

    #[test]
    fn threads_are_made_as_ever_and_roots_are_not_changed() {
        let thread = || std::thread::spawn(|| 5).join().unwrap();
        assert_eq!(filtered(false, thread), 5);
        let error = filtered(false, || rustix::process::chroot("/").unwrap_err());
        assert_eq!(error, rustix::io::Errno::PERM);
    }
}
