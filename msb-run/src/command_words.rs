//! The start of the guest's command in a command line.
//!
//! Options of msb stand before the image or sandbox, and after it up to the first other word. That
//! word starts the command, as with docker: it and all words after it belong to the command. A `--`
//! before the command is accepted and needed only if the command starts with `-`.
//!
//! `trailing_var_arg` of clap is not used: `msb create --from-microsandbox FILE -- COMMAND` has a
//! command and no image.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::{Arg, Command};

const SEPARATOR: &str = "--";

/// Option that takes a path of the guest, or no value: then it is docker's.
const RM: &str = "--rm";

/// Options that name a snapshot or a sandbox file, which stands in place of the image.
const ROOTS: [&str; 2] = ["--snapshot", "--file"];

/// Returns the arguments with a `--` before the command. The first one is the program's name.
///
/// `--rm` without a path gets an empty value, so that it does not take the image as its value.
pub(crate) fn separate(command: &Command, args: Vec<OsString>) -> Vec<OsString> {
    let has_rm = command.get_arguments().any(|arg| arg.get_long() == Some(&RM[2..]));
    let mut args = args.into_iter().peekable();
    let mut separated: Vec<OsString> = args.next().into_iter().collect();
    let mut has_operand = false;
    while let Some(arg) = args.next() {
        if arg == SEPARATOR {
            separated.push(arg);
            break;
        }
        if has_rm && arg == RM {
            let is_path = |next: &OsString| next.as_bytes().starts_with(b"/");
            match args.next_if(is_path) {
                Some(path) => separated.extend([arg, path]),
                None => separated.push(format!("{RM}=").into()),
            }
        } else if !is_option(&arg) {
            if has_operand {
                separated.extend([SEPARATOR.into(), arg]);
                break;
            }
            has_operand = true;
            separated.push(arg);
        } else {
            let value = needs_value(command, &arg).then(|| args.next()).flatten();
            has_operand |= names_root(&arg);
            separated.push(arg);
            separated.extend(value);
        }
    }
    separated.extend(args);
    separated
}

fn names_root(option: &OsStr) -> bool {
    let name = option.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default();
    ROOTS.iter().any(|root| root.as_bytes() == name)
}

fn is_option(arg: &OsStr) -> bool {
    arg.len() > 1 && arg.as_bytes().starts_with(b"-")
}

/// Returns whether the next argument is the value of this option.
fn needs_value(command: &Command, option: &OsStr) -> bool {
    let Some(text) = option.to_str() else {
        return false;
    };
    let find = |is_named: &dyn Fn(&Arg) -> bool| command.get_arguments().find(|arg| is_named(arg));
    let takes_value = |arg: Option<&Arg>| arg.is_some_and(|arg| arg.get_action().takes_values());
    if let Some(long) = text.strip_prefix("--") {
        let is_named = |arg: &Arg| {
            arg.get_long() == Some(long)
                || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&long))
        };
        return takes_value(find(&is_named));
    }
    // The first option of the group that takes a value takes the rest of the word, if there is one.
    let mut shorts = text[1..].chars();
    while let Some(short) = shorts.next() {
        if takes_value(find(&|arg| arg.get_short() == Some(short))) {
            return shorts.next().is_none();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::verbs::exec::ExecArgs;
    use crate::verbs::run::RunArgs;

    fn run(line: &str) -> String {
        line_of::<RunArgs>(line)
    }

    fn line_of<P: CommandFactory>(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let separated = separate(&P::command(), words);
        separated.join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn the_second_word_that_is_no_option_starts_the_command() {
        assert_eq!(run("msb-run -it debian bash"), "msb-run -it debian -- bash");
        assert_eq!(run("msb-run debian ls -la"), "msb-run debian -- ls -la");
        assert_eq!(
            run("msb-run -e A=B --name=w -m 1G debian --label a=b sh -c x --rm -- y"),
            "msb-run -e A=B --name=w -m 1G debian --label a=b -- sh -c x --rm -- y"
        );
        assert_eq!(
            run("msb-run -dit -m1G debian -tm 1G env"),
            "msb-run -dit -m1G debian -tm 1G -- env"
        );
        assert_eq!(line_of::<ExecArgs>("msb-exec -it x sh --rm"), "msb-exec -it x -- sh --rm");
    }

    #[test]
    fn a_line_with_dashes_stays_as_it_is() {
        for line in [
            "msb-run debian -- ls -- x",
            "msb-run debian --name w --label a=b -d",
            "msb-run -- debian ls",
            "msb-run --no-such debian",
            "msb-run -p 80:80 -",
        ] {
            assert_eq!(run(line), line);
        }
    }

    #[test]
    fn a_snapshot_stands_in_place_of_the_image() {
        assert_eq!(run("msb-run --snapshot s ls -l"), "msb-run --snapshot s -- ls -l");
        assert_eq!(run("msb-run --snapshot=s -d sh"), "msb-run --snapshot=s -d -- sh");
        assert_eq!(run("msb-run --snapshot s -- ls"), "msb-run --snapshot s -- ls");
    }

    #[test]
    fn a_sandbox_file_stands_in_place_of_the_image() {
        assert_eq!(run("msb-run --file x.yaml ls -l"), "msb-run --file x.yaml -- ls -l");
        assert_eq!(run("msb-run --file - -d sh"), "msb-run --file - -d -- sh");
        assert_eq!(run("msb-run --file=x.yaml"), "msb-run --file=x.yaml");
    }

    #[test]
    fn rm_takes_a_path_or_nothing() {
        assert_eq!(run("msb-run --rm -it debian bash"), "msb-run --rm= -it debian -- bash");
        assert_eq!(run("msb-run -it --rm debian bash"), "msb-run -it --rm= debian -- bash");
        assert_eq!(run("msb-run debian --rm"), "msb-run debian --rm=");
        assert_eq!(run("msb-run --rm /x debian true"), "msb-run --rm /x debian -- true");
        assert_eq!(run("msb-run --rm=/x debian"), "msb-run --rm=/x debian");
        assert_eq!(run("msb-run debian rm --rm x"), "msb-run debian -- rm --rm x");
    }
}
