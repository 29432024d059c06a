//! Images on their way through other programs and back, and to another host: skopeo, podman,
//! buildah, umoci, sshd.
//!
//! Who an image is is said by its configuration's digest and by the digests of its layers' tars;
//! both must stay.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::save::content;
use crate::support::{Home, Outcome, Running, fixture, wait_until};

/// Image ID and layers, as `msb image inspect` has them.
fn identity(home: &Home, image: &str) -> (String, Vec<String>) {
    let text = home.run(["image", "inspect", "--format", "json", image]).done();
    let details: Value = serde_json::from_str(&text).unwrap();
    let layers = details["layers"].as_array().unwrap().iter();
    let id = details["config"]["digest"].as_str().unwrap();
    let layers = layers.map(|layer| layer["diff_id"].as_str().unwrap().to_owned());
    (id.to_owned(), layers.collect())
}

/// Runs a script with storage and locks of its own for podman and buildah, which need no privilege
/// then. By default podman's locks are shared memory under the user's ID, which another user may
/// have left there.
#[track_caller]
fn with_tools(home: &Home, script: &str) -> String {
    let storage = home.directory.join("storage");
    let settings = format!(
        "set -eu\nexport XDG_RUNTIME_DIR=$PWD TMPDIR=$PWD CONTAINERS_CONF=$PWD/containers.conf\n\
         printf '[engine]\\nlock_type = \"file\"\\n' >containers.conf\n\
         storage='--root {0}/root --runroot {0}/run --storage-driver vfs'\n\
         P=\"podman --log-level error $storage\"; B=\"buildah --log-level error $storage\"\n\
         S='skopeo --insecure-policy copy --quiet'\n",
        storage.display()
    );
    let outcome = home.shell(&format!("{settings}{script}"));
    // Files of other users can only be removed as they were made. What podman leaves behind holds
    // the view of them.
    let tidy = format!(
        "export XDG_RUNTIME_DIR=$PWD CONTAINERS_CONF=$PWD/containers.conf; [ ! -d {0} ] || podman unshare rm -rf {0}\n\
         for file in $(find $PWD -name pause.pid); do kill $(cat $file); rm $file; done",
        storage.display()
    );
    home.shell(&tidy).done();
    outcome.done()
}

/// Two images with one layer in common, in a home.
fn two_images() -> Home {
    Home::with(&["busybox.docker.tar", "configured.docker.tar"])
}

const BUSYBOX: &str = "docker.io/library/busybox:test";
const CONFIGURED: &str = "localhost/msb-test/configured:v1";

#[track_caller]
fn same_images(expected: &Home, found: &Home, images: &[&str]) {
    for image in images {
        assert_eq!(identity(expected, image), identity(found, image), "{image}");
    }
    found.run(["image", "check", "-q"]).is(0, "", "");
}

#[test]
fn podman_takes_and_gives_both_forms_with_one_image_and_with_many() {
    let home = two_images();
    let many = format!(
        "msb save -q -o many.tar {BUSYBOX} {CONFIGURED}\n\
         $P load -q -i many.tar >/dev/null\n\
         $P image inspect --format '{{{{.Id}}}}' {BUSYBOX} {CONFIGURED}\n\
         $P save -q -m --format docker-archive -o back.tar {BUSYBOX} {CONFIGURED}\n"
    );
    let ids = with_tools(&home, &many);
    let expected: Vec<String> = [BUSYBOX, CONFIGURED]
        .iter()
        .map(|image| identity(&home, image).0.replace("sha256:", ""))
        .collect();
    assert_eq!(ids.lines().collect::<Vec<_>>(), expected);
    let back = Home::new();
    back.run(["load", "-q", "-i", home.directory.join("back.tar").to_str().unwrap()]).is(0, "", "");
    same_images(&home, &back, &[BUSYBOX, CONFIGURED]);
    for (form, theirs) in [("docker", "docker-archive"), ("oci", "oci-archive")] {
        for compress in ["", "--compress gzip", "--compress zstd"] {
            // podman cannot write zstd in the form of Docker.
            let theirs = if compress.ends_with("zstd") { "oci-archive" } else { theirs };
            let one = format!(
                "rm -f back.tar\nmsb save -q --format {form} {compress} -o one.tar {CONFIGURED}\n\
                 $P load -q -i one.tar >/dev/null\n$P save -q --format {theirs} -o back.tar {CONFIGURED}\n"
            );
            with_tools(&home, &one);
            let back = Home::new();
            back.run(["load", "-q", "-i", home.directory.join("back.tar").to_str().unwrap()])
                .is(0, "", "");
            same_images(&home, &back, &[CONFIGURED]);
        }
    }
}

