//! A person before a terminal, played through tmux.

use rustix::process::Signal;

use crate::support::{Home, Terminal, wait_until};

#[test]
fn a_command_on_a_terminal_has_its_size_and_learns_of_a_new_one() {
    let home = Home::with_busybox();
    let terminal = Terminal::open(&home);
    terminal.enter("msb run -ti busybox:test -- sh -c 'trap \"stty size; echo resized\" WINCH; stty size; tty; while :; do sleep 0.1; done'");
    terminal.wait_for("24 80\n/dev/pts/");
    terminal.resize(100, 30);
    terminal.wait_for("30 100\nresized");
    terminal.press("C-c");
    terminal.wait_for_prompt();
}

#[test]
fn ctrl_c_reaches_the_command_and_not_the_client() {
    let home = Home::with_busybox();
    let terminal = Terminal::open(&home);
    terminal.enter("msb run -ti busybox:test -- sh -c 'trap \"echo caught; exit 5\" INT; echo ready; while :; do sleep 0.1; done'; echo \"code $?\"");
    terminal.wait_for("\nready");
    terminal.press("C-c");
    terminal.wait_for("caught\ncode 5\n");
}

#[test]
fn ctrl_c_without_a_terminal_in_the_guest_ends_the_command_too() {
    let home = Home::with_busybox();
    let terminal = Terminal::open(&home);
    terminal
        .enter("msb run --no-tty busybox:test -- sh -c 'echo ready; sleep 1000'; echo \"code $?\"");
    terminal.wait_for("\nready");
    terminal.press("C-c");
    terminal.wait_for("code 130\n");
}

#[test]
fn ctrl_z_and_fg_work_in_a_shell_of_the_guest() {
    let home = Home::with_busybox();
    let terminal = Terminal::open(&home);
    terminal.enter("msb run -ti -e PS1='guest> ' busybox:test -- sh");
    terminal.wait_for("\nguest>");
    terminal.enter("sh -c 'echo began; read x; echo got $x'");
    terminal.wait_for("\nbegan");
    terminal.press("C-z");
    terminal.wait_for("Stopped");
    terminal.enter("jobs");
    terminal.wait_for_screen("the job twice", |screen| screen.matches("Stopped").count() == 2);
    terminal.enter("fg");
    terminal.wait_for("\nsh -c");
    terminal.enter("word");
    terminal.wait_for("\ngot word");
    terminal.enter("exit 9");
    terminal.wait_for_prompt();
    terminal.enter("echo code $?");
    terminal.wait_for("code 9");
}

#[test]
fn ctrl_z_stops_a_client_without_terminal_and_fg_goes_on_with_it() {
    let home = Home::with_busybox();
    let terminal = Terminal::open(&home);
    terminal.enter("msb run --no-tty -i busybox:test -- sh -c 'echo ready; read x; echo got $x; exit 6'; echo \"code $?\"");
    terminal.wait_for("\nready");
    terminal.press("C-z");
    terminal.wait_for("Stopped");
    terminal.enter("fg");
    // The shell has left its line editor, whose terminal does not take a return for the end of a line.
    terminal.wait_for("\nmsb run --no-tty");
    terminal.enter("word");
    terminal.wait_for("got word");
    terminal.wait_for_prompt();
    terminal.enter("echo \"fg code $?\"");
    terminal.wait_for("fg code 6");
}

#[test]
fn a_stopped_client_gives_the_terminal_back_and_fg_takes_it_again() {
    let home = Home::with_busybox();
    let terminal = Terminal::open(&home);
    terminal.enter("msb run -ti -e PS1='guest> ' busybox:test -- sh");
    terminal.wait_for("\nguest>");
    for client in home.processes() {
        if client.name == "msb-run" && client.command_line.contains("-ti") {
            client.signal(Signal::TSTP);
        }
    }
    terminal.wait_for("Stopped");
    terminal.enter("stty -a | grep -o ' echo '; echo sane");
    terminal.wait_for(" echo\nsane");
    terminal.resize(90, 20);
    terminal.enter("fg");
    terminal.wait_for("\nmsb run -ti");
    terminal.enter("until stty size | grep -q '^20 90$'; do sleep 0.1; done; echo resized");
    terminal.wait_for("\nresized");
    terminal.enter("exit 9");
    terminal.wait_for_prompt();
    terminal.enter("echo \"fg code $?\"");
    terminal.wait_for("fg code 9");
}

#[test]
fn a_full_screen_program_draws_and_reads_keys() {
    let home = Home::with_busybox();
    let terminal = Terminal::open(&home);
    terminal.enter("msb run -ti -e PS1='guest> ' busybox:test -- sh");
    terminal.wait_for("\nguest>");
    terminal.enter("vi /tmp/note");
    terminal.wait_for_screen("an empty file in vi", |screen| {
        screen.lines().filter(|line| *line == "~").count() > 15
    });
    terminal.write("ihello, gr\u{fc}n");
    terminal.wait_for("hello, gr\u{fc}n");
    terminal.press("Escape");
    // A key that comes too soon after it would be part of an escape sequence.
    terminal.wait_for("\n- /tmp/note");
    terminal.enter(":wq");
    terminal.wait_for("\nguest>");
    terminal.enter("clear; cat /tmp/note; echo");
    terminal.wait_for("hello, gr\u{fc}n");
    terminal.enter("exit");
    terminal.wait_for_prompt();
}

#[test]
fn exec_opens_a_terminal_in_a_running_sandbox() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    let terminal = Terminal::open(&home);
    terminal.enter("msb exec -ti x -- sh -c 'stty size; test -t 0 && test -t 1 && echo a terminal; exit 7'; echo \"code $?\"");
    terminal.wait_for("24 80\na terminal\ncode 7");
    terminal.enter("stty -a | grep -o ' echo '; echo sane");
    terminal.wait_for(" echo\nsane");
    drop(terminal);
    home.run(["stop", "x"]).done();
}

