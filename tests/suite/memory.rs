//! Memory of a sandbox, as the host sees it.

use crate::support::{Home, wait_until};

const MIB: u64 = 1024;

#[test]
fn memory_that_the_guest_frees_goes_back_to_the_host() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "-m", "1G", "busybox:test"]).done();
    let machine = home.machine();
    let resident = || machine.resident_kib().unwrap();
    let before = resident();
    let fill = "dd if=/dev/zero of=/dev/shm/x bs=1M count=256 2>/dev/null";
    home.run(["exec", "x", "--", "sh", "-c", fill]).done();
    let full = resident();
    assert!(full > before + 200 * MIB, "{before} KiB, then {full} KiB");
    home.run(["exec", "x", "--", "rm", "/dev/shm/x"]).done();
    wait_until("the host has most of it again", || resident() < full - 200 * MIB);
    println!("resident, in KiB: {before} before, {full} full, {} freed", resident());
    home.run(["stop", "x"]).done();
}
