//! Tests of the SDK, with the built programs and real sandboxes.
//!
//! Each test runs in a process of its own, which has its own state directory in its environment.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by a panic"
)]

#[path = "../examples/agent-loop.rs"]
#[allow(dead_code, reason = "its main is not called here")]
mod agent_loop;
#[path = "../examples/data-files.rs"]
#[allow(dead_code, reason = "its main is not called here")]
mod data_files;
#[path = "../examples/hello.rs"]
#[allow(dead_code, reason = "its main is not called here")]
mod hello;
#[path = "../examples/pool.rs"]
#[allow(dead_code, reason = "its main is not called here")]
mod pool;
#[path = "../examples/streaming.rs"]
#[allow(dead_code, reason = "its main is not called here")]
mod streaming;
#[path = "../examples/web-server.rs"]
#[allow(dead_code, reason = "its main is not called here")]
mod web_server;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use libmsb::sdk::{
    Access, Code, Error, ExecEvent, ExecOptions, ExecOutput, FailureKind, FileKind, Image,
    JobState, LogOptions, LogSource, PullPolicy, Rlimit, Sandbox, Snapshot, SnapshotOptions, State,
    Volume, VolumeOptions, WindowSize, all_sandbox_metrics,
};
use libmsb::state::Home;
use libmsb::state::lock::Lock;
use msb_wire::frame::{CONNECTION, FrameKind, put_message};
use msb_wire::handshake::{Hello, operation};

/// Environment variable that marks the process of a test.
const CHILD: &str = "MSB_TEST_SDK_CHILD";

const IMAGE: &str = "busybox:test";

/// Runs the test `name` in a process of its own.
#[track_caller]
fn in_process(name: &str, test: fn()) {
    if std::env::var_os(CHILD).is_some() {
        return test();
    }
    let home = tempfile::tempdir().unwrap();
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(bin) = std::env::var_os("MSB_TEST_BIN") {
        let directories = [PathBuf::from(bin)].into_iter().chain(std::env::split_paths(&path));
        path = std::env::join_paths(directories.collect::<Vec<_>>()).unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .env("MSB_HOME", home.path().join("state"))
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let left = Home::at(&home.path().join("state")).sandboxes().list().unwrap();
    for entry in left {
        assert!(!entry.seen.unwrap().state.is_active(), "{} runs on", entry.name);
    }
}

fn load() {
    let stage = std::env::var_os("MSB_TEST_STAGE")
        .expect("MSB_TEST_STAGE is not set: run the tests with tests/run");
    let archive = Path::new(&stage).join("fixtures/busybox.docker.tar");
    let status =
        Command::new("msb").args(["image", "load", "--quiet", "--input"]).arg(archive).status();
    assert!(status.unwrap().success());
}

#[track_caller]
fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    result.unwrap_err().code
}