#[test]
fn buildah_runs_what_was_saved() {
    let home = two_images();
    for form in ["docker", "oci"] {
        let archive = if form == "docker" { "docker-archive" } else { "oci-archive" };
        let script = format!(
            "msb save -q --format {form} -o one.tar {BUSYBOX}\n\
             id=$($B from --quiet {archive}:one.tar)\n\
             $B run --isolation chroot $id -- /bin/busybox sh -c 'echo ran with $FROM_IMAGE'\n$B rm $id >/dev/null\n"
        );
        assert_eq!(with_tools(&home, &script), "ran with image\n", "{form}");
    }
}

#[test]
fn skopeo_reads_what_was_saved_and_gives_back_the_same_image() {
    let home = Home::with(&["busybox.docker.tar", "layers.oci-gzip.tar"]);
    let image = "docker.io/msb-test/layers:gzip";
    let (id, layers) = identity(&home, image);
    let script = format!(
        "msb save -q -o both.tar {BUSYBOX} {image}\n\
         skopeo inspect docker-archive:both.tar:{image}\n"
    );
    let seen: Value = serde_json::from_str(&with_tools(&home, &script)).unwrap();
    assert_eq!(seen["Layers"], serde_json::json!(layers));
    // From one kind to the other skopeo writes the configuration anew; then only the layers can be
    // the same.
    for (from, to) in [
        ("docker-archive", "docker-archive"),
        ("docker-archive", "oci-archive"),
        ("oci-archive", "oci-archive"),
        ("oci-archive", "docker-archive"),
    ] {
        let copy = format!("rm -f back.tar\n$S {from}:both.tar:{image} {to}:back.tar:{image}\n");
        with_tools(&home, &copy);
        let back = Home::new();
        back.run(["load", "-q", "-i", home.directory.join("back.tar").to_str().unwrap()])
            .is(0, "", "");
        let found = identity(&back, image);
        assert_eq!(found.1, layers, "{from} to {to}");
        if from == to {
            assert_eq!(found.0, id, "{from}");
        }
    }
    // A manifest of plain layers stays as it is, down to its digest.
    let manifest =
        "skopeo inspect --raw oci-archive:both.tar:docker.io/library/busybox:test | sha256sum\n";
    let digest = with_tools(&home, manifest);
    let stored = content(&home, "images/manifests");
    let hex = digest.split(' ').next().unwrap();
    assert!(stored.iter().any(|line| line.contains(hex)), "{hex}: {stored:#?}");
}

#[test]
fn umoci_reads_the_image_layout_that_was_saved_and_changes_it() {
    let home = Home::with_busybox();
    let script = format!(
        "msb save -q --format oci -o one.tar {BUSYBOX}\n\
         mkdir layout\ntar -C layout -xf one.tar\n\
         umoci stat --json --image layout:{BUSYBOX} >stat.json\n\
         umoci unpack --rootless --image layout:{BUSYBOX} bundle\n\
         cmp /bin/busybox bundle/rootfs/bin/busybox\n\
         umoci config --image layout:{BUSYBOX} --tag changed --config.workingdir /tmp\n\
         $S oci:layout:changed oci-archive:changed.tar:localhost/changed:1\n\
         msb load -q -i changed.tar\n"
    );
    with_tools(&home, &script);
    let (id, layers) = identity(&home, BUSYBOX);
    let (changed_id, changed_layers) = identity(&home, "localhost/changed:1");
    assert_eq!(layers, changed_layers);
    assert_ne!(id, changed_id);
    home.run(["image", "check", "-q"]).is(0, "", "");
}

/// A server on loopback that takes one key, run by the user of the tests. What it starts finds
/// programs in the `PATH` that sshd gives by default: there, in a view of the file system of its
/// own, `/usr/local/bin` has what was installed.
struct Server {
    _running: Running,
    directory: PathBuf,
    port: u16,
}

