//! Capabilities that commands of a restricted guest do not get.
//!
//! It runs between fork and exec, so it makes system calls only. After it, and after the exec that
//! follows, a command cannot gain privileges from set-user-ID programs or file capabilities.
//! `CAP_SYS_ADMIN` (mounts, namespaces, most ways for root to attack the guest's kernel) is dropped
//! for the command and all of its descendants.

use std::ffi::c_int;

use rustix::io::Errno;

/// `CAP_SYS_ADMIN` of capabilities(7).
const CAP_SYS_ADMIN: u32 = 21;

/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits, in two halves.
const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// `cap_user_header_t` of capset(2).
#[repr(C)]
struct CapUserHeader {
    version: u32,
    pid: c_int,
}

/// `cap_user_data_t` of capset(2): one half of the sets.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapUserData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops the capabilities of this process. Needs `CAP_SETPCAP`, so it runs before root is given up.
pub(crate) fn confine() -> Result<(), Errno> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong)?;
    prctl(libc::PR_CAPBSET_DROP, CAP_SYS_ADMIN.into())?;
    drop_cap_sys_admin()
}

fn prctl(option: c_int, value: libc::c_ulong) -> Result<(), Errno> {
    let nothing: libc::c_ulong = 0;
    // SAFETY: these options take plain numbers, and change this process only.
    check(unsafe { libc::prctl(option, value, nothing, nothing, nothing) }.into())
}

/// Removes the capability from the sets of this process.
fn drop_cap_sys_admin() -> Result<(), Errno> {
    let mut header = CapUserHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let mut sets = [CapUserData::default(); 2];
    // SAFETY: with version 3 the kernel writes two halves, which is what `sets` is.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    let bit = 1_u32 << CAP_SYS_ADMIN;
    sets[0].effective &= !bit;
    sets[0].permitted &= !bit;
    sets[0].inheritable &= !bit;
    // SAFETY: with version 3 the kernel reads two halves, which is what `sets` is.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) })
}

fn check(answer: libc::c_long) -> Result<(), Errno> {
    if answer < 0 {
        // SAFETY: the location of errno is valid; that of the agent is borrowed while the agent
        // waits.
        Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
    } else {
        Ok(())
    }
}
