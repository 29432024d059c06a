//! Disk usage of volumes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use libmsb::state::volumes::{Volume, VolumeKind};

/// Returns the space that a volume takes on the host.
pub(super) fn used_bytes(volume: &Volume, kind: VolumeKind) -> u64 {
    match kind {
        VolumeKind::Disk => allocated_bytes(&volume.disk()),
        VolumeKind::Dir => tree_bytes(&volume.data()),
    }
}

fn allocated_bytes(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |file| file.blocks() * 512)
}

/// Returns the space below a directory. Entries removed meanwhile count as zero.
fn tree_bytes(directory: &Path) -> u64 {
    let mut open = vec![directory.to_owned()];
    let mut sum = 0;
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
            sum += allocated_bytes(&entry.path());
        }
    }
    sum
}
