//! Candidates for a word, and their form in an answer.

use std::collections::BTreeMap;

use crate::cli::output;

/// The line of an answer that stands for names of files.
pub const FILES: &str = ":files";

/// Candidates by name, with their descriptions.
pub type Candidates = BTreeMap<String, String>;

/// Prints candidates.
pub fn print(candidates: &Candidates) {
    let is_plain = |text: &str| !text.contains(|c: char| c.is_control());
    for (name, about) in candidates.iter().filter(|(name, _)| is_plain(name)) {
        let line = if about.is_empty() || !is_plain(about) {
            name.clone()
        } else {
            format!("{name}\t{about}")
        };
        // A shell that has gone needs no answer.
        let _ = output::print(&line);
    }
}
