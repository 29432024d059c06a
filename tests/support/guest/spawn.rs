//! The yardstick of `msb exec`: what starting a program costs in the guest itself.

use std::ffi::CString;
use std::io;
use std::time::Instant;

/// Forks, executes and waits for `program`, `count` times; prints the mean in nanoseconds.
pub(crate) fn measure(count: &str, program: &str) -> io::Result<()> {
    let count: u32 = count.parse().map_err(io::Error::other)?;
    let program = CString::new(program)?;
    let started = Instant::now();
    for _ in 0..count {
        fork_exec_wait(&program)?;
    }
    println!("{}", started.elapsed().as_nanos() / u128::from(count.max(1)));
    Ok(())
}

fn fork_exec_wait(program: &CString) -> io::Result<()> {
    let argv = [program.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null()];
    // SAFETY: this process has one thread, so its copy may do anything; the copy only calls execve and _exit.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: `argv` and `envp` end with a null pointer and live until execve has replaced this process.
            unsafe {
                libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
                libc::_exit(127)
            }
        }
        _ => wait(child),
    }
}

fn wait(child: libc::pid_t) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: `status` is a place for an int, as waitpid wants it.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(io::Error::last_os_error());
    }
    if status != 0 {
        return Err(io::Error::other(format!("the program ended with status {status:#x}")));
    }
    Ok(())
}
