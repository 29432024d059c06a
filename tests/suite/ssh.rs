//! A sandbox as an SSH host, seen by OpenSSH's own programs.

use std::net::{TcpListener, TcpStream};

use crate::support::{Guests, Home, Outcome, Process, Random, Running, wait_until};

const BYTES: usize = 3_000_000;

/// A guest `x`, a file `big`, and a configuration `cfg` in which ssh(1) knows the guest as `msb-x`.
fn host() -> Guests {
    let guests = Guests::one();
    let mut bytes = vec![0; BYTES];
    Random::new(11).fill(&mut bytes);
    std::fs::write(guests.directory.join("big"), bytes).unwrap();
    guests.shell("msb ssh config x >cfg").is(0, "", "");
    guests
}

pub(crate) fn stderr(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stderr).into_owned()
}

#[test]
fn a_command_streams_both_ways_and_its_status_comes_back() {
    let guests = host();
    guests
        .shell(
            "msb ssh x -- 'cat; echo mistaken >&2; exit 7' <big | cmp - big; echo ${PIPESTATUS[0]}",
        )
        .is(0, "7\n", "mistaken\n");
    guests.shell("ssh -F cfg msb-x 'id -u; echo $HOME'").is(0, "0\n/root\n", "");
    // What a terminal adds is the terminal's.
    guests.shell("ssh -F cfg -tt msb-x 'test -t 0 && echo a terminal' </dev/null 2>/dev/null").is(
        0,
        "a terminal\r\n",
        "",
    );
}

#[test]
fn several_sessions_share_one_connection() {
    let guests = host();
    let script = "
        ssh -F cfg -o ControlMaster=yes -o ControlPath=$PWD/c -o ControlPersist=yes msb-x true
        for i in 1 2 3 4; do ssh -o ControlPath=$PWD/c msb-x \"sleep 1; echo $i >/tmp/$i\" & done; wait
        ssh -o ControlPath=$PWD/c msb-x 'cat /tmp/1 /tmp/2 /tmp/3 /tmp/4'
        ssh -o ControlPath=$PWD/c -O exit msb-x 2>/dev/null";
    guests.shell(script).is(0, "1\n2\n3\n4\n", "");
}

#[test]
fn files_are_copied_and_changed_by_scp_and_sftp() {
    let guests = host();
    guests
        .shell(
            "scp -q -F cfg big msb-x:/tmp/big && scp -q -F cfg msb-x:/tmp/big back && cmp big back",
        )
        .is(0, "", "");
    let batch = "mkdir /tmp/d\\nput -p big /tmp/d/a\\nrename /tmp/d/a /tmp/d/b\\nsymlink b /tmp/d/l\\nchmod 640 /tmp/d/b\\n";
    guests.shell(&format!("printf '{batch}' | sftp -q -b - -F cfg msb-x >/dev/null")).is(0, "", "");
    let look = "cd /tmp/d; ls; readlink l; stat -c %a b; cmp b /tmp/big";
    guests.run(["exec", "x", "--", "sh", "-c", look]).is(0, "b\nl\nb\n640\n", "");
    let missing = guests.shell("scp -q -F cfg msb-x:/nowhere back2");
    assert_ne!(missing.code, 0);
    assert!(stderr(&missing).contains("No such file"), "{missing:?}");
}

#[test]
fn connections_are_opened_in_the_guest_and_a_refused_one_fails_alone() {
    let guests = host();
    let mirror = "while nc -l -p 9000 -e cat; do :; done";
    let _server = guests.start(["exec", "x", "--", "sh", "-c", mirror]);
    // -W gives the connection as standard input and output.
    wait_until("somebody listens in the guest", || {
        guests.shell("echo here | timeout 20 ssh -F cfg -W 127.0.0.1:9000 msb-x 2>/dev/null").stdout
            == b"here\n"
    });
    // Who listens is another one each time.
    wait_until("somebody listens again", || {
        let listening = "cat /proc/net/tcp /proc/net/tcp6 | grep -q ':2328 .* 0A '";
        guests.run(["exec", "x", "--", "sh", "-c", listening]).code == 0
    });
    guests.shell("ssh -F cfg -W 127.0.0.1:9000 msb-x <big | cmp - big").is(0, "", "");
    let refused = guests.shell("ssh -F cfg -W 127.0.0.1:9 msb-x </dev/null");
    assert_eq!(refused.code, 255, "{refused:?}");
    assert!(stderr(&refused).contains("connection refused"), "{refused:?}");
}

