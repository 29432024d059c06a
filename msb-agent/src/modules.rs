//! Kernel modules of the initramfs.
//!
//! `/modules/load` names one file of `/modules` a line, in the order of loading. A kernel with everything built in comes
//! without it. A module that fails may not be needed at all, so that is told on the console and remembered for the
//! message of whatever fails later.
//!
//! `/modules/held` names those whose devices stay without a driver until the boot request ([`crate::devices`]). With this
//! list the memory of the guest can be kept at its hello.
//!
//! `/modules/later` names those that the guest does well without for a while: they are loaded when it is up, so that no
//! boot waits for them. By then the initramfs is out of reach, so they are opened before.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::system::finit_module;

use crate::console::{log, reason};

const DIRECTORY: &str = "/modules";

/// The modules still to be loaded, and those that could not be.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    names: Vec<String>,
    next: usize,
    held: Option<Vec<String>>,
    held_devices: bool,
    later: Vec<(String, File)>,
    failures: Vec<String>,
}

impl Modules {
    /// Reads the list.
    pub(crate) fn listed() -> Modules {
        let mut modules = Modules::default();
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
            // The initramfs is memory, and this frees it when the file is closed.
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

    /// Loads the next one. `false` when there is none.
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

    /// Loads those whose devices are held.
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
            self.note(format!(
                "cannot load the kernel module '{name}': {}",
                reason(error)
            ));
        }
        // The initramfs is memory, and the file is of no more use.
        let _ = fs::remove_file(&path);
    }

    /// Loads those that can wait.
    pub(crate) fn load_later(&mut self) {
        for (name, file) in std::mem::take(&mut self.later) {
            if let Err(error) = load(&file) {
                let error = reason(error);
                log(&format!("cannot load the kernel module '{name}': {error}"));
            }
        }
    }

    /// What failed, to be put behind another message; empty when nothing did.
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
    lines
        .filter(|line| !line.is_empty() && !line.contains('/'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_keeps_its_order_and_names_no_other_folder() {
        assert_eq!(
            names("virtio.ko\n\n ../x.ko\nerofs.ko"),
            ["virtio.ko", "erofs.ko"]
        );
    }
}
