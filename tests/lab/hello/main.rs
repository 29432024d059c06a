//! The least that libkrun can do: a machine with one processor and 512 MiB, whose first process is
//! one static program in a root that exists only in memory. No disks, no network, no agent.
//!
//! Usage: `msb-test-hello INIT CONSOLE [FILE…]`. INIT is the program, CONSOLE a file that the
//! guest's console is written to; each FILE is the name of an empty file in the root. libkrun loads
//! `libkrunfw.so.5` by that name: LD_LIBRARY_PATH tells where it is. This process ends with the
//! guest.

use std::error::Error;
use std::ffi::{CString, c_char};
use std::io;
use std::process::ExitCode;
use std::ptr;

const CPUS: u8 = 1;
const MEMORY_MIB: u32 = 512;
const TAG: &std::ffi::CStr = c"/dev/root";
const MODE_DIRECTORY: u32 = 0o040755;
const MODE_PROGRAM: u32 = 0o100755;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [init, console, files @ ..] = args.as_slice() else {
        eprintln!("usage: msb-test-hello INIT CONSOLE [FILE...]");
        return ExitCode::from(2);
    };
    match run(init, console, files) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("msb-test-hello: error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(init: &str, console: &str, files: &[String]) -> Result<(), Box<dyn Error>> {
    let console = CString::new(console)?;
    let program = std::fs::read(init)?;
    // SAFETY: it takes nothing and makes a context.
    let id = called(unsafe { libkrun_sys::krun_create_ctx() })?;
    called(krun::krun_disable_implicit_init(id))?;
    // SAFETY: numbers, and a string that outlives its call.
    unsafe {
        called(libkrun_sys::krun_disable_implicit_vsock(id))?;
        called(libkrun_sys::krun_set_vm_config(id, CPUS, MEMORY_MIB))?;
        called(libkrun_sys::krun_set_console_output(id, console.as_ptr()))?;
    }
    add_root(id)?;
    add_file(id, "init.krun", program.leak())?;
    for file in files {
        add_file(id, file, &[])?;
    }
    // SAFETY: it takes the number of a context, whose bytes are never freed.
    called(unsafe { libkrun_sys::krun_start_enter(id) })?;
    Ok(())
}

/// A root without a directory behind it, and a place in it for devices.
fn add_root(id: u32) -> Result<(), Box<dyn Error>> {
    // SAFETY: strings that outlive the calls; no path means that there is no directory.
    unsafe {
        called(krun::krun_add_virtiofs4(id, TAG.as_ptr(), ptr::null(), 0, false, 0))?;
        called(krun::krun_fs_add_overlay_dir(id, TAG.as_ptr(), c"dev".as_ptr(), MODE_DIRECTORY))?;
    }
    Ok(())
}

fn add_file(id: u32, name: &str, bytes: &'static [u8]) -> Result<(), Box<dyn Error>> {
    let name = CString::new(name)?;
    let path: *const c_char = name.as_ptr();
    // SAFETY: strings that outlive the call, and bytes that outlive this process.
    called(unsafe {
        krun::krun_fs_add_overlay_file(
            id,
            TAG.as_ptr(),
            path,
            bytes.as_ptr(),
            bytes.len(),
            MODE_PROGRAM,
            false,
        )
    })?;
    Ok(())
}

/// The answer of a function of libkrun: below zero it is an error of the system.
fn called(answer: i32) -> io::Result<u32> {
    u32::try_from(answer).map_err(|_| io::Error::from_raw_os_error(answer.wrapping_neg()))
}
