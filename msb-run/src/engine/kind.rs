//! The kind of a VM: a digest of everything that two VMs must have in common so that one can start
//! from the memory of the other.
//!
//! Files are identified by path, inode, size and change time: packages replace them, and a change
//! time cannot be set. The TSC rate is not included, since each start measures it again with an
//! error. It is stored with the memory and compared instead ([`TscRate::agrees`]).

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libmsb::machine::{Accelerator, Board};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Version of the VM, of the agent before its hello, and of the file format, for changes that the
/// other inputs do not show.
const VERSION: u32 = 1;

/// Firmware and option ROMs that QEMU loads for msb's VMs, and the directories where distributions
/// install them.
const ROMS: [&str; 7] = [
    "bios-microvm.bin",
    "qboot.rom",
    "bios-256k.bin",
    "linuxboot_dma.bin",
    "pvh.bin",
    "kvmvapic.bin",
    "multiboot_dma.bin",
];
const ROM_DIRECTORIES: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-kvm"];

/// Bytes of /proc/cpuinfo that contain the first processor.
const CPU_BYTES: u64 = 8192;
/// Lines of /proc/cpuinfo that vary for the same processor.
const CPU_VARIABLE: [&str; 2] = ["cpu MHz", "bogomips"];

/// A kind of VM, as a digest in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmKind(String);

impl VmKind {
    /// Returns the digits.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn named(name: &str) -> VmKind {
        VmKind(name.to_owned())
    }
}

/// The properties that make up a kind.
#[derive(Debug)]
pub(crate) struct KindTraits<'a> {
    pub(crate) program: &'a Path,
    pub(crate) vmm: Option<&'a Path>,
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    /// The kernel command line without the TSC rate.
    pub(crate) cmdline: &'a str,
    pub(crate) board: Board,
    pub(crate) accelerator: Accelerator,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) disks: usize,
    pub(crate) net: bool,
    pub(crate) shares: bool,
}

impl KindTraits<'_> {
    /// Returns the kind; `None` when a required file is missing.
    pub(crate) fn kind(&self) -> Option<VmKind> {
        let mut hash = Sha256::new();
        hash.update(format!("{VERSION}\0{}\0", env!("CARGO_PKG_VERSION")));
        for path in [self.program, self.kernel].into_iter().chain(self.vmm) {
            hash.update(file_identity(path)?);
        }
        // Its name is a digest of its inputs.
        let initrd = std::fs::metadata(self.initrd).ok()?;
        hash.update(self.initrd.file_name()?.as_bytes());
        hash.update(initrd.len().to_le_bytes());
        for path in roms(self.program) {
            hash.update(file_identity(&path).unwrap_or_default());
        }
        hash.update(format!(
            "{}\0{:?}\0{:?}\0{}\0{}\0{}\0{}\0{}\0",
            self.cmdline,
            self.board,
            self.accelerator,
            self.cpus,
            self.memory_mib,
            self.disks,
            self.net,
            self.shares
        ));
        hash.update(processor());
        let digits = hash.finalize();
        Some(VmKind(digits.iter().take(16).map(|byte| format!("{byte:02x}")).collect()))
    }
}

