//! Process creation: fork and exec.
//!
//! The child shares the agent's memory until it executes (like vfork), and the agent waits for
//! that. No page tables are copied, which is most of the cost of a fork, and the child reports a
//! failure by writing to memory. So a command that is reported as started has been executed,
//! without a pipe and without a race. The disadvantage: an execve from a file system that does not
//! respond blocks the agent; there is none unless root in the guest creates one.
//!
//! The child may make system calls only; everything else is prepared before.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use msb_wire::guest::Security;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::confine::confine;

/// Parameters of a child process.
pub(crate) struct SpawnPlan<'a> {
    /// Paths to try, in this order.
    pub(crate) programs: &'a [CString],
    /// Arguments, starting with the program name.
    pub(crate) argv: &'a [CString],
    /// Environment.
    pub(crate) env: &'a [Cow<'a, CStr>],
    /// Working directory.
    pub(crate) cwd: &'a CStr,
    /// Descriptors that become 0, 1 and 2. They must be above 2.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// Makes descriptor 0 the controlling terminal.
    pub(crate) terminal: bool,
    /// Resource limits.
    pub(crate) limits: &'a [(u32, libc::rlimit64)],
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: &'a [u32],
    /// Restrictions.
    pub(crate) security: Security,
    /// Makes the child PID 1 of a new PID namespace and mounts that namespace's `/proc` over the
    /// existing one.
    pub(crate) init: bool,
}

/// Steps of a child, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpawnStep {
    /// Process creation.
    Fork,
    /// Session, terminal, descriptors.
    Prepare,
    /// Resource limits.
    Limits,
    /// Capabilities.
    Confine,
    /// User and groups.
    User,
    /// Working directory.
    Cwd,
    /// execve(2).
    Execute,
}

/// Error of a child that did not execute its program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpawnError {
    /// Failed step.
    pub(crate) step: SpawnStep,
    /// Error of that step.
    pub(crate) error: Errno,
    /// Index in [`SpawnPlan::programs`], for [`SpawnStep::Execute`].
    pub(crate) program: usize,
}

/// Stack size of the child before it executes: enough for two frames and a few system calls.
const STACK_BYTES: usize = 64 * 1024;

/// Starts programs, one at a time.
pub(crate) struct Spawner {
    stack: Box<[u8]>,
}

/// Data that the child reads, and the error that it writes.
struct ChildContext<'a> {
    plan: &'a SpawnPlan<'a>,
    stdio: [RawFd; 3],
    programs: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    failed: Option<SpawnError>,
}

impl Spawner {
    /// Allocates the child's stack.
    pub(crate) fn new() -> Spawner {
        Spawner { stack: vec![0; STACK_BYTES].into_boxed_slice() }
    }

    /// Starts a program in a new session. Returns when it has been executed or has failed.
    pub(crate) fn start(&mut self, plan: &SpawnPlan<'_>) -> Result<Pid, SpawnError> {
        let mut child = ChildContext {
            plan,
            stdio: plan.stdio.map(|fd| fd.as_raw_fd()),
            programs: pointers(plan.programs),
            argv: pointers(plan.argv),
            env: pointers(plan.env),
            failed: None,
        };
        let context = ptr::from_mut(&mut child);
        let pid = self.clone_child(context, plan.init).map_err(|error| SpawnError {
            step: SpawnStep::Fork,
            error,
            program: 0,
        })?;
        // SAFETY: `context` points to `child`, which is alive; the child process, the only other
        // one that writes there, has executed or ended, as CLONE_VFORK guarantees. Volatile,
        // because the compiler does not know of that write.
        let failed = unsafe { ptr::read_volatile(&raw const (*context).failed) };
        match failed {
            None => Ok(pid),
            Some(failed) => {
                let _ = waitpid(Some(pid), WaitOptions::empty());
                Err(failed)
            }
        }
    }

    fn clone_child(&mut self, context: *mut ChildContext<'_>, init: bool) -> Result<Pid, Errno> {
        let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        if init {
            flags |= libc::CLONE_NEWPID;
        }
        // SAFETY: one past the end of the stack, moved down to the alignment that the ABI asks for,
        // is within the stack's allocation. The stack and `context` outlive the child's use of
        // them, since CLONE_VFORK suspends this thread until the child has executed or ended.
        // `run_child` takes the pointer as what it is and makes system calls only.
        let pid = unsafe {
            let end = self.stack.as_mut_ptr().add(STACK_BYTES);
            let top = end.sub(end as usize % 16);
            libc::clone(run_child, top.cast(), flags, context.cast())
        };
        if pid < 0 {
            let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN);
            return Err(Errno::from_raw_os_error(code));
        }
        Pid::from_raw(pid).ok_or(Errno::AGAIN)
    }
}

