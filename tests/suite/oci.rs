//! msb-oci under podman, without root: one container for most checks. One test, since the state of
//! all containers of a user is in one directory.

use crate::support::{Home, fixture, stage};

/// Runs a script with podman as `P`, whose containers msb-oci runs. Storage and locks belong to the
/// test.
#[track_caller]
fn with_podman(home: &Home, script: &str) -> String {
    let settings = format!(
        "set -u\nexport XDG_RUNTIME_DIR=$PWD TMPDIR=$PWD CONTAINERS_CONF=$PWD/containers.conf\n\
         printf '[engine]\\ncgroup_manager = \"cgroupfs\"\\nevents_logger = \"file\"\\nlock_type = \"file\"\\n\
         [containers]\\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\\n' >containers.conf\n\
         P=\"podman --log-level error --root $PWD/st/root --runroot $PWD/st/run \
         --storage-driver vfs --runtime {runtime}\"\n\
         state=/run/user/$(id -u); [ -d $state ] || state=/tmp\n\
         states() {{ ls -d $state/msb-oci*/* 2>/dev/null; }}\n\
         $P load -q -i {image} >/dev/null\n",
        runtime = stage("prefix/lib/msb/msb-oci").display(),
        image = fixture("busybox.docker.tar").display(),
    );
    let outcome = home.shell(&format!("{settings}{script}"));
    let tidy = "export XDG_RUNTIME_DIR=$PWD CONTAINERS_CONF=$PWD/containers.conf\n\
         podman unshare rm -rf st\n\
         for file in $(find $PWD -name pause.pid); do kill $(cat $file); rm $file; done";
    home.shell(tidy).done();
    outcome.done()
}

/// Checks of one container from its start to its removal.
const LIFE: &str = r#"
mkdir vol; echo volume >vol/file; echo copied >in
canary=/tmp/msb-oci-canary-$$
$P run -d --network none -v $PWD/vol:/vol:ro --name c busybox:test sh -c \
    'trap "echo trapped; exit 5" TERM; echo started; while :; do sleep 0.1; done' >/dev/null
for try in $(seq 300); do ! $P logs c | grep -q started || break; sleep 0.1; done
echo "exec $($P exec -u 1000:1000 -w /tmp -e X=Y c sh -c 'id -u; pwd; echo $X; cat /vol/file' | tr '\n' ' ')"
$P exec c sh -c 'exit 3'; echo "code $?"
echo "stdin $(echo piped | $P exec -i c cat)"
echo "kernel $([ "$($P exec c uname -v)" = "$(uname -v)" ] || echo other)"
echo "state $(env -i ${P##* } state $($P inspect -f '{{.Id}}' c) | grep -o running)"
$P cp in c:$canary; echo "cp $?"
[ ! -e $canary ] || echo "the host has the file"
echo "guest $($P exec c cat $canary)"
$P exec c sh -c 'echo back >/tmp/out'; $P cp c:/tmp/out out; echo "host $(cat out)"
$P cp in c:/vol/new 2>/dev/null || echo "volume is read-only: $(ls vol)"
echo "top $($P top c pid | tr '\n' ' ')"
script -qec "stty rows 33 cols 101; $P exec -t c stty size" /dev/null
$P stop c >/dev/null; echo "stopped $($P inspect -f '{{.State.ExitCode}}' c)"
$P logs c 2>/dev/null
$P start c >/dev/null; $P kill c >/dev/null; $P wait c; $P rm c >/dev/null; echo "rm $?"
$P run --rm --network none busybox:test /missing 2>&1 | grep -o 'no such file.*attempted'
$P run --rm --network none busybox:test missing >/dev/null 2>&1; echo $?
$P run --rm --read-only --network none busybox:test true 2>&1 | grep -o 'a read-only root is not supported'
echo "left $(states)$(ls $HOME/.msb/sandboxes)"
"#;

const LIFE_SEEN: &str = "exec 1000 /tmp Y volume \ncode 3\nstdin piped\nkernel other\nstate running\ncp 0\n\
    guest copied\nhost back\nvolume is read-only: file\ntop PID 1 \n33 101\r\nstopped 5\n\
    started\ntrapped\n137\nrm 0\nno such file or directory: OCI runtime attempted\n127\n\
    a read-only root is not supported\nleft \n";

#[test]
fn podman_runs_a_container_in_a_virtual_machine() {
    let home = Home::new();
    assert_eq!(with_podman(&home, LIFE), LIFE_SEEN);
}