/// Returns the arguments of ssh(1) for a login as root over a port of this host, with a key.
pub(crate) fn client(key: &str, port: u16) -> String {
    format!(
        "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=known -o LogLevel=ERROR \
         -o IdentitiesOnly=yes -i {key} -p {port} root@127.0.0.1"
    )
}

/// Lets the key `one` in, and has a configuration `cfg` for the owner's.
pub(crate) fn give_key(home: &Home) {
    home.shell("msb ssh config x >cfg; ssh-keygen -q -t ed25519 -N '' -f one; msb ssh authorize --file one.pub")
        .done();
}

/// The process of the one server that listens.
pub(crate) fn server_of(home: &Home) -> Process {
    let found = home.processes().into_iter();
    let mut servers = found.filter(|process| {
        process.name.ends_with("msb-ssh") && !process.command_line.contains("stdio")
    });
    servers.next().unwrap()
}

/// A server on a port of its own, and the port.
pub(crate) fn serve(home: &Home) -> (Running, u16) {
    serve_with(home, &[])
}

/// The same, with more options.
pub(crate) fn serve_with(home: &Home, options: &[&str]) -> (Running, u16) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let port_text = port.to_string();
    let server = home.start([&["ssh", "serve", "x", "--port", &port_text], options].concat());
    wait_until("the server listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    (server, port)
}

#[test]
fn who_has_no_key_stays_out_and_a_key_may_do_what_its_line_says() {
    let guests = host();
    guests.shell("for k in one two other; do ssh-keygen -q -t ed25519 -N '' -f $k; done").done();
    let none = guests.run(["ssh", "serve", "x", "--port", "0"]);
    assert_eq!(none.code, 1, "{none:?}");
    assert!(stderr(&none).contains("no key is authorized yet"), "{none:?}");
    guests.shell("msb ssh authorize --file one.pub && msb ssh authorize --key \"restrict,command=\\\"echo only this\\\" $(cat two.pub)\"").done();
    let (_server, port) = serve(&guests);
    let ssh = |key: &str| {
        guests.shell(&format!(
            "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=known -o LogLevel=ERROR \
             -o IdentitiesOnly=yes -i {key} -p {port} root@127.0.0.1 'echo anything'"
        ))
    };
    guests.shell(": >none").done();
    ssh("one").is(0, "anything\n", "");
    ssh("two").is(0, "only this\n", "");
    let refused = ssh("other");
    assert_eq!(refused.code, 255, "{refused:?}");
    assert!(stderr(&refused).contains("Permission denied"), "{refused:?}");
    units_of_systemd(&guests);
}

/// systemd finds nothing wrong with the installed units, and a server takes the socket that it
/// hands over.
fn units_of_systemd(guests: &Guests) {
    let verify = format!(
        "cd {}/share/systemd/user && XDG_RUNTIME_DIR=$HOME systemd-analyze verify --user ./msb-ssh@.socket ./msb-ssh@.service",
        guests.prefix.display()
    );
    guests.shell(&verify).is(0, "", "");
    let script = "port=$((20000 + $$ % 10000))
        systemd-socket-activate -l 127.0.0.1:$port --setenv=MSB_HOME --setenv=HOME msb-ssh serve x 2>log & server=$!
        until grep -q Listening log; do kill -0 $server || exit; sleep 0.1; done
        ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=known -o LogLevel=ERROR -o IdentitiesOnly=yes -i one -p $port root@127.0.0.1 'echo activated'
        kill $server";
    guests.shell(script).is(0, "activated\n", "");
}

#[test]
fn a_sandbox_that_ends_says_so_to_its_clients_and_one_that_is_stopped_serves_nobody() {
    let guests = host();
    let mut client = Running::start({
        let mut command = guests.program("ssh");
        command.args(["-F", "cfg", "msb-x", "echo up; sleep 100"]);
        command
    });
    client.read_until("up\n");
    guests.run(["stop", "--force", "x"]).done();
    let outcome = client.finish();
    assert_eq!(outcome.code, 255, "{outcome:?}");
    assert!(stderr(&outcome).contains("the sandbox 'x' has ended"), "{outcome:?}");
    let stopped = guests.run(["ssh", "x", "--", "true"]);
    assert!(stderr(&stopped).contains("is not running"), "{stopped:?}");
    assert!(stderr(&stopped).contains("hint: start it: msb start x"), "{stopped:?}");
}

