//! Common network programs, in a real guest, against servers of the host. See tests/parts/net.

use std::net::{TcpListener, UdpSocket};
use std::thread;

use crate::support::names::Names;
use crate::support::{Guests, Home, Running, stage};

/// The guest's name for its host.
const HOST: &str = "host.microsandbox.internal";

/// A guest that may reach its host, with programs.
fn traveller(policy: &[&str]) -> Guests {
    let home = Home::new();
    let tar = stage("net/traveller.tar");
    let image = "traveller:test";
    home.run(["image", "import", "-q", "-i", tar.to_str().unwrap(), image]).done();
    Guests::of(home, &[&["-m", "512M"], policy, &[image]].concat())
}

/// Runs a script in the guest, each command of which must do well.
#[track_caller]
fn done(guests: &Guests, script: &str) -> String {
    let script = format!("set -e; {script}");
    guests.run(["exec", "x", "--", "sh", "-c", &script]).done()
}

/// Python's web server, of a directory of the home.
fn serve_web(home: &Home, directory: &str) -> (Running, u16) {
    let mut command = home.program("/usr/bin/python3");
    command.args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "-d", directory, "0"]);
    let mut server = Running::start(command);
    server.read_until(" port ");
    let port = server.read_until(" ").trim().parse().unwrap();
    (server, port)
}

/// Git's own server, of a directory of the home.
fn serve_git(home: &Home, directory: &str) -> (Running, u16) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let base = format!("--base-path={}", home.directory.join(directory).display());
    let mut command = home.program("/usr/lib/git-core/git-daemon");
    command.args(["--listen=127.0.0.1", "--reuseaddr", "--export-all", &base]);
    command.arg(format!("--port={port}"));
    (Running::start(command), port)
}

/// Python finds the host's packages by the host's name and in an index as PyPI's.
#[test]
fn pip_installs_from_a_server_of_the_host() {
    let guests = traveller(&["--net", "host"]);
    let make = r#"
        mkdir -p site/simple/greeting greeting greeting-1.dist-info
        echo 'text = "installed"' >greeting/__init__.py
        printf 'Metadata-Version: 2.1\nName: greeting\nVersion: 1\n' >greeting-1.dist-info/METADATA
        printf 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n' >greeting-1.dist-info/WHEEL
        : >greeting-1.dist-info/RECORD
        wheel=greeting-1-py3-none-any.whl
        python3 -m zipfile -c site/simple/greeting/$wheel greeting greeting-1.dist-info
        echo "<a href=\"$wheel#sha256=$(sha256sum <site/simple/greeting/$wheel | cut -c1-64)\">$wheel</a>" >site/simple/greeting/index.html
    "#;
    guests.shell(make).done();
    let (_server, port) = serve_web(&guests, "site");
    let script = format!(
        "python3 -m pip install -q --break-system-packages --root-user-action ignore --trusted-host {HOST} \
         --index-url http://{HOST}:{port}/simple greeting 2>&1; python3 -c 'import greeting; print(greeting.text)'"
    );
    assert_eq!(done(&guests, &script), "installed\n");
}

#[test]
fn curl_and_git_fetch_from_servers_of_the_host() {
    let guests = traveller(&["--net", "host"]);
    let make = "
        mkdir -p site git; head -c 5000000 /dev/urandom >site/large
        git init -q source; cd source; git config user.name a; git config user.email a@b
        for n in 1 2 3; do head -c 300000 /dev/urandom >file$n; git add .; git commit -qm $n; done
        cd ..; git clone -q --bare source git/repository; git clone -q --bare source site/repository
        git -C site/repository update-server-info; sha256sum <site/large | cut -c1-64; git -C source rev-parse HEAD";
    let made = guests.shell(make).done();
    let (hash, head) = made.trim().split_once('\n').unwrap();
    let (_web, web) = serve_web(&guests, "site");
    let fetch = format!("curl -sS http://{HOST}:{web}/large | sha256sum | cut -c1-64");
    assert_eq!(done(&guests, &fetch).trim(), hash);
    // By the other family, and what is not there.
    let more = format!(
        "curl -4 -sS http://{HOST}:{web}/large | wc -c; curl -s -o /dev/null -w '%{{http_code}}' http://{HOST}:{web}/none"
    );
    assert_eq!(done(&guests, &more), "5000000\n404");
    let (_git, git) = serve_git(&guests, "git");
    for url in [format!("git://{HOST}:{git}/repository"), format!("http://{HOST}:{web}/repository")]
    {
        let clone = format!(
            "rm -rf /clone; git clone -q {url} /clone; cd /clone; git fsck 2>&1; git rev-parse HEAD"
        );
        assert_eq!(done(&guests, &clone).trim(), head, "{url}");
    }
}

