//! A sandbox as an SSH host, seen by OpenSSH's own programs.

use std::net::{TcpListener, TcpStream};

use crate::support::{Guests, Home, Outcome, Random, Running, wait_until};

const BYTES: usize = 3_000_000;

/// A guest `x`, a file `big`, and a configuration `cfg` in which ssh(1) knows the guest as `msb-x`.
fn host() -> Guests {
    let guests = Guests::one();
    let mut bytes = vec![0; BYTES];
    Random::new(11).fill(&mut bytes);
    std::fs::write(guests.folder.join("big"), bytes).unwrap();
    guests.shell("msb ssh config x >cfg").is(0, "", "");
    guests
}

fn stderr(outcome: &Outcome) -> String {
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
    guests
        .shell("ssh -F cfg msb-x 'id -u; echo $HOME'")
        .is(0, "0\n/root\n", "");
    // What a terminal adds is the terminal's.
    guests
        .shell("ssh -F cfg -tt msb-x 'test -t 0 && echo a terminal' </dev/null 2>/dev/null")
        .is(0, "a terminal\r\n", "");
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
    guests
        .shell(&format!(
            "printf '{batch}' | sftp -q -b - -F cfg msb-x >/dev/null"
        ))
        .is(0, "", "");
    let look = "cd /tmp/d; ls; readlink l; stat -c %a b; cmp b /tmp/big";
    guests
        .run(["exec", "x", "--", "sh", "-c", look])
        .is(0, "b\nl\nb\n640\n", "");
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
        guests
            .shell("echo here | timeout 20 ssh -F cfg -W 127.0.0.1:9000 msb-x 2>/dev/null")
            .stdout
            == b"here\n"
    });
    guests
        .shell("ssh -F cfg -W 127.0.0.1:9000 msb-x <big | cmp - big")
        .is(0, "", "");
    let refused = guests.shell("ssh -F cfg -W 127.0.0.1:9 msb-x </dev/null");
    assert_eq!(refused.code, 255, "{refused:?}");
    assert!(
        stderr(&refused).contains("connection refused"),
        "{refused:?}"
    );
}

/// A server on a port of its own, and the port.
fn serve(home: &Home) -> (Running, u16) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let server = home.start(["ssh", "serve", "x", "--port", &port.to_string()]);
    wait_until("the server listens", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    (server, port)
}

#[test]
fn who_has_no_key_stays_out_and_a_key_may_do_what_its_line_says() {
    let guests = host();
    guests
        .shell("for k in one two other; do ssh-keygen -q -t ed25519 -N '' -f $k; done")
        .done();
    let none = guests.run(["ssh", "serve", "x", "--port", "0"]);
    assert_eq!(none.code, 1, "{none:?}");
    assert!(stderr(&none).contains("no key is let in yet"), "{none:?}");
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
    assert!(
        stderr(&refused).contains("Permission denied"),
        "{refused:?}"
    );
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
    assert!(
        stderr(&outcome).contains("the sandbox 'x' has ended"),
        "{outcome:?}"
    );
    let stopped = guests.run(["ssh", "x", "--", "true"]);
    assert!(stderr(&stopped).contains("is not running"), "{stopped:?}");
    assert!(
        stderr(&stopped).contains("hint: start it: msb start x"),
        "{stopped:?}"
    );
}

#[test]
fn an_audit_finds_nothing_that_fails() {
    let guests = host();
    guests
        .shell("ssh-keygen -q -t ed25519 -N '' -f one && msb ssh authorize --file one.pub")
        .done();
    let (_server, port) = serve(&guests);
    let audit = guests.shell(&format!(
        "ssh-audit -n -p {port} 127.0.0.1 | grep -F '[fail]'"
    ));
    audit.is(1, "", "");
}
