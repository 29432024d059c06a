//! The descriptor of a disk: a VMDK with flat extents for metadata and layers. QEMU and libkrun
//! read it.
//!
//! Paths are relative to the directory of the descriptor, so the state directory can be moved.

use std::fmt::Write;

use libmsb::digest::Digest;
use libmsb::state::layout;

use crate::layer::index::LayerSummary;

const SECTOR_BYTES: u64 = 512;

/// Builds the descriptor. A layer without contents has no extent.
pub(crate) fn descriptor(
    manifest: &Digest,
    metadata_bytes: u64,
    layers: &[LayerSummary],
) -> String {
    let mut text = String::from(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\n# Extents\n",
    );
    let mut extent = |bytes: u64, path: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "RW {} FLAT \"{path}\" 0", bytes / SECTOR_BYTES);
    };
    extent(metadata_bytes, format!("{}{}", manifest.hex(), layout::DISK_EROFS));
    for layer in layers.iter().filter(|layer| layer.data_bytes > 0) {
        let path = format!("../{}/{}{}", layout::LAYERS, layer.diff_id.hex(), layout::LAYER_DATA);
        extent(layer.data_bytes, path);
    }
    let bytes = metadata_bytes + layers.iter().map(|layer| layer.data_bytes).sum::<u64>();
    text + &geometry(bytes / SECTOR_BYTES)
}

/// Returns the disk geometry that a VMDK requires; current software ignores it.
fn geometry(sectors: u64) -> String {
    const HEADS: u64 = 16;
    const SECTORS: u64 = 63;
    let cylinders = sectors.div_ceil(HEADS * SECTORS);
    format!(
        "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{HEADS}\"\nddb.geometry.sectors = \"{SECTORS}\"\nddb.adapterType = \"ide\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_without_contents_have_no_extent() {
        let id = |byte| Digest::of_bytes([byte; 32]);
        let layer =
            |byte, data_bytes| LayerSummary { diff_id: id(byte), tar_bytes: 1024, data_bytes };
        let text = descriptor(&id(0), 8192, &[layer(1, 4096), layer(2, 0), layer(3, 12288)]);
        let extents: Vec<&str> = text.lines().filter(|line| line.starts_with("RW")).collect();
        let hex = |byte| id(byte).hex();
        assert_eq!(
            extents,
            [
                format!("RW 16 FLAT \"{}.v1.erofs\" 0", hex(0)),
                format!("RW 8 FLAT \"../layers/{}.data\" 0", hex(1)),
                format!("RW 24 FLAT \"../layers/{}.data\" 0", hex(3)),
            ]
        );
    }
}
