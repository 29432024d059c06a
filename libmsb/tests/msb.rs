//! Tests of the front command: help, start of programs, errors, and completion scripts.
//!
//! Each test has an installation of its own, with stand-ins for the tools that print how they were
//! called.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A stand-in: prints its own name and its arguments, each in brackets.
const ECHO: &str = "#!/bin/sh\nprintf '%s' \"${0##*/}\"\nprintf ' [%s]' \"$@\"\necho\n";

struct Installation {
    root: TempDir,
}

/// Returns the program under test: the installed one, if the tests run against an installation.
fn program() -> PathBuf {
    match std::env::var_os("MSB_TEST_BIN") {
        Some(directory) => Path::new(&directory).join("msb"),
        None => PathBuf::from(env!("CARGO_BIN_EXE_msb")),
    }
}

impl Installation {
    fn new() -> Installation {
        let root = tempfile::Builder::new().prefix("msb-front-").tempdir().unwrap();
        for directory in ["bin", "lib/msb", "elsewhere", "share/man/man1"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let copied =
            Command::new("cp").arg(program()).arg(root.path().join("bin/msb")).status().unwrap();
        assert!(copied.success());
        Installation { root }
    }

    /// Returns an installation with stand-ins for all tools.
    fn with_tools() -> Installation {
        let installation = Installation::new();
        for tool in ["run", "exec", "ls", "stop", "rm", "doctor", "image"] {
            installation.write_program(&format!("bin/msb-{tool}"), ECHO);
        }
        installation.write_program("lib/msb/msb-vmm", ECHO);
        installation
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Writes a program, in another process. If this one had the file open while another test
    /// forks, it could not be executed.
    fn write_program(&self, path: &str, text: &str) {
        let path = self.path(path);
        let mut cat = Command::new("sh")
            .args(["-c", "cat > \"$1\"", "sh"])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        cat.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(cat.wait().unwrap().success());
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn msb<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(self.path("bin/msb"));
        let path = format!("{}:/usr/bin:/bin", self.path("elsewhere").display());
        command.args(args).env("PATH", path).stdin(Stdio::null());
        command
    }

    fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> RunResult {
        RunResult::of(self.msb(args).output().unwrap())
    }
}

#[derive(Debug, PartialEq)]
struct RunResult {
    code: i32,
    stdout: String,
    stderr: String,
}

impl RunResult {
    fn of(output: Output) -> RunResult {
        RunResult {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn done(stdout: &str) -> RunResult {
        RunResult { code: 0, stdout: stdout.to_owned(), stderr: String::new() }
    }

    fn failed(code: i32, stderr: &str) -> RunResult {
        RunResult { code, stdout: String::new(), stderr: stderr.to_owned() }
    }
}

#[test]
fn alone_it_shows_the_grouped_help_and_that_is_no_failure() {
    let msb = Installation::with_tools();
    let help = msb.run::<&str>(&[]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    let headings: Vec<&str> =
        help.stdout.lines().filter(|l| l.ends_with(':') && !l.starts_with(' ')).collect();
    assert_eq!(
        headings,
        [
            "Sandboxes:",
            "Images:",
            "Network and SSH:",
            "Storage:",
            "Metrics:",
            "Installation:",
            "Other:",
            "Options:"
        ]
    );
    for spelling in [["--help"], ["-h"], ["help"]] {
        assert_eq!(msb.run(&spelling), help);
    }
    assert!(!help.stdout.contains("vmm"));
    assert!(msb.run(&["help", "--all"]).stdout.contains("Plumbing:\n  supervisor"));
}

#[test]
fn help_and_the_list_for_completions_have_the_same_commands() {
    let msb = Installation::with_tools();
    let help = msb.run(&["help"]).stdout;
    let list = msb.run(&["--list-commands", "--long"]).stdout;
    let listed: Vec<(&str, &str)> =
        list.lines().map(|line| line.split_once('\t').unwrap()).collect();
    let shown = help.lines().filter(|line| line.starts_with("  ") && !line.trim().starts_with('-'));
    let shown: Vec<(&str, &str)> = shown
        .map(|line| {
            (line.split([' ', ',']).find(|word| !word.is_empty()).unwrap(), line[17..].trim())
        })
        .collect();
    assert_eq!(shown, listed);
    let mut names = msb.run(&["--list-commands"]).stdout;
    for alias in ["cp", "ls", "ps", "rm", "snap", "vol"] {
        names = names.replace(&format!("\n{alias}\n"), "\n");
    }
    assert_eq!(
        names.lines().collect::<Vec<_>>(),
        listed.iter().map(|(name, _)| *name).collect::<Vec<_>>()
    );
}

#[test]
fn a_command_becomes_its_program_with_the_arguments_unchanged() {
    let msb = Installation::with_tools();
    for (typed, ran) in [
        (
            &["run", "alpine", "--", "sh", "-c", "a  b"][..],
            "msb-run [alpine] [--] [sh] [-c] [a  b]\n",
        ),
        (&["list", "-q"], "msb-ls [-q]\n"),
        (&["ls", "--format", "json"], "msb-ls [--format] [json]\n"),
        (&["rm", "x"], "msb-rm [x]\n"),
        (&["remove", "x"], "msb-rm [x]\n"),
        (&["load", "-i", ""], "msb-image [load] [-i] []\n"),
        (&["images", "-q"], "msb-image [list] [-q]\n"),
        (&["rmi", "x"], "msb-image [remove] [x]\n"),
        (&["image", "--help"], "msb-image [--help]\n"),
        (&["vmm", "x"], "msb-vmm [x]\n"),
    ] {
        assert_eq!(msb.run(typed), RunResult::done(ran), "{typed:?}");
    }
    let bytes = OsStr::from_bytes(b"\xff\xfe");
    assert_eq!(
        msb.msb(&[OsStr::new("rm"), bytes]).output().unwrap().stdout,
        b"msb-rm [\xff\xfe]\n"
    );
}

#[test]
fn the_programs_exit_status_is_that_of_msb() {
    let msb = Installation::new();
    msb.write_program("bin/msb-run", "#!/bin/sh\nexit 42\n");
    assert_eq!(msb.run(&["run"]), RunResult::failed(42, ""));
}

#[test]
fn a_program_of_others_in_path_is_a_command_too() {
    let msb = Installation::with_tools();
    msb.write_program("elsewhere/msb-foo", ECHO);
    msb.write_program("elsewhere/msb-run", "#!/bin/sh\necho wrong\n");
    assert_eq!(msb.run(&["foo", "a", "b"]), RunResult::done("msb-foo [a] [b]\n"));
    assert_eq!(msb.run(&["run", "a"]), RunResult::done("msb-run [a]\n"));
    assert!(msb.run(&["help", "--all"]).stdout.contains("\nOther programs named msb-*:\n  foo\n"));
    assert!(msb.run(&["--list-commands"]).stdout.ends_with("\nfoo\n"));
    assert!(msb.run(&["fooo"]).stderr.contains("did you mean 'msb foo'?"));
}

#[test]
fn a_mistyped_command_is_a_usage_error_with_the_nearest_name() {
    let msb = Installation::with_tools();
    let said = |word: &str, hint: &str| {
        RunResult::failed(
            2,
            &format!("msb: error: there is no command '{word}'\nmsb: hint: {hint}\n"),
        )
    };
    assert_eq!(msb.run(&["imgae", "ls"]), said("imgae", "did you mean 'msb image'?"));
    assert_eq!(msb.run(&["im"]), said("im", "did you mean 'msb image' or 'msb images'?"));
    assert_eq!(msb.run(&["frobnicate"]), said("frobnicate", "'msb help' lists the commands"));
    assert_eq!(
        msb.run(&["help", "frobnicate"]),
        said("frobnicate", "'msb help' lists the commands")
    );
    assert_eq!(msb.run(&["\x1b[2J../../sh"]).code, 2);
    assert!(!msb.run(&["\x1b[2J"]).stderr.contains('\x1b'));
    assert_eq!(msb.run(&["../elsewhere/x"]).code, 2);
    assert_eq!(msb.run(&["--naem", "x"]).code, 2);
}

#[test]
fn a_missing_program_is_told_and_run_keeps_the_codes_of_its_own_failures() {
    let msb = Installation::new();
    let said = |program: &str| {
        format!(
            "msb: error: cannot find the program '{program}'\n\
             msb: hint: reinstall msb: libmsb/install puts it beside 'msb'\n"
        )
    };
    assert_eq!(msb.run(&["images"]), RunResult::failed(1, &said("msb-image")));
    assert_eq!(msb.run(&["run", "x"]), RunResult::failed(125, &said("msb-run")));
    assert_eq!(msb.run(&["exec", "x"]), RunResult::failed(125, &said("msb-exec")));
}

#[test]
fn help_on_a_command_opens_its_page_and_without_one_asks_the_program() {
    let msb = Installation::with_tools();
    msb.write_program(
        "elsewhere/man",
        "#!/bin/sh\n[ \"$1\" = -w ] && exit 16\necho \"page ${1##*/}\"\n",
    );
    assert_eq!(msb.run(&["help", "stop"]), RunResult::done("msb-stop [--help]\n"));
    fs::write(msb.path("share/man/man1/msb-image.1"), "").unwrap();
    assert_eq!(msb.run(&["help", "load"]), RunResult::done("page msb-image.1\n"));
    fs::create_dir_all(msb.path("share/man/man5")).unwrap();
    fs::write(msb.path("share/man/man5/msb-state.5"), "").unwrap();
    assert_eq!(msb.run(&["help", "state"]), RunResult::done("page msb-state.5\n"));

    let no_man =
        RunResult::of(msb.msb(&["help", "load"]).env("PATH", "/nowhere:").output().unwrap());
    assert_eq!(no_man.code, 0, "{no_man:?}");
    assert_eq!(no_man.stdout, "msb-image [load] [--help]\n");
}

#[test]
fn the_version_is_one_line() {
    let version = concat!("msb ", env!("CARGO_PKG_VERSION"), "\n");
    let msb = Installation::new();
    assert_eq!(msb.run(&["--version"]), RunResult::done(version));
    assert_eq!(msb.run(&["-V"]), RunResult::done(version));
}

#[test]
fn the_tree_has_the_commands_below_each_command() {
    let msb = Installation::with_tools();
    msb.write_program(
        "bin/msb-image",
        "#!/bin/sh\n[ \"$*\" = '--generate tree' ] && echo 'load             Load'\n",
    );
    msb.write_program("bin/msb-run", "#!/bin/sh\nexit 2\n");
    let tree = msb.run(&["--tree"]).stdout;
    assert!(tree.contains("check images\n    load             Load\n  pull "), "{tree}");
    assert_eq!(
        Installation::with_tools().run(&["image", "load", "--tree"]),
        RunResult::done("msb-image [load] [--tree]\n")
    );
}

#[test]
fn how_much_is_said_may_stand_before_the_command() {
    let msb = Installation::with_tools();
    assert_eq!(msb.run(&["--debug", "rm", "x"]), RunResult::done("msb-rm [--debug] [x]\n"));
    assert_eq!(msb.run(&["--debug"]), msb.run::<&str>(&[]));
}

#[test]
fn a_full_disk_is_told_and_a_reader_that_has_gone_is_not() {
    let msb = Installation::with_tools();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = RunResult::of(msb.msb(&["help"]).stdout(full).output().unwrap());
    assert_eq!(
        ran,
        RunResult::failed(
            1,
            "msb: error: cannot write to standard output: no space left on device\n"
        )
    );

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran = RunResult::of(msb.msb(&["help"]).stdout(writer).output().unwrap());
    assert_eq!(ran, RunResult::done(""));
}

#[test]
fn a_line_is_completed_by_the_program_of_its_command() {
    let msb = Installation::with_tools();
    let complete = |words: &[&str]| msb.run(&[&["--complete"], words].concat()).stdout;
    let names = |words: &[&str]| -> Vec<String> {
        let lines = complete(words);
        lines.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&["ima"]), ["image", "images"]);
    assert_eq!(names(&["help", "st"]), ["start", "status", "stop"]);
    assert_eq!(names(&["--v"]), ["--version"]);
    assert_eq!(names(&["completion", ""]), ["bash", "fish", "zsh"]);
    assert!(complete(&["sto"]).starts_with("stop\t"), "{}", complete(&["sto"]));
    // The tools of this installation print their arguments.
    assert_eq!(complete(&["load", "-i", ""]), "msb-image [--complete] [load] [-i] []\n");
    assert_eq!(complete(&["kill", "w"]), "msb-stop [--complete] [--force] [w]\n");
    assert_eq!(complete(&["nonsense", ""]), "");
    assert_eq!(complete(&["help", "stop", ""]), "");
    assert_eq!(complete(&[]), "");
}
