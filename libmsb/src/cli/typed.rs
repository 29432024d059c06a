//! Name of a command as it was typed: `msb pull` for a process of `msb-image`.
//!
//! The front command passes the name on in an environment variable, since several commands share a
//! program. The variable names the program too, so that programs which inherit it ignore it.

use std::borrow::Cow;
use std::process::Command;

/// The variable: name of the program, `=`, and the command as it was typed.
pub const VARIABLE: &str = "MSB_TYPED_AS";

/// Programs that users do not type. Their messages carry the name of the program file.
const INTERNAL_PROGRAMS: [&str; 5] =
    ["msb-agent", "msb-intercept", "msb-oci", "msb-supervisor", "msb-vmm"];

/// Returns the name of a program's command: `msb run` for `msb-run`.
pub fn command_name(tool: &str) -> Cow<'_, str> {
    match tool.strip_prefix("msb-") {
        Some(verb) if !INTERNAL_PROGRAMS.contains(&tool) => Cow::Owned(format!("msb {verb}")),
        _ => Cow::Borrowed(tool),
    }
}

/// Passes the typed name on to a program that is started next.
pub fn pass(command: &mut Command, program: &str, typed: &str) {
    command.env(VARIABLE, format!("{program}={typed}"));
}

/// Returns the name of a program's command for messages: as it was typed, or after the program.
pub fn name(program: &str) -> Cow<'_, str> {
    match std::env::var(VARIABLE).ok().as_deref().and_then(|value| typed_name(value, program)) {
        Some(typed) => Cow::Owned(typed.to_owned()),
        None => command_name(program),
    }
}

fn typed_name<'a>(value: &'a str, program: &str) -> Option<&'a str> {
    value.strip_prefix(program)?.strip_prefix('=').filter(|typed| !typed.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_named_as_it_is_typed() {
        assert_eq!(command_name("msb-run"), "msb run");
        assert_eq!(command_name("msb-supervisor"), "msb-supervisor");
        assert_eq!(command_name("msb"), "msb");
    }

    #[test]
    fn a_name_counts_for_its_program_only() {
        assert_eq!(typed_name("msb-image=msb pull", "msb-image"), Some("msb pull"));
        for value in ["msb-image=msb pull", "msb-run=", "msb-run", ""] {
            assert_eq!(typed_name(value, "msb-run"), None, "{value}");
        }
    }
}