#[test]
fn a_session_is_that_of_the_sandboxs_user_with_modes_addresses_and_the_clients_agent() {
    let guests = Guests::with(&["--user", "alice:wheel"]);
    guests
        .shell("msb ssh config x >cfg; ssh-keygen -q -t ed25519 -N '' -f one; msb ssh authorize --file one.pub")
        .done();
    guests.shell("msb ssh x -- 'id -un; id -gn; pwd'").is(0, "alice\nwheel\n/home/alice\n", "");
    guests.shell("msb ssh x -l root -- id -un").is(0, "root\n", "");
    guests.shell("printf 'cd /home/alice\nmkdir d\n' | sftp -q -b - -F cfg msb-x >/dev/null; ssh -F cfg msb-x 'stat -c %U:%G d'").is(0, "alice:wheel\n", "");
    // The client's terminal has no echo and another interrupt character.
    guests
        .shell("script -qec \"stty -echo intr ^X; ssh -F cfg -t msb-x 'stty -a' 2>/dev/null\" /dev/null </dev/null | grep -o -e '-echo ' -e 'intr = ^X'")
        .is(0, "intr = ^X\n-echo \n", "");
    let (_server, port) = serve_with(&guests, &["--idle-timeout", "4s", "--max-time", "20s"]);
    let ssh = format!(
        "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=known -o LogLevel=ERROR -o IdentitiesOnly=yes -i one -p {port} alice@127.0.0.1"
    );
    let addresses = guests.shell(&format!("{ssh} 'echo $SSH_CONNECTION; echo $SSH_CLIENT'"));
    let text = String::from_utf8(addresses.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let (from, port_text) = (words[1].to_owned(), port.to_string());
    assert_eq!(
        words,
        ["127.0.0.1", &from, "127.0.0.1", &port_text, "127.0.0.1", &from, &port_text]
    );
    key_agent(&guests);
    refusals(&guests);
    time_limits(&guests, &ssh);
}

/// The socket is the user's alone, and goes with the session. tests/suite/ssh_clients.rs uses it.
fn key_agent(guests: &Guests) {
    let script = "eval $(ssh-agent) >/dev/null; trap 'kill $SSH_AGENT_PID' EXIT; ssh-add -q one
        ssh -A -F cfg msb-x 'stat -c \"%U %a\" ${SSH_AUTH_SOCK%/*}; echo $SSH_AUTH_SOCK >/tmp/where; exec sleep 1000' & client=$!
        until where=$(msb exec x -- cat /tmp/where 2>/dev/null); do kill -0 $client || exit; sleep 0.1; done
        msb exec x -- sh -c \"ls -ld $where\" | cut -c 1
        kill $client; wait $client 2>/dev/null
        while msb exec x -- test -e ${where%/*}; do sleep 0.1; done; echo gone";
    guests.shell(script).is(0, "alice 700\ns\ngone\n", "");
    let none = "ssh -a -F cfg msb-x 'echo ${SSH_AUTH_SOCK-none}'";
    guests.shell(none).is(0, "none\n", "");
}

fn refusals(guests: &Guests) {
    let remote = guests.shell("ssh -F cfg -R 2305:127.0.0.1:1 msb-x true");
    let said = stderr(&remote);
    assert!(said.contains("remote port forwarding (-R) is not supported"), "{remote:?}");
    assert_eq!(remote.code, 0, "{remote:?}");
    let script = "ssh -F cfg -N -L $PWD/l:/tmp/s msb-x 2>log & client=$!
        until [ -s log ]; do kill -0 $client || exit; curl -s --unix-socket l http://x/; sleep 0.1; done
        grep -o 'forwarding of Unix sockets.*' log | sort -u; kill $client";
    guests.shell(script).is(0, "forwarding of Unix sockets is not supported\r\n", "");
}

fn time_limits(guests: &Guests, ssh: &str) {
    // The client's own signs of life do not count.
    let idle =
        guests.shell(&format!("{ssh} -o ServerAliveInterval=1 -o LogLevel=INFO 'sleep 1000'"));
    assert!(stderr(&idle).contains("idle for 4 s"), "{idle:?}");
    let busy = guests.shell(&format!("{ssh} -o LogLevel=INFO 'while echo; do sleep 1; done'"));
    assert!(stderr(&busy).contains("the connection reached its time limit of 20 s"), "{busy:?}");
}