fn file_identity(path: &Path) -> Option<Vec<u8>> {
    let meta = std::fs::metadata(path).ok()?;
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    bytes.push(0);
    for number in
        [meta.dev() as i64, meta.ino() as i64, meta.size() as i64, meta.ctime(), meta.ctime_nsec()]
    {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    Some(bytes)
}

/// Returns the possible paths of the ROMs of this QEMU.
fn roms(program: &Path) -> Vec<PathBuf> {
    let own = program.ancestors().nth(2).map(|prefix| prefix.join("share/qemu"));
    let directories = ROM_DIRECTORIES.iter().map(PathBuf::from).chain(own);
    directories.flat_map(|directory| ROMS.map(|name| directory.join(name))).collect()
}

/// Returns the kernel's description of the host's first processor.
fn processor() -> String {
    let mut text = Vec::new();
    if let Ok(file) = File::open("/proc/cpuinfo") {
        let _ = file.take(CPU_BYTES).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines = text.lines().take_while(|line| !line.is_empty());
    lines
        .filter(|line| !CPU_VARIABLE.iter().any(|name| line.starts_with(name)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The rate of the host's time stamp counter (TSC), in kHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TscRate(pub(crate) u64);

impl TscRate {
    /// Duration of a measurement: long enough for an error below a thousandth, short enough not to
    /// be noticed.
    const SPAN: Duration = Duration::from_millis(2);

    /// Measures the rate against the monotonic clock.
    pub(crate) fn measure() -> TscRate {
        let (start, from) = reading();
        while start.elapsed() < TscRate::SPAN {
            std::hint::spin_loop();
        }
        let (end, to) = reading();
        let elapsed = end.duration_since(start).as_nanos().max(1);
        TscRate((u128::from(to.wrapping_sub(from)) * 1_000_000 / elapsed) as u64)
    }

    /// Returns whether a guest that was given this rate keeps time on a host where `other` was
    /// measured. Both are within a thousandth of the true rate, so two measurements of the same
    /// counter differ by two thousandths at most. A guest that boots is given a rate with half that
    /// error.
    pub(crate) fn agrees(self, other: TscRate) -> bool {
        self.0.abs_diff(other.0) * 500 <= self.0.max(other.0)
    }
}

/// Number of attempts to read clock and counter together: this process may be preempted between the
/// two.
const READINGS: usize = 8;

/// Returns the time and the counter at that time, from the attempt that took the least time.
fn reading() -> (Instant, u64) {
    let readings = (0..READINGS).map(|_| {
        let before = Instant::now();
        let count = counter();
        (before.elapsed(), before, count)
    });
    let best = readings.min_by_key(|(took, ..)| *took);
    best.map_or_else(
        || (Instant::now(), counter()),
        |(took, before, count)| (before + took / 2, count),
    )
}

fn counter() -> u64 {
    // SAFETY: every x86-64 processor has this instruction, and it reads nothing but a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traits(initrd: &Path) -> KindTraits<'_> {
        KindTraits {
            program: Path::new("/proc/self/exe"),
            vmm: None,
            kernel: Path::new("/proc/self/exe"),
            initrd,
            cmdline: "quiet",
            board: Board::Microvm,
            accelerator: Accelerator::Tcg,
            cpus: 1,
            memory_mib: 512,
            disks: 2,
            net: false,
            shares: false,
        }
    }

    #[test]
    fn vms_that_differ_in_any_property_have_different_kinds() {
        let directory = tempfile::tempdir().unwrap();
        let initrd = directory.path().join("initrd");
        assert_eq!(traits(&initrd).kind(), None);
        std::fs::write(&initrd, "1").unwrap();
        let one = traits(&initrd).kind().unwrap();
        assert_eq!(traits(&initrd).kind(), Some(one.clone()));
        let others: [fn(&mut KindTraits<'_>); 7] = [
            |t| t.cmdline = "quiet x",
            |t| t.board = Board::Q35,
            |t| t.accelerator = Accelerator::Kvm,
            |t| t.cpus = 2,
            |t| t.memory_mib = 513,
            |t| t.disks = 3,
            |t| t.net = true,
        ];
        for change in others {
            let mut changed = traits(&initrd);
            change(&mut changed);
            assert_ne!(changed.kind().unwrap(), one, "{changed:?}");
        }
        std::fs::write(&initrd, "23").unwrap();
        assert_ne!(traits(&initrd).kind().unwrap(), one);
    }

    #[test]
    fn the_same_counter_agrees_with_itself_and_another_does_not() {
        let (one, two) = (TscRate::measure(), TscRate::measure());
        assert!(one.agrees(two), "{one:?} {two:?}");
        let rate = TscRate(3_000_000);
        assert!(rate.agrees(TscRate(3_005_900)) && rate.agrees(TscRate(2_994_200)));
        assert!(!rate.agrees(TscRate(3_010_000)) && !rate.agrees(TscRate(2_900_000)));
    }
}
