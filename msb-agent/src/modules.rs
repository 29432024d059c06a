//! Kernel modules of the initramfs.
//!
//! `/modules/load` names one file of `/modules` a line, in the order of loading. A kernel with everything built in comes
//! without it. A module that fails may not be needed at all, so that is told on the console and remembered for the
//! message of whatever fails later.

use std::fs::{self, File};
use std::io;

use rustix::io::Errno;
use rustix::system::finit_module;

use crate::console::{log, reason};

const DIRECTORY: &str = "/modules";

/// The modules still to be loaded, and those that could not be.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    names: Vec<String>,
    next: usize,
    failures: Vec<String>,
}

impl Modules {
    /// Reads the list.
    pub(crate) fn listed() -> Modules {
        let path = format!("{DIRECTORY}/load");
        let mut modules = Modules::default();
        match fs::read_to_string(&path) {
            Ok(list) => modules.names = names(&list),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => modules.note(format!("cannot read '{path}': {}", reason(error))),
        }
        modules
    }

    /// Loads the next one. `false` when there is none.
    pub(crate) fn load_next(&mut self) -> bool {
        let Some(name) = self.names.get(self.next) else {
            return false;
        };
        self.next += 1;
        let path = format!("{DIRECTORY}/{name}");
        if let Err(error) = load(&path) {
            self.note(format!(
                "cannot load the kernel module '{name}': {}",
                reason(error)
            ));
        }
        // The initramfs is memory, and the file is of no more use.
        let _ = fs::remove_file(&path);
        true
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

fn load(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    match finit_module(&file, c"", 0) {
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
