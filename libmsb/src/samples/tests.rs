use super::*;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web/samples");
    (directory, path)
}

#[test]
fn what_is_written_is_read_and_what_is_not_known_is_missing() {
    let (_directory, path) = directory();
    let mut writer = SampleWriter::create(&path, |values| values.set(Field::Cpus, 2)).unwrap();
    writer.update(|values| values.set(Field::ResidentBytes, 0));
    let snapshot = read(&path).unwrap().unwrap();
    assert_eq!(snapshot.sandbox.get(Field::Cpus), Some(2));
    assert_eq!(snapshot.sandbox.get(Field::ResidentBytes), Some(0));
    assert_eq!(snapshot.sandbox.get(Field::VcpuNs), None);
    assert!(snapshot.net.is_none());
    writer.update(|values| values.set(Field::ResidentBytes, None));
    let snapshot = read(&path).unwrap().unwrap();
    assert_eq!(snapshot.sandbox.get(Field::ResidentBytes), None);
}

#[test]
fn the_page_of_the_network_has_a_writer_of_its_own() {
    let (_directory, path) = directory();
    let mut writer = SampleWriter::create(&path, |_| {}).unwrap();
    let mut net = NetWriter::from_fd(writer.net_descriptor().unwrap()).unwrap();
    net.counters().add(NetField::TxBytes, 5);
    net.counters().add(NetField::TxBytes, 6);
    net.publish();
    writer.update(|values| values.set(Field::Cpus, 1));
    let snapshot = read(&path).unwrap().unwrap();
    let counters = snapshot.net.unwrap();
    assert_eq!(counters.get(NetField::TxBytes), Some(11));
    assert_eq!(counters.get(NetField::RxBytes), Some(0));
    // msb-net does not keep the file live: its descriptor holds no lock.
    let left = writer.net_descriptor().unwrap();
    let copy = path.with_file_name("kept");
    std::fs::hard_link(&path, &copy).unwrap();
    drop(writer);
    assert!(read(&copy).unwrap().is_none());
    drop(left);
}

#[test]
fn a_counter_never_goes_back_and_is_not_forgotten() {
    let mut values = Values::new();
    values.raise(Field::VcpuNs, 7);
    values.raise(Field::VcpuNs, 5);
    values.raise(Field::VcpuNs, None);
    assert_eq!(values.get(Field::VcpuNs), Some(7));
}

#[test]
fn a_file_that_nobody_keeps_is_no_sandbox_that_lives() {
    let (_directory, path) = directory();
    assert!(read(&path).unwrap().is_none());
    let writer = SampleWriter::create(&path, |_| {}).unwrap();
    let copy = path.with_file_name("copy");
    std::fs::copy(&path, &copy).unwrap();
    assert!(read(&path).unwrap().is_some());
    assert!(read(&copy).unwrap().is_none());
    drop(writer);
    assert!(!path.exists());
}

#[test]
fn a_file_of_an_earlier_boot_is_no_sandbox_that_lives() {
    let (_directory, path) = directory();
    let mut writer = SampleWriter::create(&path, |_| {}).unwrap();
    writer.update(|values| values.set(Field::BootIdLow, 1));
    assert!(read(&path).unwrap().is_none());
}

#[test]
fn a_file_that_is_cut_off_harms_neither_its_writer_nor_a_reader() {
    let (_directory, path) = directory();
    let mut writer = SampleWriter::create(&path, |values| values.set(Field::Cpus, 2)).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(0).unwrap();
    assert!(read(&path).is_err());
    writer.update(|values| values.set(Field::ResidentBytes, 5));
    file.set_len(2 * PAGE_BYTES as u64).unwrap();
    let snapshot = read(&path).unwrap().unwrap();
    assert_eq!(snapshot.sandbox.get(Field::Cpus), Some(2));
}

#[test]
fn a_left_over_file_gives_way_to_a_new_one() {
    let (_directory, path) = directory();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"left by a killed supervisor").unwrap();
    std::fs::write(path.with_file_name(".new-samples"), b"and this").unwrap();
    let _writer = SampleWriter::create(&path, |values| values.set(Field::Cpus, 3)).unwrap();
    let snapshot = read(&path).unwrap().unwrap();
    assert_eq!(snapshot.sandbox.get(Field::Cpus), Some(3));
}

#[test]
fn a_reader_never_sees_half_of_an_update() {
    let (_directory, path) = directory();
    let mut writer = SampleWriter::create(&path, |values| {
        Field::ALL[4..].iter().for_each(|field| values.set(*field, 0));
    })
    .unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                // A reader that never finds a consistent page gets an error, not half an update.
                let Ok(snapshot) = read(&path) else { continue };
                let values = snapshot.unwrap().sandbox;
                let first = values.get(Field::ALL[4]);
                let same = |field: &Field| values.get(*field) == first;
                assert!(Field::ALL[4..].iter().all(same), "{values:?}");
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut number = 0;
        while !done.load(Ordering::Relaxed) {
            number += 1;
            writer.update(|values| {
                Field::ALL[4..].iter().for_each(|field| values.set(*field, number));
            });
        }
    });
}

/// Returns a file with these contents, locked as by a supervisor.
fn hostile(contents: &[u8]) -> (tempfile::TempDir, PathBuf, crate::state::lock::Lock) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("samples");
    let lock = crate::state::lock::Lock::exclusive(&path).unwrap();
    std::fs::write(&path, contents).unwrap();
    (directory, path, lock)
}

#[test]
fn a_hostile_file_is_an_error_that_names_it() {
    let whole = {
        let (_directory, path) = directory();
        let _writer = SampleWriter::create(&path, |_| {}).unwrap();
        std::fs::read(&path).unwrap()
    };
    let mut other_version = whole.clone();
    other_version[8] = 9;
    let mut torn = whole.clone();
    torn[SEQUENCE_AT * 8] |= 1;
    for contents in [
        &b""[..],
        b"short",
        &[0xff; 2 * PAGE_BYTES],
        &[0; 2 * PAGE_BYTES],
        &whole[..PAGE_BYTES - 4000],
        &other_version,
        &torn,
    ] {
        let (_directory, path, _lock) = hostile(contents);
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("samples'"), "{error}");
    }
    let (_directory, path, _lock) = hostile(&whole);
    assert!(read(&path).unwrap().is_some());
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    assert!(read(&fifo).is_err());
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    assert!(read(&link).is_err());
    assert!(read(directory.path()).is_err());
}

#[test]
fn bits_of_a_later_release_do_no_harm() {
    let (_directory, path) = directory();
    let _writer = SampleWriter::create(&path, |values| values.set(Field::Cpus, 3)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff; 8], (PRESENT_AT * 8) as u64).unwrap();
    let values = read(&path).unwrap();
    // Every value is marked as known, so at least the boot ID must differ.
    assert!(values.is_none_or(|snapshot| snapshot.sandbox.get(Field::Cpus) == Some(3)));
}
