//go:build sandbox

package microsandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain plays a maker of a sandbox when it is told to.
func TestMain(m *testing.M) {
	if word := os.Getenv("MSB_TEST_MAKER"); word != "" {
		sandbox, err := CreateSandbox(
			context.Background(), "go-maker", WithImage(testImage()), WithReplace())
		if err == nil && word == "detach" {
			err = sandbox.Detach(context.Background())
		}
		fmt.Println("made", err)
		if word != "end" {
			time.Sleep(time.Hour)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestTheDeathOfAMakerEndsItsSandboxAndADetachedOneStays(t *testing.T) {
	ctx := context.Background()
	for word, reason := range map[string]string{
		"stay": "client_gone", "end": "client_gone", "detach": "",
	} {
		maker := exec.Command(os.Args[0])
		maker.Env = append(os.Environ(), "MSB_TEST_MAKER="+word)
		output, _ := maker.StdoutPipe()
		ok(t, maker.Start())
		equal(t, must[string](t)(bufio.NewReader(output).ReadString('\n')), "made <nil>\n")
		if word != "end" {
			ok(t, maker.Process.Kill())
		}
		_ = maker.Wait()
		handle := must[*SandboxHandle](t)(GetSandbox(ctx, "go-maker"))
		if reason != "" {
			short, cancel := context.WithTimeout(ctx, 30*time.Second)
			equal(t, must[*StopResult](t)(handle.WaitUntilStopped(short)).Reason, reason)
			cancel()
		} else {
			time.Sleep(time.Second)
			sandbox := must[*Sandbox](t)(handle.Connect(ctx))
			must[*ExecOutput](t)(sandbox.Exec(ctx, "true", nil))
			ok(t, sandbox.Kill(ctx))
		}
		ok(t, handle.Remove(ctx))
	}
}

func TestEveryOptionReachesTheGuestAndAPortTheHost(t *testing.T) {
	ctx, directory := context.Background(), t.TempDir()
	ok(t, os.WriteFile(filepath.Join(directory, "f"), []byte("shared"), 0o644))
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	port := uint16(listener.Addr().(*net.TCPAddr).Port)
	listener.Close()
	mode := uint32(0o600)
	sandbox := must[*Sandbox](t)(CreateSandbox(ctx, "go-full",
		WithImage(testImage()), WithOCIUpperSize(512), WithMemory(256), WithWorkdir("/w"),
		WithHostname("hosty"), WithEnv(map[string]string{"A": "b=c"}), WithLabel("team", "ml"),
		WithScripts(map[string]string{"hi": "echo script"}),
		WithMounts(map[string]MountConfig{
			"/shared": Mount.Bind(directory, MountOptions{Readonly: true}),
			"/mem":    Mount.Tmpfs(TmpfsOptions{SizeMiB: 8, NoExec: true}),
		}),
		WithPatches(
			Patch.Mkdir("/w", PatchOptions{}), Patch.Text("/w/t", "patched", PatchOptions{Mode: &mode}),
			Patch.Append("/w/t", "+more"), Patch.Symlink("/w/t", "/w/l", PatchOptions{}),
		),
		WithRlimit("nofile", 99, 99), WithPorts(map[uint16]uint16{port: 8000}),
		WithNetwork(&NetworkConfig{DenyDomains: []string{"example.org"}, MaxConnections: 7}),
		WithSecrets(Secret.Env("KEY", "hunter2", SecretEnvOptions{AllowHosts: []string{"a.test"}})),
		WithMaxDuration(3600*time.Second+500*time.Millisecond), WithIdleTimeout(10*time.Minute),
		WithReplace(),
	))
	defer sandbox.Discard(ctx)
	script := "pwd; hostname; echo $A $KEY; cat /w/l; hi; cat /shared/f; " +
		"touch /shared/x 2>/dev/null || echo read-only; ulimit -n"
	output := must[*ExecOutput](t)(sandbox.Shell(ctx, script))
	equal(t, output.Stdout(), "/w\nhosty\nb=c $MSB_KEY\npatched+morescript\nsharedread-only\n99\n")
	filter := NewSandboxFilter().WithLabels(map[string]string{"team": "ml"})
	handles := must[[]*SandboxHandle](t)(ListSandboxesWith(ctx, filter))
	equal(t, len(handles), 1)
	equal(t, strings.Contains(handles[0].ConfigJSON(), "hunter2"), false)
	words := []string{"-l", "-p", "8000", "-e", "echo", "served"}
	job := must[*Job](t)(sandbox.StartJob(ctx, "nc", words))
	answer := ""
	for answer == "" {
		if socket, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			text, _ := io.ReadAll(socket)
			answer = string(text)
		}
		time.Sleep(50 * time.Millisecond)
	}
	equal(t, answer, "served\n")
	must[int](t)(job.Wait(ctx))
}

func TestASandboxIsStoppedCopiedStartedAndRemoved(t *testing.T) {
	ctx, directory := context.Background(), t.TempDir()
	sandbox := must[*Sandbox](t)(CreateSandbox(
		ctx, "go-life", WithImage(testImage()), WithDetached(), WithReplace()))
	equal(t, sandbox.OwnsLifecycleOrFalse(), false)
	ok(t, sandbox.FS().WriteString(ctx, "/root/kept", "kept"))
	call := make(chan error, 1)
	go func() {
		_, err := sandbox.Exec(ctx, "sleep", []string{"600"})
		call <- err
	}()
	ok(t, sandbox.Stop(ctx))
	<-call
	_, err := sandbox.Exec(ctx, "true", nil)
	is(t, err, ErrSandboxNotRunning)
	handle := must[*SandboxHandle](t)(GetSandbox(ctx, "go-life"))
	equal(t, handle.Status(), StatusStopped)
	taken := must[*SnapshotArtifact](t)(handle.Snapshot(ctx, "go-base"))
	other := must[*SnapshotArtifact](t)(Snapshot.Create(ctx, "go-life", SnapshotCreateOptions{
		Path: filepath.Join(directory, "other"), RecordIntegrity: true,
		Labels: map[string]string{"a": "b"},
	}))
	_, err = handle.Snapshot(ctx, "go-base")
	is(t, err, ErrSnapshotAlreadyExists)
	equal(t, other.Parent(), taken.Digest())
	equal(t, must[bool](t)(other.Verify(ctx)), true)
	equal(t, len(must[[]*SnapshotArtifact](t)(Snapshot.ListDir(ctx, directory))), 1)
	archive := filepath.Join(directory, "archive")
	ok(t, Snapshot.Export(ctx, "go-base", archive, SnapshotExportOptions{}))
	ok(t, Snapshot.Remove(ctx, other.Path(), false))
	ok(t, Snapshot.Remove(ctx, "go-base", true))
	_, err = Snapshot.Open(ctx, "go-base")
	is(t, err, ErrSnapshotNotFound)
	imported := must[*SnapshotHandle](t)(Snapshot.Import(ctx, archive, ""))
	equal(t, imported.Digest(), taken.Digest())
	ok(t, imported.Remove(ctx, false))
	again := must[*Sandbox](t)(handle.Start(ctx))
	equal(t, must[string](t)(again.FS().ReadString(ctx, "/root/kept")), "kept")
	ok(t, again.Close())
	equal(t, must[*SandboxHandle](t)(handle.Refresh(ctx)).Status(), StatusStopped)
	ok(t, handle.Remove(ctx))
}

func TestACancelledCreationLeavesNothing(t *testing.T) {
	for _, pause := range []time.Duration{0, 20, 100} {
		ctx, cancel := context.WithTimeout(context.Background(), pause*time.Millisecond)
		_, err := CreateSandbox(ctx, "go-cancelled", WithImage(testImage()))
		cancel()
		is(t, err, ErrCancelled, context.DeadlineExceeded)
		_, err = GetSandbox(context.Background(), "go-cancelled")
		is(t, err, ErrSandboxNotFound)
	}
}

func TestASandboxThatDiesDuringReadsEndsThem(t *testing.T) {
	ctx := context.Background()
	sandbox := must[*Sandbox](t)(CreateSandbox(
		ctx, "go-dying", WithImage(testImage()), WithReplace()))
	defer sandbox.Discard(ctx)
	handle := must[*ExecHandle](t)(sandbox.ShellStream(ctx, "yes", quiet))
	stream := must[*FsReadStream](t)(sandbox.FS().ReadStream(ctx, "/dev/zero"))
	ok(t, sandbox.Kill(ctx))
	_, err := io.Copy(io.Discard, stream)
	if !IsKind(err, ErrSandboxNotRunning) && !IsKind(err, ErrFilesystem) {
		t.Fatal(err)
	}
	_, err = handle.Collect(ctx)
	is(t, err, ErrSandboxNotRunning)
}

func TestVolumesKeepFilesAndNeverLeaveTheirRoot(t *testing.T) {
	ctx := context.Background()
	must[*Volume](t)(CreateVolume(
		ctx, "go-volume", WithVolumeLabels(map[string]string{"a": "b"})))
	defer RemoveVolume(ctx, "go-volume")
	_, err := CreateVolume(ctx, "go-volume")
	is(t, err, ErrVolumeAlreadyExists)
	handle := must[*VolumeHandle](t)(GetVolume(ctx, "go-volume"))
	equal(t, handle.Labels()["a"], "b")
	fs := handle.FS()
	ok(t, fs.Mkdir("/d/e"))
	ok(t, fs.WriteString("/d/e/f", "host"))
	sandbox := must[*Sandbox](t)(CreateSandbox(ctx, "go-volumes", WithImage(testImage()),
		WithReplace(), WithMounts(map[string]MountConfig{
			"/data": Mount.Named("go-volume", MountOptions{}),
		})))
	output, err := sandbox.Shell(ctx, "cat /data/d/e/f; ln -s / /data/out; ln -s /etc/passwd /data/p")
	ok(t, sandbox.Discard(ctx))
	equal(t, must[*ExecOutput](t)(output, err).Stdout(), "host")
	for _, name := range []string{"/out/etc/passwd", "/p", "/../volume.json"} {
		_, err := fs.Read(name)
		is(t, err, ErrPathEscape)
	}
	_, err = fs.Read("/none")
	is(t, err, ErrPathNotFound)
	equal(t, len(must[[]FsEntry](t)(fs.List("/"))), 3)
	ok(t, fs.RemoveAll("/d"))
	equal(t, must[bool](t)(fs.Exists("/d")), false)
	_, err = GetVolume(ctx, "go-none")
	is(t, err, ErrVolumeNotFound)
}

func TestImagesAreListedSavedAndLoadedAlsoBelowALongPath(t *testing.T) {
	ctx, directory := context.Background(), t.TempDir()
	image := must[*ImageHandle](t)(Image.Get(ctx, testImage()))
	detail := must[*ImageDetail](t)(image.Inspect(ctx))
	equal(t, len(detail.Layers), image.LayerCount())
	if !strings.HasPrefix(detail.Config.Digest, "sha256:") {
		t.Fatal(detail.Config.Digest)
	}
	if len(must[[]*ImageHandle](t)(Image.List(ctx))) == 0 {
		t.Fatal("no image")
	}
	archive := filepath.Join(directory, "image.tar")
	ok(t, Image.Save(ctx, archive, testImage()))
	home := filepath.Join(directory, strings.Repeat("x", 120))
	ok(t, os.Mkdir(home, 0o700))
	t.Setenv("MSB_HOME", home)
	loaded := must[[]LoadedImage](t)(Image.Load(ctx, archive, "go-copy:1"))
	equal(t, loaded[0].Layers, image.LayerCount())
	sandbox := must[*Sandbox](t)(CreateSandbox(ctx, "go-long", WithImage("go-copy:1")))
	output, err := sandbox.Exec(ctx, "echo", []string{"x"})
	ok(t, sandbox.Discard(ctx))
	equal(t, must[*ExecOutput](t)(output, err).Stdout(), "x\n")
	ok(t, Image.Remove(ctx, "go-copy:1", false))
	_, err = Image.Get(ctx, "go-copy:1")
	is(t, err, ErrImageNotFound)
	_, err = CreateSandbox(ctx, "go-none", WithImage("none:1"), WithPullPolicy(PullNever))
	is(t, err, ErrImageNotFound)
	_, err = CreateSandbox(ctx, "no/name", WithImage(testImage()))
	is(t, err, ErrInvalidConfig)
}

func TestAPathWithoutProgramsIsAnErrorThatNamesIt(t *testing.T) {
	t.Setenv("PATH", "/nonexistent")
	equal(t, IsInstalled(), false)
	_, err := ListSandboxes(context.Background())
	is(t, err, ErrProgramNotFound)
	if !strings.Contains(err.Error(), "MSB_PATH") || errors.Unwrap(err) != nil {
		t.Fatal(err)
	}
}