/// Returns a null-terminated array for execve(2).
fn pointers<S: AsRef<CStr>>(strings: &[S]) -> Vec<*const c_char> {
    let pointers = strings.iter().map(|string| string.as_ref().as_ptr());
    pointers.chain([ptr::null()]).collect()
}

extern "C" fn run_child(context: *mut c_void) -> c_int {
    // SAFETY: `clone_child` passes a pointer to a live `ChildContext` that nothing else accesses
    // while this runs.
    let child = unsafe { &mut *context.cast::<ChildContext<'_>>() };
    child.failed = Some(exec_program(child));
    // SAFETY: _exit ends this process alone and runs no destructors, which belong to the agent.
    unsafe { libc::_exit(127) }
}

/// Executes the program; returns only on failure.
fn exec_program(child: &ChildContext<'_>) -> SpawnError {
    let failed = |step, error| SpawnError { step, error, program: 0 };
    if child.plan.init
        && let Err(error) = mount_proc()
    {
        return failed(SpawnStep::Prepare, error);
    }
    if let Err(error) = prepare(child) {
        return failed(SpawnStep::Prepare, error);
    }
    // As root first, because the user may have no access to the working directory, as with docker;
    // then as the user, for directories that root cannot access (on network file systems).
    let entered = enter(child.plan.cwd);
    // Still as root, which may raise limits.
    if let Err(error) = set_limits(child.plan) {
        return failed(SpawnStep::Limits, error);
    }
    if child.plan.security.is_restricted()
        && let Err(error) = confine()
    {
        return failed(SpawnStep::Confine, error);
    }
    if let Err(error) = change_user(child.plan) {
        return failed(SpawnStep::User, error);
    }
    if let Err(error) = entered
        .or_else(|error| if error == Errno::ACCESS { enter(child.plan.cwd) } else { Err(error) })
    {
        return failed(SpawnStep::Cwd, error);
    }
    execute(child)
}

/// Returns errno of the call that just failed.
fn errno() -> Errno {
    // SAFETY: the location of errno is valid; that of the agent is borrowed while the agent waits.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

fn check(answer: c_int) -> Result<(), Errno> {
    if answer < 0 { Err(errno()) } else { Ok(()) }
}

fn prepare(child: &ChildContext<'_>) -> Result<(), Errno> {
    // SAFETY: all are system calls on plain numbers, or on values of this stack frame that outlive
    // them. They change this process only: neither descriptors nor signal actions nor the umask are
    // shared (no CLONE_FILES, _SIGHAND, _FS).
    unsafe {
        check(libc::setsid())?;
        for (place, fd) in (0..).zip(child.stdio) {
            check(libc::dup2(fd, place))?;
        }
        if child.plan.terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY as _, 0))?;
        }
        // All descriptors of the agent are close-on-exec; this is a second safeguard.
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32);
        libc::umask(0o022);
        // Rust's runtime ignores SIGPIPE, and ignored signals stay ignored across execve.
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        check(libc::sigaction(libc::SIGPIPE, &action, ptr::null_mut()))?;
        let none: libc::sigset_t = std::mem::zeroed();
        check(libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()))
    }
}

/// Mounts the proc file system of the new PID namespace over the old one, so that all later readers
/// see the new namespace.
fn mount_proc() -> Result<(), Errno> {
    let (kind, at) = (c"proc".as_ptr(), c"/proc".as_ptr());
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: terminated strings, which are static; proc takes no data.
    check(unsafe { libc::mount(kind, at, kind, flags, ptr::null()) })
}

fn enter(cwd: &CStr) -> Result<(), Errno> {
    // SAFETY: chdir gets a terminated string and changes this process only (no CLONE_FS).
    check(unsafe { libc::chdir(cwd.as_ptr()) })
}

