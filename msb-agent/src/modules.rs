//! Kernel modules of the initramfs.
//!
//! `/modules/load` lists the files of `/modules` to load, one a line, in order. It is missing with
//! a kernel that has everything built in. A module that cannot be loaded may not be needed, so the
//! failure is logged and appended to the message of a later failure.
//!
//! `/modules/held` lists modules whose devices get no driver before the boot request
//! ([`crate::devices`]). With this list the guest's memory can be saved after its Hello.
//!
//! `/modules/later` lists modules that are not needed at first: they are loaded once the guest is
//! up, so that they do not delay the boot. The initramfs is not reachable by then, so their files
//! are opened early.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use crate::console::{log, reason};

const DIRECTORY: &str = "/modules";

/// Modules to load, and failures.
#[derive(Debug, Default)]
pub(crate) struct KernelModules {
    names: Vec<String>,
    next: usize,
    held: Option<Vec<String>>,
    held_devices: bool,
    later: Vec<(String, File)>,
    failures: Vec<String>,
}

impl KernelModules {
    /// Reads the lists.
    pub(crate) fn listed() -> KernelModules {
        let mut modules = KernelModules::default();
        modules.names = modules.list("load");
        if Path::new(DIRECTORY).join("held").exists() {
            modules.held = Some(modules.list("held"));
        }
        for name in modules.list("later") {
            let path = format!("{DIRECTORY}/{name}");
            match File::open(&path) {
                Ok(file) => modules.later.push((name, file)),
                Err(error) => modules.note(format!("cannot open '{path}': {}", reason(error))),
            }
            // The initramfs is in memory, which is freed when the file is closed.
            let _ = fs::remove_file(&path);
        }
        modules
    }

    fn list(&mut self, file: &str) -> Vec<String> {
        let path = format!("{DIRECTORY}/{file}");
        match fs::read_to_string(&path) {
            Ok(list) => return names(&list),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.note(format!("cannot read '{path}': {}", reason(error))),
        }
        Vec::new()
    }

    /// Loads the next module. Returns `false` when there is none.
    pub(crate) fn load_next(&mut self) -> bool {
        let Some(name) = self.names.get(self.next) else {
            return false;
        };
        self.next += 1;
        self.load(&name.clone());
        true
    }

    /// Returns whether there is a list of modules whose devices are held.
    pub(crate) fn holds_devices(&self) -> bool {
        self.held.is_some()
    }

    /// Returns whether devices were held, so that they have to be probed.
    pub(crate) fn held_devices(&self) -> bool {
        self.held_devices
    }

    /// Loads the modules whose devices are held.
    pub(crate) fn load_held(&mut self) {
        self.held_devices = true;
        for name in self.held.take().unwrap_or_default() {
            self.load(&name);
        }
    }

    fn load(&mut self, name: &str) {
        let path = format!("{DIRECTORY}/{name}");
        let loaded = File::open(&path).and_then(|file| load(&file));
        if let Err(error) = loaded {
            self.note(format!("cannot load the kernel module '{name}': {}", reason(error)));
        }
        // The initramfs is in memory, and the file is not needed any more.
        let _ = fs::remove_file(&path);
    }

    /// Loads the modules that are not needed at first.
    pub(crate) fn load_later(&mut self) {
        for (name, file) in std::mem::take(&mut self.later) {
            if let Err(error) = load(&file) {
                let error = reason(error);
                log(&format!("cannot load the kernel module '{name}': {error}"));
            }
        }
    }

    /// Returns the failures, to be appended to another message; empty if there are none.
    pub(crate) fn failures(&self) -> String {
        if self.failures.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.failures.join("; "))
        }
    }

    fn note(&mut self, message: String) {
        log(&message);
        self.failures.push(message);
    }
}

fn load(file: &File) -> io::Result<()> {
    match finit_module(file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn names(list: &str) -> Vec<String> {
    let lines = list.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.contains('/')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_keeps_its_order_and_rejects_paths() {
        assert_eq!(names("virtio.ko\n\n ../x.ko\nerofs.ko"), ["virtio.ko", "erofs.ko"]);
    }
}