#[test]
fn the_examples_do_what_they_say() {
    in_process("the_examples_do_what_they_say", || {
        load();
        let answers = ["echo $((6 * 7)) > /a", "cat /a; exit 3", "echo half; sleep 600", "yes"];
        let seen = agent_loop::agent_loop(IMAGE, &answers, Duration::from_secs(2)).unwrap();
        assert_eq!(seen[..3], ["exit code 0\n", "exit code 3\n42\n", "timed out\nhalf\n"]);
        assert!(seen[3].starts_with("timed out\ny\ny\n") && seen[3].ends_with("[cut]"));
        let mut events = Vec::new();
        streaming::streaming(IMAGE, &mut events).unwrap();
        let expected = "out: step 1\nout: step 2\nout: step 3\nerr: done\nexit code: 4\n\
                        cat: fed\ncat ended with 137\n";
        assert_eq!(String::from_utf8(events).unwrap(), expected);
        assert_eq!(data_files::sums(IMAGE, "n,c\na,1\nb,2\na,40\n").unwrap(), "a,41\nb,2\n");
        assert_eq!(pool::tasks(IMAGE, 2).unwrap(), ["task 0", "task 1"]);
        assert_eq!(web_server::page(IMAGE).unwrap(), "hello from the guest\n");
        let said = hello::hello(IMAGE).unwrap();
        assert_eq!(said, "hello from hello\nand back\nended with 0\n");
        assert_eq!(Sandbox::list().unwrap().len(), 0);
    });
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_touched() {
    in_process("what_cannot_be_is_refused_before_anything_is_touched", || {
        let builder = || Sandbox::builder("x").image(IMAGE);
        assert_eq!(code(builder().cpus(0).create()), Code::InvalidConfig);
        assert_eq!(code(builder().memory_mib(0).create()), Code::InvalidConfig);
        assert_eq!(code(Sandbox::builder("x").create()), Code::InvalidConfig);
        for name in ["", "../x", "a b", &"x".repeat(129)] {
            let named = Sandbox::builder(name).image(IMAGE);
            assert_eq!(code(named.create()), Code::InvalidConfig, "{name}");
        }
        assert!(!Home::from_env().unwrap().root().exists());
        assert_eq!(code(builder().pull(PullPolicy::Never).create()), Code::ImageNotFound);
        assert_eq!(code(Sandbox::get("x")), Code::SandboxNotFound);
        assert_eq!(code(Image::get(IMAGE)), Code::ImageNotFound);
    });
}

#[test]
fn a_sandbox_is_made_used_and_goes_with_its_maker() {
    in_process("a_sandbox_is_made_used_and_goes_with_its_maker", || {
        load();
        let builder = || Sandbox::builder("x").image(IMAGE).label("team", "ml");
        let sandbox = builder().memory_mib(256).create().unwrap();
        assert_eq!(sandbox.state().unwrap(), State::Running);
        assert_eq!(sandbox.spec().unwrap().memory_mib, 256);
        assert_eq!(code(builder().create()), Code::SandboxAlreadyExists);
        let options = ExecOptions {
            env: vec![("A".into(), "1".into())],
            user: Some("alice".into()),
            stdin: b"in".to_vec(),
            ..ExecOptions::default()
        };
        let script = "cat; echo $A; id -un >&2; exit 3";
        let output = sandbox.exec_with(["sh", "-c", script], options).unwrap();
        let expected = ExecOutput {
            code: 3,
            stdout: b"in1\n".to_vec(),
            stderr: b"alice\n".to_vec(),
            truncated: false,
        };
        assert_eq!(output, expected);
        // The output of a guest does not fill this process's memory.
        let options = ExecOptions { capture_max: Some(1000), ..ExecOptions::default() };
        let flood = "head -c 2000000 /dev/zero; echo short >&2; exit 4";
        let output = sandbox.exec_with(["sh", "-c", flood], options).unwrap();
        assert_eq!((output.code, output.truncated), (4, true));
        assert_eq!((output.stdout.len(), &*output.stderr), (1000, &b"short\n"[..]));
        let error = sandbox.exec(["/nowhere"]).unwrap_err();
        assert_eq!(
            (error.code, error.exec_failure),
            (Code::ExecFailed, Some(FailureKind::NotFound))
        );
        assert_eq!(code(sandbox.exec(Vec::<String>::new())), Code::InvalidConfig);
        let mut sleep = sandbox.exec_stream(["sleep", "1000"], ExecOptions::default()).unwrap();
        sleep.signal(15).unwrap();
        assert!(matches!(sleep.recv().unwrap(), Some(ExecEvent::Started(_))));
        assert_eq!(sleep.recv().unwrap(), Some(ExecEvent::Exited(143)));
        assert_eq!(sleep.recv().unwrap(), None);
        // The image cannot be removed while a sandbox of it exists, running or not.
        assert_eq!(code(Image::remove(IMAGE, false)), Code::ImageInUse);
        assert_eq!(code(sandbox.remove()), Code::SandboxStillRunning);
        assert_eq!(Sandbox::list_with(&["team=ml"]).unwrap().len(), 1);
        assert_eq!(Sandbox::list_with(&["team=web"]).unwrap().len(), 0);
        drop(sandbox);
        wait_for_the_end("x");
        let handle = Sandbox::get("x").unwrap();
        assert_eq!(code(handle.exec(["true"])), Code::SandboxNotRunning);
        handle.remove().unwrap();
        assert_eq!(Image::list().unwrap().len(), 1);
        Image::remove(IMAGE, false).unwrap();
        assert_eq!(Image::list().unwrap(), []);
    });
}

#[test]
fn a_snapshot_is_made_found_and_started_from() {
    in_process("a_snapshot_is_made_found_and_started_from", || {
        load();
        let sandbox = Sandbox::builder("x").image(IMAGE).create().unwrap();
        sandbox.exec(["sh", "-c", "echo kept > /note"]).unwrap();
        let options = SnapshotOptions { integrity: true, ..SnapshotOptions::default() };
        let snapshot = Snapshot::create("x", "one", &options).unwrap();
        assert_eq!(code(Snapshot::create("x", "one", &options)), Code::SnapshotAlreadyExists);
        assert_eq!(Snapshot::list().unwrap(), std::slice::from_ref(&snapshot));
        assert_eq!(Snapshot::get(&snapshot.digest).unwrap(), snapshot);
        snapshot.verify().unwrap();
        let copy = Sandbox::builder("y").from_snapshot("one").create().unwrap();
        assert_eq!(copy.exec(["cat", "/note"]).unwrap().stdout, b"kept\n");
        assert_eq!(
            code(Sandbox::builder("z").from_snapshot("none").create()),
            Code::SnapshotNotFound
        );
        let archive = Home::from_env().unwrap().root().join("one.tar.zst");
        snapshot.export(&archive).unwrap();
        snapshot.remove(false).unwrap();
        assert_eq!(code(Snapshot::get("one")), Code::SnapshotNotFound);
        assert_eq!(Snapshot::import(&archive).unwrap(), snapshot);
        drop((sandbox, copy));
        wait_for_the_end("x");
        wait_for_the_end("y");
    });
}

#[test]
fn a_detached_sandbox_stays_and_is_found_again() {
    in_process("a_detached_sandbox_stays_and_is_found_again", || {
        load();
        let sandbox = Sandbox::builder("x").image(IMAGE).detached(true).create().unwrap();
        drop(sandbox);
        let handle = Sandbox::get("x").unwrap();
        assert_eq!(handle.exec(["echo", "hi"]).unwrap().stdout, b"hi\n");
        handle.kill().unwrap();
        assert_eq!(handle.state().unwrap(), State::Stopped);
        // A sandbox that has stopped already is no error.
        handle.stop().unwrap();
        handle.start().unwrap();
        handle.stop().unwrap();
        handle.remove().unwrap();
        assert_eq!(code(handle.state()), Code::SandboxNotFound);
    });
}

/// Waits until a sandbox has ended by itself.
#[track_caller]
fn wait_for_the_end(name: &str) {
    let handle = Sandbox::get(name).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while handle.state().unwrap().is_active() {
        assert!(Instant::now() < deadline, "it runs on without its maker");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_sandbox_that_is_detached_outlives_its_maker_and_images_that_nobody_uses_are_pruned() {
    in_process(
        "a_sandbox_that_is_detached_outlives_its_maker_and_images_that_nobody_uses_are_pruned",
        || {
            load();
            let sandbox = Sandbox::builder("x").image(IMAGE).create().unwrap();
            let handle = sandbox.detach().unwrap();
            assert_eq!(handle.exec(["echo", "hi"]).unwrap().stdout, b"hi\n");
            // The image is in use.
            assert_eq!(Image::prune().unwrap().image_refs_removed, 0);
            handle.kill().unwrap();
            handle.remove().unwrap();
            let report = Image::prune().unwrap();
            assert_eq!((report.image_refs_removed, report.manifests_removed), (1, 1));
            assert!(report.layers_removed > 0 && report.bytes_reclaimed > Some(0));
            assert_eq!(Image::list().unwrap(), []);
        },
    );
}

/// Environment variable that marks the process that creates a sandbox and waits to be killed.
const MAKER: &str = "MSB_TEST_SDK_MAKER";

#[test]
fn a_maker_that_is_killed_takes_its_sandbox_down() {
    const NAME: &str = "a_maker_that_is_killed_takes_its_sandbox_down";
    in_process(NAME, || {
        if std::env::var_os(MAKER).is_some() {
            let sandbox = Sandbox::builder("x").image(IMAGE).create().unwrap();
            // Standard output is shared with the test harness: the test reads up to this line.
            println!("made {:?}", sandbox.state().unwrap());
            loop {
                std::thread::park();
            }
        }
        load();
        let mut maker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(MAKER, "1")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(maker.stdout.take().unwrap());
        let mut lines = std::io::BufRead::lines(lines).map(Result::unwrap);
        assert!(lines.any(|line| line.ends_with("made Running")));
        maker.kill().unwrap();
        maker.wait().unwrap();
        wait_for_the_end("x");
        assert_eq!(Sandbox::get("x").unwrap().state().unwrap(), State::Stopped);
    });
}

/// A supervisor of another release, which serves only stop requests.
#[test]
fn a_peer_that_lacks_an_operation_is_an_error_by_name() {
    in_process("a_peer_that_lacks_an_operation_is_an_error_by_name", || {
        let home = Home::from_env().unwrap();
        let name = "x".parse().unwrap();
        load();
        let made = Command::new("msb-create").args(["--no-start", "--name", "x", IMAGE]).status();
        assert!(made.unwrap().success());
        let directory = home.sandboxes().named(&name).dir;
        let _alive = Lock::exclusive(&directory.join("lock")).unwrap();
        let socket = home.agent_socket(&name);
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut out = Vec::new();
            let hello = Hello::of("msb-supervisor 0.0.1", &[operation::STOP]);
            let hello = serde_json::to_vec(&hello).unwrap();
            put_message(&mut out, CONNECTION, FrameKind::Hello, 0, &hello);
            peer.write_all(&out).unwrap();
            // Stays open until the other side has read it.
            let _ = peer.read_to_end(&mut Vec::new());
        });
        let error = Sandbox::get("x").unwrap().exec(["true"]).unwrap_err();
        assert_eq!(error.code, Code::UnsupportedOperation);
        assert_eq!(error.message, "\"msb-supervisor 0.0.1\" does not know the operation 'exec'");
    });
}

#[test]
fn a_sandbox_has_mounts_scripts_files_logs_and_metrics() {
    in_process("a_sandbox_has_mounts_scripts_files_logs_and_metrics", || {
        load();
        let shared = tempfile::tempdir().unwrap();
        std::fs::write(shared.path().join("f"), "shared").unwrap();
        let volume = Volume::create("cache", &VolumeOptions::default()).unwrap();
        assert_eq!(
            code(Volume::create("cache", &VolumeOptions::default())),
            Code::VolumeAlreadyExists
        );
        assert_eq!((volume.kind.as_str(), Volume::names().unwrap().len()), ("dir", 1));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let sandbox = Sandbox::builder("full")
            .image(IMAGE)
            .upper_size_mib(512)
            .mount(shared.path(), "/shared", Access::ReadOnly)
            .mount_volume("cache", "/cache", Access::ReadWrite)
            .tmpfs("/mem", 8)
            .script("hi", "echo script")
            .mkdir("/made")
            .copy(&shared.path().join("f"), "/made/f")
            .port(port, 8000)
            .net_default("deny")
            .max_connections(7)
            .shell("/bin/sh")
            .metrics_interval(Duration::from_millis(200))
            .create()
            .unwrap();
        let script = "cat /shared/f /made/f; hi; touch /shared/x 2>/dev/null || echo read-only; \
                      echo kept > /cache/k";
        let output = sandbox.shell(script).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "sharedsharedscript\nread-only\n");
        sandbox.copy_to_host("/made", &shared.path().join("back")).unwrap();
        assert_eq!(std::fs::read(shared.path().join("back/f")).unwrap(), b"shared");
        sandbox.copy_from_host(&shared.path().join("f"), "/made/g").unwrap();
        assert_eq!(sandbox.exec(["cat", "/made/g"]).unwrap().stdout, b"shared");

        let options = || ExecOptions { log: true, ..ExecOptions::default() };
        let limit = Rlimit { resource: "nofile".to_owned(), soft: Some(17), hard: Some(17) };
        let limited = ExecOptions { rlimits: vec![limit], ..options() };
        let output = sandbox.exec_with(["sh", "-c", "ulimit -n"], limited).unwrap();
        assert_eq!(output.stdout, b"17\n");
        assert!(sandbox.logs().unwrap().iter().any(|entry| entry.data == b"17\n"));
        let size = WindowSize { rows: 24, cols: 80 };
        let on_terminal = ExecOptions { tty: Some(size), ..options() };
        let output = sandbox.exec_with(["stty", "size"], on_terminal).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "24 80");
        let timeout = ExecOptions { timeout: Some(Duration::from_millis(500)), ..options() };
        let slow = sandbox.exec_with(["sleep", "600"], timeout);
        assert_eq!(code(slow), Code::ExecTimeout);
        let mut sleeping = sandbox.exec_stream(["sleep", "601"], options()).unwrap();
        sleeping.kill().unwrap();
        assert_eq!(sleeping.wait().unwrap(), 137);
        assert!(sleeping.pid().is_some() && !sleeping.oom_killed());
        let left = sandbox.shell("ps | grep '[s]leep 60' || echo none").unwrap();
        assert_eq!(left.stdout, b"none\n");

        let metrics = sandbox.metrics().unwrap();
        assert_eq!(metrics.memory_limit_bytes, Some(512 << 20));
        let handle = Sandbox::get("full").unwrap();
        sandbox.stop().unwrap();
        let end = handle.wait().unwrap();
        assert_eq!((end.status, end.reason.as_deref()), (State::Stopped, Some("stop_requested")));
        sandbox.remove().unwrap();
        Volume::remove("cache").unwrap();
        assert_eq!(code(Volume::get("cache")), Code::VolumeNotFound);

        let detail = Image::inspect(IMAGE).unwrap();
        assert_eq!(detail.layers.len() as u64, detail.image.layer_count);
        assert!(detail.config.digest.unwrap().starts_with("sha256:"));
        let archive = shared.path().join("image.tar");
        Image::save(&archive, &[IMAGE]).unwrap();
        Image::remove(IMAGE, false).unwrap();
        Image::load(&archive).unwrap();
        assert!(Image::get(IMAGE).is_ok());
    });
}

