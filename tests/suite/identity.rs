//! By what sandboxes of one image differ from each other.

use std::collections::BTreeSet;

use crate::support::Home;

fn machine_id(home: &Home, name: &str) -> String {
    let id = home.run(["exec", name, "--", "cat", "/etc/machine-id"]).done();
    let id = id.strip_suffix('\n').unwrap();
    assert!(id.len() == 32 && id.bytes().all(|byte| b"0123456789abcdef".contains(&byte)), "{id}");
    id.to_owned()
}

#[test]
fn every_sandbox_has_a_machine_id_of_its_own_and_keeps_it() {
    let home = Home::with_busybox();
    for name in ["a", "b"] {
        home.run(["create", "--name", name, "busybox:test"]).done();
    }
    let (a, b) = (machine_id(&home, "a"), machine_id(&home, "b"));
    assert_ne!(a, b);
    let kept = ["exec", "a", "--", "sh", "-c", "cp /etc/machine-id /root/before; sync"];
    home.run(kept).done();
    home.run(["restart", "a"]).done();
    assert_eq!(machine_id(&home, "a"), a);
    // It is not on the disk, where a copy of the disk would take it along.
    let on_disk = "umount /etc/machine-id; wc -c </etc/machine-id; cat /root/before";
    home.run(["exec", "a", "--", "sh", "-c", on_disk]).is(0, &format!("0\n{a}\n"), "");
    home.run(["rm", "-f", "a", "b"]).done();
}

#[test]
fn a_machine_id_that_somebody_has_written_stays() {
    let home = Home::with_busybox();
    home.run(["create", "--name", "a", "busybox:test"]).done();
    let own = "0123456789abcdef0123456789abcdef";
    let script = format!("umount /etc/machine-id && echo {own} >/etc/machine-id");
    home.run(["exec", "a", "--", "sh", "-c", &script]).done();
    home.run(["restart", "a"]).done();
    assert_eq!(machine_id(&home, "a"), own);
    let script = "echo uninitialized >/etc/machine-id";
    home.run(["exec", "a", "--", "sh", "-c", script]).done();
    home.run(["restart", "a"]).done();
    assert_ne!(machine_id(&home, "a"), own);
    home.run(["rm", "-f", "a"]).done();
}

#[test]
fn names_boots_and_random_numbers_are_never_the_same_twice() {
    let home = Home::with_busybox();
    let script =
        "hostname; cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | sha256sum";
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let text = home.run(["run", "busybox:test", "--", "sh", "-c", script]).done();
        assert_eq!(text.lines().count(), 3, "{text}");
        seen.extend(text.lines().map(str::to_owned));
    }
    assert_eq!(seen.len(), 9, "{seen:?}");
}