#[test]
fn dig_asks_over_udp_and_tcp_and_whoever_asks_for_a_denied_name_hears_that_there_is_none() {
    let names = Names::start("ok.test", [93, 184, 216, 34]);
    let server = names.server();
    let guests = traveller(&["--net-rule", "allow@ok.test", "--dns-nameserver", &server]);
    let dig = "
        for over in +notcp +tcp '+notcp @8.8.8.8' '+tcp @8.8.8.8'; do dig +short $over ok.test; done
        for over in +notcp +tcp; do dig $over secret.evil.test | grep -o 'status: [A-Z]*'; done";
    let address = "93.184.216.34\n";
    assert_eq!(
        done(&guests, dig),
        format!("{address}{address}{address}{address}status: NXDOMAIN\nstatus: NXDOMAIN\n")
    );
    // The C library says that there is no such name, and not that it should be asked again.
    let ask = r#"
import socket
print(socket.getaddrinfo("ok.test", 443, socket.AF_INET, socket.SOCK_STREAM)[0][4])
try:
    socket.getaddrinfo("secret.evil.test", 443)
except socket.gaierror as error:
    print(error.errno == socket.EAI_NONAME)
"#;
    guests.run_with(["exec", "-i", "x", "--", "python3", "-"], ask.as_bytes()).is(
        0,
        "('93.184.216.34', 443)\nTrue\n",
        "",
    );
    let asked = names.asked();
    assert!(!asked.is_empty() && asked.iter().all(|name| name == "ok.test"), "{asked:?}");
}

#[test]
fn a_websocket_carries_messages_both_ways() {
    let guests = traveller(&["--net", "host"]);
    let mut command = guests.program("/usr/bin/python3");
    command.args(["-c", include_str!("../support/websocket.py")]);
    let mut server = Running::start(command);
    let port = server.read_until("\n");
    let client = format!(
        r#"
import asyncio, websockets
async def main():
    async with websockets.connect("ws://{HOST}:{}/", max_size=None) as socket:
        for message in ["text", bytes(range(256)) * 2000, "x" * 70000]:
            await socket.send(message)
            print(await socket.recv() == message)
        await (await socket.ping())
asyncio.run(main())
"#,
        port.trim()
    );
    guests.run_with(["exec", "-i", "x", "--", "python3", "-"], client.as_bytes()).is(
        0,
        "True\nTrue\nTrue\n",
        "",
    );
    let said = String::from_utf8(server.finish().stdout).unwrap();
    assert_eq!(said, "1 4\n2 512000\n1 70000\n9 4\n8 2\n");
}

#[test]
fn iperf3_measures_both_directions_over_tcp_and_udp() {
    let guests = traveller(&["--net", "host"]);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = guests.program("/usr/bin/iperf3");
    command.args(["--server", "--bind", "127.0.0.1", "--forceflush", "--port", &port.to_string()]);
    let mut server = Running::start(command);
    server.read_until("Server listening");
    // More than fits into the buffers on the way: the receiver counts what it has read when the
    // sender ends.
    for options in [
        "--bytes 64M",
        "--bytes 64M --reverse",
        "--bytes 64M --parallel 4",
        "--bytes 4M --udp --bitrate 2M --length 60000",
    ] {
        let measure = format!("iperf3 -4 --json --client {HOST} --port {port} {options}");
        let report: serde_json::Value = serde_json::from_str(&done(&guests, &measure)).unwrap();
        assert!(report.get("error").is_none(), "{options}: {report}");
        // What is on its way when the client ends is in no figure of the receiver's, and datagrams
        // may be lost.
        let bytes = |of: &str| report["end"][of]["bytes"].as_u64().unwrap_or_default();
        let figures = if options.contains("udp") {
            (bytes("sum"), bytes("sum"))
        } else {
            (bytes("sum_sent"), bytes("sum_received"))
        };
        let end = &report["end"];
        assert!(figures.0 >= 4 << 20 && figures.1 > 0, "{options}: {end}");
    }
}

#[test]
fn datagrams_of_sixty_kilobytes_go_both_ways() {
    let guests = traveller(&["--net", "host"]);
    for (address, family) in [("127.0.0.1:0", "INET"), ("[::1]:0", "INET6")] {
        let socket = UdpSocket::bind(address).unwrap();
        let port = socket.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            let (count, peer) = socket.recv_from(&mut buffer).unwrap();
            buffer[..count].reverse();
            socket.send_to(&buffer[..count], peer).unwrap();
            count
        });
        let client = format!(
            r#"
import os, socket
peer = socket.getaddrinfo("{HOST}", {port}, socket.AF_{family}, socket.SOCK_DGRAM)[0][4]
s = socket.socket(socket.AF_{family}, socket.SOCK_DGRAM)
bytes = os.urandom(60000)
s.sendto(bytes, peer)
print(s.recv(65536) == bytes[::-1])
"#
        );
        guests
            .run_with(["exec", "-i", "x", "--", "python3", "-"], client.as_bytes())
            .is(0, "True\n", "");
        assert_eq!(server.join().unwrap(), 60_000);
    }
}