#[test]
fn run_before_a_person_has_a_terminal_without_being_asked() {
    let home = Home::with_busybox();
    let terminal = Terminal::open(&home);
    terminal.enter("msb run busybox:test -- sh -c 'tty; exit 2'; echo code $?");
    terminal.wait_for("/dev/pts/0\ncode 2\n");
    terminal.enter("msb run busybox:test -- tty | cat; echo code ${PIPESTATUS[0]}");
    terminal.wait_for("not a tty\ncode 1\n");
}

#[test]
fn a_terminal_is_asked_for_where_there_is_none_and_the_answer_says_so() {
    let home = Home::with_busybox();
    // As docker does not: a script that says -t means it for people, and works without.
    home.run(["run", "-t", "busybox:test", "--", "sh", "-c", "test -t 1 && echo a terminal"]).is(
        0,
        "a terminal\r\n",
        "",
    );
}

#[test]
fn a_shell_on_a_terminal_ends_with_the_input_that_is_no_terminal() {
    let home = Home::with_busybox();
    // The shell edits its lines in raw mode, cat reads in canonical mode, and then the shell again.
    for (input, code) in [("", 0), ("exit 3\n", 3), ("cat; cd /nowhere || (exit 4)\n", 4)] {
        let outcome = home.run_with(["run", "-it", "busybox:test", "--", "sh"], input.as_bytes());
        assert_eq!(outcome.code, code, "{input:?}: {outcome:?}");
    }
    let outcome = home.run_with(["run", "-t", "busybox:test", "--", "cat"], b"no newline");
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

#[test]
fn exec_is_left_by_keys_and_its_command_is_attached_to_again() {
    let home = Home::with_busybox();
    home.run(["run", "-d", "--name", "x", "busybox:test"]).done();
    let terminal = Terminal::open(&home);
    terminal
        .enter("msb exec -t x -- sh -c 'echo began; while read l; do echo got $l; done; exit 7'");
    terminal.wait_for("\nbegan");
    terminal.press("C-p");
    terminal.press("C-q");
    terminal.wait_for("msb exec: note: detached; attach to the command again with: msb attach x ");
    terminal.wait_for_prompt();
    let jobs = home.run(["jobs", "x", "--format", "json"]).done();
    let jobs: serde_json::Value = serde_json::from_str(&jobs).unwrap();
    assert_eq!((&jobs[0]["status"], &jobs[0]["tty"]), (&"Running".into(), &true.into()));
    assert_eq!(jobs[0]["command"][0], "sh");
    // A prefix of the keys is input.
    terminal.enter("clear; msb attach --detach-keys ctrl-p,ctrl-q x; echo code $?");
    terminal.enter("word");
    terminal.wait_for("\ngot word");
    terminal.press("C-p");
    terminal.press("C-q");
    terminal.wait_for("\ncode 0\n");
    terminal.enter("clear; msb attach x; echo code $?");
    terminal.enter("more");
    terminal.wait_for("\ngot more");
    terminal.press("C-d");
    terminal.wait_for("\ncode 7\n");
    drop(terminal);
    home.run(["stop", "x"]).done();
}

#[test]
fn run_is_left_by_keys_and_its_sandbox_ends_with_the_command() {
    let home = Home::with_busybox();
    let terminal = Terminal::open(&home);
    let script =
        "echo began; read l; head -c 300000 /dev/zero | tr '\\0' x; echo; echo got $l; exit 7";
    terminal.enter(&format!("msb run -t --name x busybox:test -- sh -c '{script}'"));
    terminal.wait_for("\nbegan");
    terminal.press("C-p");
    terminal.press("C-q");
    terminal.wait_for("msb run: note: detached; attach to the command again with: msb attach x ");
    terminal.wait_for_prompt();
    drop(terminal);
    assert_eq!(home.sandboxes(), [("x".to_owned(), "Running".to_owned())]);

    let terminal = Terminal::open(&home);
    terminal.enter("msb attach x; echo code $?");
    terminal.enter("word");
    terminal.wait_for("\ngot word");
    terminal.wait_for("\ncode 7\n");
    drop(terminal);
    // The job ends before its sandbox.
    let stopped = [("x".to_owned(), "Stopped".to_owned())];
    wait_until("the end of the sandbox", || home.sandboxes() == stopped);

    // What is left of the time goes with the command.
    let terminal = Terminal::open(&home);
    let options = "--timeout 10s --name z busybox:test";
    terminal.enter(&format!("msb run -t {options} -- sh -c 'echo began; exec sleep 1000'"));
    terminal.wait_for("\nbegan");
    terminal.press("C-p");
    terminal.press("C-q");
    terminal.wait_for("again with: msb attach z ");
    drop(terminal);
    home.run(["wait", "z"]).is(0, "124 completed\n", "");
    home.run(["rm", "-q", "z"]).done();

    // Other keys, and a sandbox that is removed at its end.
    let terminal = Terminal::open(&home);
    terminal.enter("msb run -t --rm --name y --detach-keys '~,.' busybox:test -- sh -c 'echo began; read l; echo got $l; exit 7'");
    terminal.wait_for("\nbegan");
    terminal.write("~.");
    terminal.wait_for("again with: msb attach y ");
    terminal.wait_for_prompt();
    terminal.enter("clear; msb attach y; echo code $?");
    terminal.enter("~word");
    terminal.wait_for("\ngot ~word\ncode 7\n");
    drop(terminal);
    // The job ends before its sandbox.
    let stopped = [("x".to_owned(), "Stopped".to_owned())];
    wait_until("the end of the sandbox", || home.sandboxes() == stopped);
}