impl Server {
    fn start(home: &Home, remote: &Home) -> Server {
        let directory = home.directory.join("ssh");
        fs::create_dir(&directory).unwrap();
        let keys = "ssh-keygen -q -t ed25519 -N '' -f host && ssh-keygen -q -t ed25519 -N '' -f user && \
                    cp user.pub authorized && chmod 600 host user authorized";
        let mut command = home.program("/bin/bash");
        command.current_dir(&directory).args(["-c", keys]);
        assert!(command.status().unwrap().success());
        let port = free_port();
        let path = directory.display();
        let settings = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {path}/host\nAuthorizedKeysFile {path}/authorized\n\
             UsePAM no\nStrictModes no\nPidFile none\nPasswordAuthentication no\n\
             SetEnv MSB_HOME={}\n",
            remote.state().display()
        );
        fs::write(directory.join("sshd_config"), settings).unwrap();
        let script = format!(
            "mount -t tmpfs none /usr/local/bin && ln -s {}/bin/* /usr/local/bin/ && \
             exec /usr/sbin/sshd -D -e -f {path}/sshd_config",
            home.prefix.display()
        );
        let mut command = home.program("unshare");
        command.args(["--map-current-user", "--mount", "--keep-caps", "sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let server = Server { _running: Running::start_as_is(command), directory, port };
        wait_until("sshd answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        server
    }

    /// The client with its options, for a shell.
    fn client(&self) -> String {
        let directory = self.directory.display();
        format!(
            "ssh -F none -i {directory}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile={directory}/known \
             -o LogLevel=ERROR -o BatchMode=yes -p {} 127.0.0.1",
            self.port
        )
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn an_image_goes_to_another_host_through_ssh() {
    let (home, remote) = (two_images(), Home::new());
    let server = Server::start(&home, &remote);
    let script = format!(
        "set -o pipefail; msb image save -q {BUSYBOX} {CONFIGURED} | {} msb image load",
        server.client()
    );
    let outcome: Outcome = home.shell(&script);
    outcome.is(0, &format!("{BUSYBOX}\n{CONFIGURED}\n"), "");
    for directory in ["layers", "configs", "manifests", "disks"] {
        let directory = format!("images/{directory}");
        assert_eq!(content(&home, &directory), content(&remote, &directory));
    }
    same_images(&home, &remote, &[BUSYBOX, CONFIGURED]);
}

#[test]
fn a_connection_that_is_cut_leaves_nothing_there_and_a_failure_here() {
    let (home, remote) = (Home::new(), Home::new());
    let debian = fixture("debian.tar");
    home.run(["image", "import", "-q", "-i", debian.to_str().unwrap(), "debian"]).done();
    let server = Server::start(&home, &remote);
    let known = |remote: &Home| content(remote, "images/layers");
    let script = format!(
        "msb image save -q debian | {} msb image load -q; echo ${{PIPESTATUS[0]}}",
        server.client()
    );
    let mut shell = home.program("/bin/bash");
    shell.args(["-c", &script]);
    let running = Running::start(shell);
    let layers = remote.state().join("images/layers");
    wait_until("the load is in the middle of it", || half_a_layer(&layers));
    let client = format!("-p {} 127.0.0.1", server.port);
    for process in home.processes() {
        if process.name == "ssh" && process.command_line.contains(&client) {
            process.signal(Signal::KILL);
        }
    }
    let outcome = running.finish();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), "1\n", "{outcome:?}");
    wait_until("the loader has gone", || known(&remote).is_empty());
    let files = content(&remote, "images");
    let kept: Vec<&String> = files.iter().filter(|line| line.split(' ').count() == 3).collect();
    assert_eq!(kept, Vec::<&String>::new());
    // The same again, undisturbed.
    let script = format!(
        "set -o pipefail; msb image save -q debian | {} msb image load -q",
        server.client()
    );
    home.shell(&script).is(0, "", "");
    same_images(&home, &remote, &["debian"]);
}

/// Returns whether a layer that is being loaded has some megabytes.
fn half_a_layer(layers: &Path) -> bool {
    let Ok(entries) = fs::read_dir(layers) else {
        return false;
    };
    let mut sizes = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
    sizes.any(|bytes| bytes > 4 << 20)
}

#[test]
fn every_tool_of_these_tests_is_there() {
    for tool in ["skopeo", "podman", "buildah", "umoci", "ssh", "unshare"] {
        let found = Command::new(tool).arg("--help").output();
        assert!(found.is_ok(), "{tool}: {found:?}");
    }
    assert!(Path::new("/usr/sbin/sshd").exists());
}
