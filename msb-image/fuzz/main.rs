//! Fuzz targets of msb-image: one function per parser of untrusted bytes. Any input is valid; a
//! panic is a bug.

#![cfg_attr(fuzzing, no_main)]

use msb_image::entry_points::{
    fuzz_archive, fuzz_disk, fuzz_document, fuzz_index, fuzz_layer, fuzz_tar,
};

msb_test_fuzz::fuzz_targets! {
    "tar" => fuzz_tar,
    "layer" => fuzz_layer,
    "index" => fuzz_index,
    "disk" => fuzz_disk,
    "document" => fuzz_document,
    "archive" => fuzz_archive,
}
