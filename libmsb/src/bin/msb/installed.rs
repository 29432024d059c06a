//! Where msb is installed, and what updates it: the answer to `msb self`.

use std::path::Path;

use libmsb::cli::escape::escape;
use libmsb::cli::quote::shell_quoted;

/// Commands of other programs that update themselves, or say how.
pub(crate) const NAMES: [&str; 3] = ["self", "self-update", "upgrade"];

/// Returns how this program was installed and what updates and removes it.
pub(crate) fn answer() -> String {
    match std::env::current_exe() {
        Ok(program) => answer_for(&program),
        Err(_) => "update msb as it was installed: as a package, or with libmsb/install".to_owned(),
    }
}

fn answer_for(program: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let directory = program.parent().unwrap_or(Path::new("/"));
    let has = |name: &str| program.components().any(|part| part.as_os_str() == name);
    let shown = escape(program.as_os_str().as_bytes()).into_owned();
    if program.starts_with("/nix/store") {
        return format!("'{shown}' is a package of Nix, which updates and removes it");
    }
    if has("Cellar") {
        return format!("'{shown}' is a package of Homebrew: brew upgrade msb, brew uninstall msb");
    }
    if directory == Path::new("/usr/bin") || directory == Path::new("/bin") {
        return format!("'{shown}' is a package of this system, whose package manager updates it");
    }
    if has("target") {
        return format!("'{shown}' is a build in a clone: git pull && cargo build --release");
    }
    let prefix = directory.parent().unwrap_or(Path::new("/"));
    let prefix = shell_quoted(prefix.as_os_str().as_bytes());
    let prefix = escape(&prefix).into_owned();
    format!(
        "'{shown}' was installed from a clone; \
         update it there: git pull && libmsb/install --prefix {prefix}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_the_program_says_what_updates_it() {
        let answer = |path: &str| answer_for(Path::new(path));
        assert!(answer("/usr/bin/msb").contains("package manager"));
        assert!(answer("/opt/homebrew/Cellar/msb/1/bin/msb").contains("brew upgrade"));
        assert!(answer("/nix/store/x-msb/bin/msb").contains("Nix"));
        assert!(answer("/src/msb/target/release/msb").contains("cargo build"));
        assert!(answer("/home/a b/.local/bin/msb").ends_with("--prefix '/home/a b/.local'"));
    }
}
