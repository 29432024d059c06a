//! Completion in the shells that people use: each is driven on a terminal, with the script that
//! `msb completion` prints.

use crate::support::{Guests, Home, Terminal};

const PROMPT: &str = "host$ ";

/// Lines that are typed, and the lines after a tab.
const LINES: [(&str, &str); 30] = [
    ("msb sto", "msb stop"),
    ("msb run --detac", "msb run --detach"),
    ("msb exec w", "msb exec web"),
    ("msb ssh w", "msb ssh web"),
    ("msb ssh serve w", "msb ssh serve web"),
    ("msb ssh config -l root w", "msb ssh config -l root web"),
    ("msb attach w", "msb attach web"),
    ("msb jobs w", "msb jobs web"),
    ("msb signal -s HUP w", "msb signal -s HUP web"),
    ("msb metrics w", "msb metrics web"),
    ("msb events w", "msb events web"),
    ("msb logs -f w", "msb logs -f web"),
    ("msb kill w", "msb kill web"),
    ("msb stop other w", "msb stop other web"),
    ("msb cp w", "msb cp web:/"),
    ("msb net explain --sandbox w", "msb net explain --sandbox web"),
    ("msb create busyb", "msb create busybox:test"),
    ("msb run -it busyb", "msb run -it busybox:test"),
    ("msb image tag busyb", "msb image tag busybox:test"),
    ("msb image save busyb", "msb image save busybox:test"),
    ("msb save busyb", "msb save busybox:test"),
    ("msb rmi busyb", "msb rmi busybox:test"),
    ("msb volume rm dat", "msb volume rm data"),
    ("msb volume inspect dat", "msb volume inspect data"),
    ("msb run -v dat", "msb run -v data:/"),
    ("msb run --net pub", "msb run --net public"),
    ("msb run --net=pub", "msb run --net=public"),
    ("msb logs --color alw", "msb logs --color always"),
    ("msb run --env-file xfil", "msb run --env-file xfile"),
    ("msb help sto", "msb help stop"),
];

/// Lines to which a tab adds nothing, although there are files of these names.
const NOTHING: [&str; 5] = [
    "msb run --net xfil",
    "msb logs --source xfil",
    "msb net explain --sandbox xfil",
    "msb volume create xfil",
    "msb exec web xfil",
];

fn guests() -> Guests {
    let home = Home::with_busybox();
    home.run(["volume", "create", "data"]).done();
    std::fs::write(home.directory.join("xfile"), "").unwrap();
    let guests = Guests::of(home, &["busybox:test"]);
    guests.run(["create", "--no-start", "--name", "web", "busybox:test"]).done();
    guests
}

/// Starts a shell and checks the lines in it.
#[track_caller]
fn check(home: &Home, start: &str, setup: &[&str]) {
    let terminal = Terminal::open(home);
    terminal.resize(160, 40);
    terminal.enter(&format!("cd '{}'", home.directory.display()));
    terminal.enter(start);
    for line in setup {
        terminal.enter(line);
    }
    terminal.enter("clear; echo rea''dy");
    terminal.wait_for_screen("the shell", |screen| {
        screen.lines().any(|line| line == "ready") && screen.trim_end().ends_with("host$")
    });
    let shows = |line: &str| {
        let wanted = format!("{PROMPT}{line}");
        terminal.wait_for_screen(&wanted, |screen| {
            screen.lines().any(|shown| shown.trim_end() == wanted)
        });
        terminal.press("C-u");
        terminal.wait_for_prompt();
    };
    for (typed, completed) in LINES {
        terminal.write(typed);
        terminal.press("Tab");
        shows(completed);
    }
    for typed in NOTHING {
        terminal.write(typed);
        terminal.press("Tab");
        terminal.write("END");
        shows(&format!("{typed}END"));
    }
    // A job of the sandbox that the line names.
    let id = home.run(["exec", "-d", "x", "--", "sleep", "1000"]).done();
    terminal.write("msb attach x ");
    terminal.press("Tab");
    shows(&format!("msb attach x {}", id.trim_end()));
    home.run(["signal", "-s", "KILL", "x", id.trim_end()]).done();
    home.run(["wait", "x", "--job", id.trim_end()]);
}

#[test]
fn bash_completes_names_options_and_values() {
    let guests = guests();
    let setup = ["PS1='host$ '", "bind 'set bell-style none'", "source <(msb completion bash)"];
    check(&guests, "bash --norc --noprofile", &setup);
}

#[test]
fn zsh_completes_names_options_and_values() {
    let guests = guests();
    let setup = [
        "PS1='host$ '; RPS1=; unsetopt prompt_sp beep; setopt interactive_comments",
        "autoload -Uz compinit && compinit -u -D",
        "source <(msb completion zsh)",
    ];
    check(&guests, "zsh -f", &setup);
}

#[test]
fn fish_completes_names_options_and_values() {
    let guests = guests();
    let setup = [
        "set -g fish_autosuggestion_enabled 0; set -g fish_greeting",
        "function fish_prompt; echo -n 'host$ '; end",
        "msb completion fish | source",
    ];
    check(&guests, "fish --no-config", &setup);
}