/// Checks the files of a sandbox, with several threads on one session.
fn files(sandbox: &Sandbox) {
    let files = sandbox.fs();
    files.mkdir("/work/deep/er").unwrap();
    files.mkdir("/work/deep/er").unwrap();
    let large: Vec<u8> = (0..3_000_001_u32).map(|index| (index % 251) as u8).collect();
    files.write("/work/large", &large).unwrap();
    assert!(files.read("/work/large").unwrap() == large);
    let sum = sandbox.shell("md5sum < /work/large; wc -c < /work/large").unwrap().stdout_text();
    assert!(sum.ends_with("\n3000001\n"), "{sum}");
    std::thread::scope(|scope| {
        for index in 0..8 {
            let files = &files;
            scope.spawn(move || {
                let path = format!("/work/deep/{index}");
                for turn in 0..20 {
                    files.write(&path, format!("{index} {turn}")).unwrap();
                    assert_eq!(files.read_to_string(&path).unwrap(), format!("{index} {turn}"));
                }
            });
        }
    });
    assert_eq!(code(files.read("/work/none")), Code::NotFound);
    assert_eq!(code(files.write("/none/f", "x")), Code::NotFound);
    // As with OpenSSH: ENOTDIR is "no such file".
    assert_eq!(code(files.list("/work/large")), Code::NotFound);
    assert!(!files.exists("/work/none").unwrap() && files.exists("/work/large").unwrap());
    files.copy("/work/large", "/work/copy").unwrap();
    files.chmod("/work/copy", 0o640).unwrap();
    files.chown("/work/copy", 12, 34).unwrap();
    let stat = files.stat("/work/copy").unwrap();
    assert_eq!((stat.kind, stat.size, stat.mode), (FileKind::File, 3_000_001, 0o640));
    assert_eq!((stat.uid, stat.gid), (12, 34));
    files.rename("/work/copy", "/work/moved").unwrap();
    files.symlink("/work/moved", "/work/link").unwrap();
    assert_eq!(files.read_link("/work/link").unwrap(), "/work/moved");
    assert_eq!(files.real_path("/work/link").unwrap(), "/work/moved");
    assert_eq!(files.stat_with_follow("/work/link", false).unwrap().kind, FileKind::Symlink);
    let names: Vec<String> =
        files.list("/work").unwrap().into_iter().map(|entry| entry.path).collect();
    assert_eq!(names, ["/work/deep", "/work/large", "/work/link", "/work/moved"]);
    let mut stream = files.write_stream("/work/stream").unwrap();
    for piece in ["one", " two", " three"] {
        stream.write_all(piece.as_bytes()).unwrap();
    }
    stream.close().unwrap();
    let mut start = [0; 7];
    files.read_stream("/work/stream").unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"one two");
    // A full file system is an error of the write, not of a later call.
    assert_eq!(code(files.write("/small/f", &large)), Code::Failed);
    assert_eq!(code(files.remove_empty_dir("/work")), Code::Failed);
    assert_eq!(code(files.remove_dir("/work/link")), Code::Failed);
    files.remove("/work/link").unwrap();
    files.remove_dir("/work").unwrap();
    assert!(!files.exists("/work").unwrap());
}

