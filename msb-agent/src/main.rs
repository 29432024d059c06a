//! `msb-agent`: PID 1 of the guest.

#![cfg_attr(not(test), no_main)]

/// Entry point that the C library calls directly. Rust's runtime would abort if descriptors 0 to 2
/// are closed and `/dev/null` does not exist, which is possible for PID 1.
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    msb_agent::run()
}
