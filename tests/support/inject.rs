//! System calls made by another process: a debugger's means (ptrace(2)) to see what a confined
//! process can still do.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use libc::{c_long, c_void, pid_t, user_regs_struct};

/// Memory below the stack pointer that a signal handler may use, and the bytes below it that hold
/// our arguments.
const SCRATCH_BYTES: u64 = 8192;

/// One thread of a process, stopped. Dropped, it goes on where it was.
pub(crate) struct StoppedThread {
    tid: pid_t,
    saved: user_regs_struct,
    /// Address of a `syscall` instruction in the process.
    instruction: u64,
    /// Signals that arrived meanwhile; they are sent again at the end.
    signals: Vec<i32>,
}

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg<'a> {
    /// A number.
    Int(i64),
    /// The address of these bytes, with a zero after them.
    Bytes(&'a [u8]),
}

impl StoppedThread {
    /// Stops a thread.
    pub(crate) fn stop(pid: i32, tid: i32) -> io::Result<StoppedThread> {
        request(libc::PTRACE_SEIZE, tid, 0, 0)?;
        request(libc::PTRACE_INTERRUPT, tid, 0, 0)?;
        let mut thread = StoppedThread {
            tid,
            saved: user_regs_struct::default_zero(),
            instruction: syscall_instruction(pid)?,
            signals: Vec::new(),
        };
        thread.wait()?;
        thread.saved = thread.registers()?;
        Ok(thread)
    }

    /// Makes a call in the thread, and returns what the kernel answered: a value, or a negative
    /// error number.
    pub(crate) fn call(&mut self, number: c_long, args: &[Arg<'_>]) -> io::Result<i64> {
        let mut place = (self.saved.rsp - SCRATCH_BYTES) & !0xf;
        let mut words = [0u64; 6];
        for (word, arg) in words.iter_mut().zip(args) {
            *word = match arg {
                Arg::Int(value) => *value as u64,
                Arg::Bytes(bytes) => {
                    self.write(place, bytes)?;
                    place += (bytes.len() as u64 + 8) & !0x7;
                    place - ((bytes.len() as u64 + 8) & !0x7)
                }
            };
        }
        let mut registers = self.saved;
        registers.rip = self.instruction;
        registers.rax = number as u64;
        // No call is interrupted, so none must be restarted.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] =
            words;
        self.set_registers(&registers)?;
        loop {
            request(libc::PTRACE_SINGLESTEP, self.tid, 0, 0)?;
            match self.wait()? {
                libc::SIGTRAP => break,
                signal => self.signals.push(signal),
            }
        }
        Ok(self.registers()?.rax as i64)
    }

    /// Waits for the next stop, and returns its signal. An error when the thread has ended.
    fn wait(&self) -> io::Result<i32> {
        let mut status = 0;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            // SAFETY: the status is written to memory that outlives the call; the thread is one
            // that we trace.
            let waited =
                unsafe { libc::waitpid(self.tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
            match waited {
                // The first thread of a process that was ended is not reported before its others
                // have ended.
                0 if Instant::now() > deadline => {
                    return Err(io::Error::other(
                        "the thread does not stop; it may have been ended",
                    ));
                }
                0 => std::thread::sleep(Duration::from_micros(50)),
                -1 => return Err(io::Error::last_os_error()),
                _ => break,
            }
        }
        if !libc::WIFSTOPPED(status) {
            return Err(io::Error::other(format!("the thread has ended: status {status:#x}")));
        }
        Ok(libc::WSTOPSIG(status))
    }

    fn registers(&self) -> io::Result<user_regs_struct> {
        let mut registers = user_regs_struct::default_zero();
        request(libc::PTRACE_GETREGS, self.tid, 0, (&raw mut registers).addr())?;
        Ok(registers)
    }

    fn set_registers(&self, registers: &user_regs_struct) -> io::Result<()> {
        request(libc::PTRACE_SETREGS, self.tid, 0, std::ptr::from_ref(registers).addr())
    }

    fn write(&self, place: u64, bytes: &[u8]) -> io::Result<()> {
        let mut bytes = bytes.to_vec();
        bytes.resize((bytes.len() + 8) & !0x7, 0);
        for (number, chunk) in bytes.chunks_exact(8).enumerate() {
            let word = chunk.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
            let place = place as usize + number * 8;
            request(libc::PTRACE_POKEDATA, self.tid, place, word as usize)?;
        }
        Ok(())
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        // One that has ended needs none of this.
        let _ = self.set_registers(&self.saved);
        let _ = request(libc::PTRACE_DETACH, self.tid, 0, 0);
        for signal in &self.signals {
            // SAFETY: the call takes numbers only.
            unsafe { libc::syscall(libc::SYS_tkill, self.tid, *signal) };
        }
    }
}

/// Registers with the value 0.
trait DefaultZero {
    fn default_zero() -> Self;
}

impl DefaultZero for user_regs_struct {
    fn default_zero() -> Self {
        // SAFETY: the struct has only integers, for which all zeros is a value.
        unsafe { std::mem::zeroed() }
    }
}

fn request(request: libc::c_uint, tid: pid_t, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: the requests that are made here write to another process, or to registers that the
    // caller owns and passes the address of, in `data`.
    let answer = unsafe { libc::ptrace(request, tid, address as *mut c_void, data as *mut c_void) };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Finds a `syscall` instruction (0f 05) in the process's own code.
fn syscall_instruction(pid: i32) -> io::Result<u64> {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    // The vDSO has one in every process; code of a library is as good.
    for line in maps.lines().filter(|line| line.contains(" r-xp ")) {
        let range = line.split(' ').next().unwrap_or_default();
        let Some((start, end)) = range.split_once('-') else { continue };
        let address = |text| u64::from_str_radix(text, 16).map_err(io::Error::other);
        let (start, end) = (address(start)?, address(end)?);
        let mut code = vec![0; (end - start).min(4 << 20) as usize];
        if memory.read_exact_at(&mut code, start).is_err() {
            continue;
        }
        if let Some(at) = code.windows(2).position(|pair| pair == [0x0f, 0x05]) {
            return Ok(start + at as u64);
        }
    }
    Err(io::Error::other("the process has no syscall instruction"))
}