#[test]
fn files_jobs_logs_ports_and_sessions_of_a_sandbox() {
    in_process("files_jobs_logs_ports_and_sessions_of_a_sandbox", || {
        load();
        let builder = Sandbox::builder("all").image(IMAGE).envs([("A", "1"), ("B", "2")]);
        let builder = builder.labels([("k", "v")]).scripts([("two", "echo $A$B")]);
        let sandbox = builder
            .metrics_interval(Duration::from_millis(100))
            .port_udp(free_port(), 53)
            .ipv4_pool("10.99.0.0/24")
            .tmpfs("/small", 1)
            .detached(true)
            .create()
            .unwrap();
        assert!(!sandbox.owns_lifecycle());
        assert!(sandbox.ping().unwrap() < Duration::from_secs(60));
        assert_eq!(sandbox.shell("two; exit 5").unwrap().stdout_text(), "12\n");
        files(&sandbox);

        // Input from another thread, which closes it, and control from a third.
        let mut cat = sandbox.exec_stream(["cat"], ExecOptions::default()).unwrap();
        let mut stdin = cat.take_stdin().unwrap();
        assert!(cat.take_stdin().is_none());
        let feeder = std::thread::spawn(move || stdin.write_all(&vec![b'x'; 1 << 20]).unwrap());
        let mut count = 0;
        while let Some(event) = cat.recv().unwrap() {
            match event {
                ExecEvent::Started(pid) => assert!(pid > 0),
                ExecEvent::Stdout(bytes) => count += bytes.len(),
                ExecEvent::Stderr(bytes) => panic!("{bytes:?}"),
                ExecEvent::Exited(code) => assert_eq!(code, 0),
            }
        }
        feeder.join().unwrap();
        assert_eq!(count, 1 << 20);
        // More input than fits into the window, for a command that reads and for one that does not.
        let stdin = vec![b'x'; 3 << 20];
        let long = || ExecOptions { stdin: stdin.clone(), ..ExecOptions::default() };
        assert_eq!(sandbox.exec_with(["wc", "-c"], long()).unwrap().stdout_text(), "3145728\n");
        assert_eq!(sandbox.exec_with(["true"], long()).unwrap().code, 0);
        let sleep = sandbox.exec_stream(["sleep", "900"], ExecOptions::default()).unwrap();
        let control = sleep.control();
        let killer = std::thread::spawn(move || control.kill().unwrap());
        assert_eq!(sleep.collect().unwrap().code, 137);
        killer.join().unwrap();

        // A job and its output, from another handle.
        let job =
            sandbox.start_job(["sh", "-c", "echo from job; cat; exit 7"], &ExecOptions::default());
        let job = Sandbox::get("all").unwrap().job(job.unwrap().id()).unwrap();
        assert_eq!(job.wait().unwrap(), 7);
        assert_eq!(job.info().unwrap().status, JobState::Exited);
        let printed: Vec<_> =
            job.log_stream(&LogOptions::default()).unwrap().map(Result::unwrap).collect();
        assert_eq!((printed.len(), &*printed[0].data), (1, &b"from job\n"[..]));
        let slow = sandbox.start_job(["sleep", "901"], &ExecOptions::default()).unwrap();
        slow.kill().unwrap();
        assert_eq!(slow.wait().unwrap(), 137);
        assert_eq!(sandbox.jobs().unwrap().len(), 2);
        assert_eq!(code(sandbox.job("nothing")), Code::NotFound);

        // Entries of the log that come while it is read, and a cursor.
        let commands =
            LogOptions { sources: LogSource::COMMANDS.to_vec(), ..LogOptions::default() };
        let mut follow =
            sandbox.log_stream(&LogOptions { follow: true, ..commands.clone() }).unwrap();
        assert_eq!(follow.recv().unwrap().unwrap().data, b"from job\n");
        let cursor = follow.cursor().unwrap().to_owned();
        let logged = ExecOptions { log: true, ..ExecOptions::default() };
        sandbox.exec_with(["echo", "later"], logged).unwrap();
        assert_eq!(follow.recv().unwrap().unwrap().data, b"later\n");
        let after = LogOptions { from_cursor: Some(cursor), ..commands };
        let mut rest = sandbox.log_stream(&after).unwrap();
        assert_eq!(rest.recv().unwrap().unwrap().data, b"later\n");
        assert_eq!(rest.recv().unwrap(), None);

        let mut samples = sandbox.metrics_stream(Duration::from_millis(200)).unwrap();
        let uptimes: Vec<_> =
            (0..3).map(|_| samples.recv().unwrap().unwrap().uptime_secs.unwrap()).collect();
        assert!(uptimes.is_sorted() && uptimes[0] < uptimes[2], "{uptimes:?}");
        assert_eq!(all_sandbox_metrics().unwrap().keys().collect::<Vec<_>>(), ["all"]);

        // A server on a port that is not published.
        let server = "printf 'HTTP/1.0 200 OK\\r\\n\\r\\nhi' | nc -l -p 8000";
        sandbox.start_job(["sh", "-c", server], &ExecOptions::default()).unwrap();
        let connect = || sandbox.connect_tcp("127.0.0.1", 8000, Duration::from_secs(5));
        let mut peer = retried(connect);
        peer.writer().shutdown().unwrap();
        let mut answer = String::new();
        peer.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("\r\n\r\nhi"), "{answer}");
        assert_eq!(code(sandbox.connect_tcp("127.0.0.1", 9, Duration::from_secs(5))), Code::Failed);

        let session = sandbox.ssh().open_client("alice").unwrap();
        let output = session.exec("id -un; echo $HOME").unwrap();
        assert_eq!(output.stdout_text(), "alice\n/home/alice\n");
        assert_eq!(code(session.sftp().write("/etc/passwd", "x")), Code::Failed);
        assert_eq!(sandbox.attach(["sh", "-c", "exit 9"]).unwrap(), 9);

        // The stream of logs and the samples end with the sandbox.
        let snapshot = sandbox.snapshot_to("at-end", &SnapshotOptions::default()).unwrap();
        sandbox.drain().unwrap();
        assert_eq!(samples.find_map(Result::err), None);
        assert_eq!(follow.find_map(Result::err), None);
        assert_eq!(code(sandbox.fs().read("/etc/passwd")), Code::SandboxNotRunning);
        assert_eq!(code(sandbox.ping()), Code::SandboxNotRunning);
        assert_eq!(Snapshot::reindex().unwrap(), 1);
        snapshot.remove(false).unwrap();
        // Started again, the sandbox ends with what started it.
        drop(Sandbox::start("all").unwrap());
        wait_for_the_end("all");
        Sandbox::start_detached("all").unwrap().kill().unwrap();
        assert_eq!(Volume::list().unwrap(), []);
        Sandbox::remove("all").unwrap();
    });
}

/// Repeats a call that fails until a server in the guest listens.
fn retried<T>(call: impl Fn() -> Result<T, Error>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