fn set_limits(plan: &SpawnPlan<'_>) -> Result<(), Errno> {
    let ours: libc::pid_t = 0;
    let nothing = ptr::null_mut::<libc::rlimit64>();
    for (resource, limit) in plan.limits {
        // SAFETY: prlimit64 reads one whole rlimit64, which lives in the agent; 0 is this process;
        // no old limit is requested.
        check(unsafe {
            libc::syscall(libc::SYS_prlimit64, ours, *resource, ptr::from_ref(limit), nothing)
        } as c_int)?;
    }
    Ok(())
}

/// Changes user and groups by raw system calls: the functions of the C library would change the
/// agent's threads as well.
fn change_user(plan: &SpawnPlan<'_>) -> Result<(), Errno> {
    let (uid, gid) = (plan.uid, plan.gid);
    // SAFETY: setgroups reads `len` numbers from the slice; the others take plain numbers.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, plan.groups.len(), plan.groups.as_ptr()) as c_int)?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid) as c_int)?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid) as c_int)
    }
}

/// Tries each path as execvp(3) does, and continues if a file does not exist or may not be
/// executed.
fn execute(child: &ChildContext<'_>) -> SpawnError {
    let mut failed = SpawnError { step: SpawnStep::Execute, error: Errno::NOENT, program: 0 };
    for (place, program) in child.programs.iter().enumerate() {
        if program.is_null() {
            break;
        }
        // execve copies the whole environment before it opens the file, which is costly with a long
        // search path.
        // SAFETY: access gets a terminated string.
        let there = check(unsafe { libc::access(*program, libc::F_OK) });
        if let Err(Errno::NOENT | Errno::NOTDIR) = there {
            continue;
        }
        // SAFETY: a terminated string and two arrays of such, each ended by a null pointer, all
        // alive in the agent.
        unsafe { libc::execve(*program, child.argv.as_ptr(), child.env.as_ptr()) };
        let error = errno();
        match error {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => {
                failed = SpawnError { step: SpawnStep::Execute, error, program: place }
            }
            _ => {
                return SpawnError { step: SpawnStep::Execute, error, program: place };
            }
        }
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    fn strings(of: &[&str]) -> Vec<CString> {
        of.iter().map(|text| CString::new(*text).unwrap()).collect()
    }

    fn try_to_start(
        programs: &[&str],
        argv: &[&str],
        cwd: &CStr,
    ) -> Result<(String, i32), SpawnError> {
        let (mut output, input) = std::io::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        let (programs, argv, env) = (strings(programs), strings(argv), [Cow::Borrowed(c"A=b")]);
        let user = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let stdio = [null.as_fd(), input.as_fd(), input.as_fd()];
        let plan = SpawnPlan {
            programs: &programs,
            argv: &argv,
            env: &env,
            cwd,
            stdio,
            terminal: false,
            limits: &[],
            uid: user.0,
            gid: user.1,
            groups: &[],
            security: Security::Default,
            init: false,
        };
        let pid = Spawner::new().start(&plan)?;
        drop(input);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        Ok((text, status.exit_status().unwrap_or(-1)))
    }

    /// Only root may change groups.
    fn is_root() -> bool {
        rustix::process::getuid().is_root()
    }

    #[test]
    fn a_started_program_has_its_arguments_environment_and_directory() {
        if is_root() {
            let script = "echo $A $(pwd); exit 3";
            let started =
                try_to_start(&["/nowhere/sh", "/bin/sh"], &["sh", "-c", script], c"/usr").unwrap();
            assert_eq!(started, ("b /usr\n".to_owned(), 3));
        }
    }

    #[test]
    fn failures_in_the_child_are_reported_with_step_and_error() {
        if is_root() {
            let missing = try_to_start(&["/nowhere"], &["x"], c"/").unwrap_err();
            assert_eq!((missing.step, missing.error), (SpawnStep::Execute, Errno::NOENT));
            let directory = try_to_start(&["/nowhere", "/usr"], &["x"], c"/").unwrap_err();
            assert_eq!(
                (directory.step, directory.error, directory.program),
                (SpawnStep::Execute, Errno::ACCESS, 1)
            );
            let cwd = try_to_start(&["/bin/sh"], &["x"], c"/nowhere").unwrap_err();
            assert_eq!((cwd.step, cwd.error), (SpawnStep::Cwd, Errno::NOENT));
        }
    }
}
