# Functions for tests/bench/start and tests/bench/idle: build and install the programs of this clone,
# make an image, start the smallest virtual machines of the same engines, and print statistics. To be
# sourced in the directory of the clone. All files are in $work, which the caller creates and removes.
# shellcheck shell=sh

target=x86_64-unknown-linux-gnu
export MSB_HOME="$work/home" PATH="$work/prefix/bin:$PATH"

build() {
    cargo shared --quiet --release --locked
    cargo build --quiet --release --locked -p msb-test-hello
    cargo static --quiet --release --locked -p msb-tests
    libmsb/install --prefix "$work/prefix" --no-packages --no-build >/dev/null
    artifacts=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    cp "$artifacts/release/msb-test-hello" "$artifacts/$target/release/msb-test-guest" "$work/"
    chmod 755 "$work"
}

# An image of one layer, in the form of `docker save`.
image() {
    mkdir -p "$work/root/bin" "$work/root/etc" "$work/archive"
    # Others look root up.
    echo 'root:x:0:0:root:/:/bin/sh' >"$work/root/etc/passwd"
    echo 'root:x:0:' >"$work/root/etc/group"
    cp /bin/busybox "$work/root/bin/busybox"
    for applet in sh true cat chmod sleep; do ln -s busybox "$work/root/bin/$applet"; done
    tar -C "$work/root" -cf "$work/archive/layer.tar" .
    layer=$(sha256sum "$work/archive/layer.tar" | cut -d ' ' -f 1)
    printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/sleep","3600"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$layer" >"$work/archive/config.json"
    printf '[{"Config":"config.json","RepoTags":["bench:latest"],"Layers":["layer.tar"]}]' >"$work/archive/manifest.json"
    tar -C "$work/archive" -cf "$work/image.tar" manifest.json config.json layer.tar
    msb image load --quiet --input "$work/image.tar"
}

# ---- The least that QEMU can do ----------------------------------------------------------------------------------

# initramfs [NAME]: an initial RAM disk in the form that cpio calls newc, with /init, and perhaps an empty file.
initramfs() {
    entry /init 33261 "$work/msb-test-guest"
    [ -z "${1-}" ] || entry "$1" 33188 /dev/null
    entry 'TRAILER!!!' 0 /dev/null
}

# entry NAME MODE FILE: header, name, content; each filled up to a multiple of four bytes.
entry() {
    printf '070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x' \
        0 "$2" 0 0 1 0 "$(size "$3")" 0 0 0 0 $((${#1} + 1)) 0
    printf '%s\0' "$1"
    fill $((110 + ${#1} + 1))
    cat "$3"
    fill "$(size "$3")"
}

# A device has no size of its own.
size() {
    if [ -f "$1" ]; then stat -L -c %s "$1"; else echo 0; fi
}

fill() {
    head -c $(((4 - $1 % 4) % 4)) /dev/zero
}

# The kernel that msb chooses: one made for virtual machines, else the newest. And the best options that we know.
choose_kernel() {
    kernel=$(ls -v /boot/vmlinuz-* | grep -e cloud -e virt -e kvm | tail -n 1)
    [ -n "$kernel" ] || kernel=$(ls -v /boot/vmlinuz-* | tail -n 1)
    khz=$(awk -F: '/^cpu MHz/ { printf "%d", $2 * 1000; exit }' /proc/cpuinfo)
    append="console=ttyS0 panic=-1 reboot=t quiet no_timer_check tsc=reliable tsc_early_khz=$khz random.trust_cpu=on"
    append="$append 8250.nr_uarts=1 cryptomgr.notests audit=0 apparmor=0 lsm=x"
}

# bare_qemu INITRAMFS: becomes or runs a machine without devices.
bare_qemu() {
    qemu-system-x86_64 -M microvm -accel tcg -cpu qemu64,+arat -m 512 -smp 1 -nodefaults -no-user-config -nographic -serial stdio \
        -no-reboot -global virtio-mmio.force-legacy=false -kernel "$kernel" -initrd "$1" -append "$append" </dev/null
}

# ---- The least that libkrun can do -------------------------------------------------------------------------------

# bare_krun [NAME]: a machine without disks, with an empty file in its root.
bare_krun() {
    LD_LIBRARY_PATH=/usr/local/lib "$work/msb-test-hello" "$work/msb-test-guest" "$work/console" "$@" </dev/null
}

# ---- Arithmetic --------------------------------------------------------------------------------------------------

# statistics NAME <FILE: median, and the least and the most.
statistics() {
    sort -n | awk -v name="$1" '{ v[NR] = $1 }
        END { m = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
              printf "%-52s %9.1f ms   (%.1f to %.1f, n=%d)\n", name, m, v[1], v[NR], NR }'
}

median() {
    sort -n "$1" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# ratio FILE FILE GOAL TEXT
ratio() {
    awk -v a="$(median "$1")" -v b="$(median "$2")" -v goal="$3" -v what="$4" \
        'BEGIN { printf "%-52s %9.2f      (goal: under %s)\n", what, a / b, goal }'
}
