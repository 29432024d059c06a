//! A terminal with a person before it: a shell in tmux.

use std::process::Command;

use super::{Home, wait_until};

/// A shell in a terminal of 80 by 24, of a server of its own.
pub(crate) struct Terminal {
    socket: String,
}

impl Terminal {
    pub(crate) fn open(home: &Home) -> Terminal {
        let socket = home.directory.join("tmux").to_str().unwrap().to_owned();
        let mut command = home.program("tmux");
        command.env("PS1", "host$ ").env("TERM", "xterm");
        command.args([
            "-S",
            &socket,
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
        ]);
        command.args([
            "env",
            "-u",
            "TMUX",
            "-u",
            "TMUX_PANE",
            "TERM=screen",
            "bash",
            "--norc",
            "--noprofile",
            "-i",
        ]);
        assert!(command.status().unwrap().success());
        let terminal = Terminal { socket };
        terminal.tmux(&["set-option", "-g", "status", "off"]);
        terminal.tmux(&["set-window-option", "-g", "window-size", "manual"]);
        terminal.resize(80, 24);
        terminal.wait_for("host$");
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = Command::new("tmux").args(["-S", &self.socket]).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Types text as it is.
    pub(crate) fn write(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// Presses a key by its name in tmux: `Enter`, `C-c`, `Escape`.
    pub(crate) fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Types a line.
    pub(crate) fn enter(&self, line: &str) {
        self.write(line);
        self.press("Enter");
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }

    /// Returns the text on the screen, without spaces at the end of lines.
    pub(crate) fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the screen shows a text.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        self.wait_for_screen(text, |screen| screen.contains(text));
    }

    /// Waits until the host's shell takes the next command.
    #[track_caller]
    pub(crate) fn wait_for_prompt(&self) {
        self.wait_for_screen("the prompt", |screen| screen.trim_end().ends_with("host$"));
    }

    /// Waits until the screen is as it should be.
    #[track_caller]
    pub(crate) fn wait_for_screen(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let mut screen = String::new();
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(what, || {
                screen = self.screen();
                is_so(&screen)
            });
        }));
        assert!(seen.is_ok(), "the terminal never showed {what:?}, but\n{screen}");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}
