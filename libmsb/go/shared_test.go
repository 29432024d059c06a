//go:build sandbox

package microsandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// testImage returns an image with a shell.
func testImage() string {
	if image := os.Getenv("MSB_TEST_IMAGE"); image != "" {
		return image
	}
	return "busybox:test"
}

func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatalf("%T: %v", value, err)
		}
		return value
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, err error, kinds ...error) {
	t.Helper()
	for _, kind := range kinds {
		if !errors.Is(err, kind) {
			t.Fatalf("%v in place of %v", err, kind)
		}
	}
}

func equal[T comparable](t *testing.T, got, expected T) {
	t.Helper()
	if got != expected {
		t.Fatalf("%v in place of %v", got, expected)
	}
}

func running(t *testing.T, sandbox *Sandbox, seconds string) int {
	script := "ps | grep -c '[s]leep " + seconds + "' || true"
	output := must[*ExecOutput](t)(sandbox.Shell(context.Background(), script))
	return must[int](t)(strconv.Atoi(strings.TrimSpace(output.Stdout())))
}

// TestOneSandbox makes one sandbox for calls that leave it as it is.
func TestOneSandbox(t *testing.T) {
	ctx := context.Background()
	made, err := CreateSandbox(ctx, "go-shared", WithImage(testImage()), WithReplace())
	sandbox := must[*Sandbox](t)(made, err)
	defer sandbox.Discard(ctx)
	for _, part := range []struct {
		name string
		work func(*testing.T, *Sandbox)
	}{
		{"commands", testCommands}, {"input", testInput}, {"events", testEvents},
		{"timeouts", testTimeouts}, {"cancellation", testCancellation},
		{"a hundred at once", testHundred}, {"a slow reader", testSlowReader},
		{"files", testFiles}, {"copies", testCopies}, {"a thousand files", testThousand},
		{"jobs", testJobs}, {"logs and metrics", testLogs}, {"ssh", testSSH},
		{"handles", testHandles},
	} {
		t.Run(part.name, func(t *testing.T) { part.work(t, sandbox) })
	}
}

func testCommands(t *testing.T, sandbox *Sandbox) {
	ctx := context.Background()
	script := "echo $A; pwd; id -u; ulimit -n; echo e >&2; exit 3"
	output := must[*ExecOutput](t)(sandbox.Exec(ctx, "sh", []string{"-c", script},
		WithExecEnv(map[string]string{"A": "ä"}), WithExecCwd("/bin"), WithExecUser("7"),
		WithExecRlimit("nofile", 17, 17)))
	equal(t, output.Stdout(), "ä\n/bin\n7\n17\n")
	equal(t, output.Stderr(), "e\n")
	equal(t, output.ExitCode(), 3)
	_, err := sandbox.Exec(ctx, "no-such", nil)
	is(t, err, ErrExecFailed)
	var failure *Error
	errors.As(err, &failure)
	equal(t, failure.Failure.Kind, "not_found")
	equal(t, failure.Failure.ErrnoName, "ENOENT")
	cut := must[*ExecOutput](t)(sandbox.Shell(ctx, "yes | head -n 100000", WithExecMaxOutput(10)))
	equal(t, cut.Stdout(), strings.Repeat("y\n", 5))
	equal(t, cut.Truncated(), true)
	_, err = sandbox.Exec(ctx, "true", nil, WithExecTimeout(-1))
	is(t, err, ErrInvalidArgument)
	_, err = sandbox.Exec(ctx, "a\x00b", nil)
	is(t, err, ErrInvalidArgument)
}

func testInput(t *testing.T, sandbox *Sandbox) {
	ctx := context.Background()
	for _, option := range []ExecOption{
		WithExecStdinBytes([]byte("in")), WithExecStdin(strings.NewReader("in")),
	} {
		output := must[*ExecOutput](t)(sandbox.Exec(ctx, "cat", nil, option))
		equal(t, output.Stdout(), "in")
	}
	size := must[*ExecOutput](t)(sandbox.Shell(ctx, "test -t 0 && stty size",
		WithExecTTY(TTY{24, 80}), WithExecStdinBytes(nil)))
	equal(t, strings.TrimSpace(size.Stdout()), "24 80")
}

func testEvents(t *testing.T, sandbox *Sandbox) {
	ctx := context.Background()
	handle := must[*ExecHandle](t)(sandbox.ExecStream(ctx, "cat", nil, WithExecStdinPipe()))
	sink := handle.TakeStdin()
	if handle.TakeStdin() != nil {
		t.Fatal("an input for two")
	}
	must[int](t)(sink.Write([]byte("ping")))
	equal(t, must[*ExecEvent](t)(handle.Recv(ctx)).Kind, ExecEventStarted)
	equal(t, string(must[*ExecEvent](t)(handle.Recv(ctx)).Data), "ping")
	ok(t, sink.Close())
	equal(t, must[int](t)(handle.Wait(ctx)), 0)
	equal(t, must[*ExecEvent](t)(handle.Recv(ctx)).Kind, ExecEventExited)
	equal(t, must[*ExecEvent](t)(handle.Recv(ctx)).Kind, ExecEventDone)
	handle = must[*ExecHandle](t)(sandbox.ExecStream(ctx, "sleep", []string{"60"}))
	ok(t, handle.Signal(ctx, 15))
	equal(t, must[int](t)(handle.Wait(ctx)), 143)
	var stdout, stderr bytes.Buffer
	handle = must[*ExecHandle](t)(sandbox.ShellStream(ctx, "echo o; echo e >&2; exit 4"))
	equal(t, must[int](t)(handle.CopyTo(ctx, &stdout, &stderr)), 4)
	equal(t, stdout.String()+stderr.String(), "o\ne\n")
}

func testTimeouts(t *testing.T, sandbox *Sandbox) {
	ctx := context.Background()
	script := "echo before; sleep 1234 & sleep 1234"
	_, err := sandbox.Shell(ctx, script, WithExecTimeout(2*time.Second))
	is(t, err, ErrExecTimeout)
	var found *Error
	errors.As(err, &found)
	equal(t, string(found.Stdout), "before\n")
	equal(t, running(t, sandbox, "1234"), 0)
	// A context that ends while the output is awaited leaves the command alone.
	handle := must[*ExecHandle](t)(sandbox.ExecStream(ctx, "sleep", []string{"777"}))
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err = handle.Wait(short)
	is(t, err, ErrCancelled, context.DeadlineExceeded)
	equal(t, running(t, sandbox, "777"), 1)
	ok(t, handle.Close())
	equal(t, running(t, sandbox, "777"), 0)
}

func testCancellation(t *testing.T, sandbox *Sandbox) {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() {
		_, err := sandbox.Shell(ctx, "sleep 2345 & sleep 2345")
		result <- err
	}()
	for running(t, sandbox, "2345") < 2 {
		time.Sleep(50 * time.Millisecond)
	}
	cancel()
	is(t, <-result, ErrCancelled, context.Canceled)
	equal(t, running(t, sandbox, "2345"), 0)
	_, err := sandbox.Exec(ctx, "sleep", []string{"3456"})
	is(t, err, ErrCancelled, context.Canceled)
	_, err = sandbox.FS().Read(ctx, "/x")
	is(t, err, ErrCancelled)
	_, err = sandbox.Metrics(ctx)
	is(t, err, ErrCancelled)
	follow, stop := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer stop()
	stream := must[*LogStream](t)(sandbox.LogStream(follow, LogStreamOptions{Follow: true}))
	for err = nil; err == nil; {
		_, err = stream.Recv(follow)
	}
	is(t, err, ErrCancelled, context.DeadlineExceeded)
}

func testHundred(t *testing.T, sandbox *Sandbox) {
	var group sync.WaitGroup
	for number := 0; number < 100; number++ {
		group.Add(1)
		go func(number string) {
			defer group.Done()
			output, err := sandbox.Exec(context.Background(), "echo", []string{number}, quiet)
			if err != nil || output.Stdout() != number+"\n" {
				t.Errorf("%s: %v", number, err)
			}
		}(fmt.Sprint(number))
	}
	group.Wait()
}

func testSlowReader(t *testing.T, sandbox *Sandbox) {
	ctx := context.Background()
	const total = 200 << 20
	script := fmt.Sprintf("head -c %d /dev/zero", total)
	handle := must[*ExecHandle](t)(sandbox.ShellStream(ctx, script, quiet))
	received, pauses, most := 0, 0, uint64(0)
	for received < total {
		event := must[*ExecEvent](t)(handle.Recv(ctx))
		received += len(event.Data)
		if received >= pauses<<23 {
			pauses++
			time.Sleep(10 * time.Millisecond)
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			if stats.HeapAlloc > most {
				most = stats.HeapAlloc
			}
		}
	}
	equal(t, must[int](t)(handle.Wait(ctx)), 0)
	if most > 32<<20 {
		t.Errorf("%d MiB for 200 MiB of output", most>>20)
	}
}

func testFiles(t *testing.T, sandbox *Sandbox) {
	ctx, fs := context.Background(), sandbox.FS()
	ok(t, fs.Mkdir(ctx, "/root/f/a/b"))
	ok(t, fs.Mkdir(ctx, "/root/f/a/b"))
	big := make([]byte, 700_001)
	_, _ = rand.Read(big)
	mode := uint32(0o600)
	ok(t, fs.WriteMode(ctx, "/root/f/big", big, &mode))
	ok(t, fs.WriteString(ctx, "/root/f/text", "täxt"))
	equal(t, must[string](t)(fs.ReadString(ctx, "/root/f/text")), "täxt")
	if !bytes.Equal(must[[]byte](t)(fs.Read(ctx, "/root/f/big")), big) {
		t.Fatal("other bytes")
	}
	status := must[*FsStat](t)(fs.Stat(ctx, "/root/f/big"))
	equal(t, status.Size, 700_001)
	equal(t, status.Mode, mode)
	entries := must[[]FsEntry](t)(fs.List(ctx, "/root/f"))
	equal(t, len(entries), 3)
	equal(t, entries[0].Kind, FsDirectory)
	equal(t, entries[2].Path, "/root/f/text")
	ok(t, fs.Copy(ctx, "/root/f/big", "/root/f/copy"))
	ok(t, fs.Rename(ctx, "/root/f/copy", "/root/f/text"))
	ok(t, fs.Symlink(ctx, "big", "/root/f/link"))
	equal(t, must[string](t)(fs.ReadLink(ctx, "/root/f/link")), "big")
	equal(t, must[string](t)(fs.RealPath(ctx, "/root/f/link")), "/root/f/big")
	equal(t, must[*FsStat](t)(fs.Lstat(ctx, "/root/f/link")).Kind, FsSymlink)
	stream := must[*FsReadStream](t)(fs.ReadStream(ctx, "/root/f/text"))
	if !bytes.Equal(must[[]byte](t)(io.ReadAll(stream)), big) {
		t.Fatal("other bytes in a stream")
	}
	sink := must[*FsWriteStream](t)(fs.WriteStream(ctx, "/root/f/big"))
	must[int64](t)(io.Copy(sink, bytes.NewReader(big)))
	ok(t, sink.Close(ctx))
	if !bytes.Equal(must[[]byte](t)(fs.Read(ctx, "/root/f/big")), big) {
		t.Fatal("other bytes after a stream")
	}
	ok(t, fs.Remove(ctx, "/root/f/link"))
	ok(t, fs.RemoveDir(ctx, "/root/f"))
	equal(t, must[bool](t)(fs.Exists(ctx, "/root/f")), false)
	_, err := fs.Read(ctx, "/root/f/big")
	is(t, err, ErrPathNotFound, ErrFilesystem, os.ErrNotExist)
	_, err = fs.Exists(ctx, "/root/"+strings.Repeat("x", 300))
	is(t, err, ErrFilesystem)
	if version := must[string](t)(fs.ReadString(ctx, "/proc/version")); len(version) == 0 {
		t.Fatal("nothing in a file without a size")
	}
}

func testCopies(t *testing.T, sandbox *Sandbox) {
	ctx, fs, directory := context.Background(), sandbox.FS(), t.TempDir()
	ok(t, os.MkdirAll(filepath.Join(directory, "tree/in"), 0o755))
	ok(t, os.WriteFile(filepath.Join(directory, "tree/in/f"), []byte("tree"), 0o644))
	ok(t, fs.CopyFromHost(ctx, filepath.Join(directory, "tree"), "/root/tree"))
	equal(t, must[string](t)(fs.ReadString(ctx, "/root/tree/in/f")), "tree")
	ok(t, fs.CopyFromHost(ctx, filepath.Join(directory, "tree/in/f"), "/root/one"))
	ok(t, fs.CopyToHost(ctx, "/root/one", filepath.Join(directory, "one")))
	equal(t, string(must[[]byte](t)(os.ReadFile(filepath.Join(directory, "one")))), "tree")
	ok(t, fs.CopyToHost(ctx, "/root/tree", filepath.Join(directory, "back")))
	equal(t, string(must[[]byte](t)(os.ReadFile(filepath.Join(directory, "back/in/f")))), "tree")
	is(t, fs.CopyFromHost(ctx, filepath.Join(directory, "none"), "/x"), ErrIO)
}

func testThousand(t *testing.T, sandbox *Sandbox) {
	ctx, fs := context.Background(), sandbox.FS()
	ok(t, fs.Mkdir(ctx, "/root/many"))
	var group sync.WaitGroup
	for number := 0; number < 1000; number++ {
		group.Add(1)
		go func(number string) {
			defer group.Done()
			if err := fs.WriteString(ctx, "/root/many/"+number, number); err != nil {
				t.Errorf("%s: %v", number, err)
			}
		}(fmt.Sprint(number))
	}
	group.Wait()
	equal(t, len(must[[]FsEntry](t)(fs.List(ctx, "/root/many"))), 1000)
	equal(t, must[string](t)(fs.ReadString(ctx, "/root/many/999")), "999")
	ok(t, fs.RemoveDir(ctx, "/root/many"))
}

func testJobs(t *testing.T, sandbox *Sandbox) {
	ctx := context.Background()
	script := []string{"-c", "echo one; sleep 1; echo two; exit 4"}
	job := must[*Job](t)(sandbox.StartJob(ctx, "sh", script))
	again := must[*Sandbox](t)(ConnectSandbox(ctx, sandbox.Name()))
	found := must[*Job](t)(again.Job(ctx, job.ID()))
	stream := must[*LogStream](t)(found.LogStream(ctx, LogStreamOptions{Follow: true}))
	entry := must[*LogEntry](t)(stream.Recv(ctx))
	equal(t, entry.Text(), "one\n")
	ok(t, stream.Close())
	equal(t, must[int](t)(found.Wait(ctx)), 4)
	rest := must[*LogStream](t)(found.LogStream(ctx, LogStreamOptions{FromCursor: entry.Cursor}))
	equal(t, must[*LogEntry](t)(rest.Recv(ctx)).Text(), "two\n")
	_, err := rest.Recv(ctx)
	is(t, err, io.EOF)
	if len(must[[]JobInfo](t)(again.Jobs(ctx))) == 0 {
		t.Fatal("no job")
	}
	ok(t, again.Close())
	is(t, again.Close(), ErrInvalidHandle)
}

func testLogs(t *testing.T, sandbox *Sandbox) {
	ctx := context.Background()
	must[*ExecOutput](t)(sandbox.Exec(ctx, "echo", []string{"logged-line"}))
	must[*ExecOutput](t)(sandbox.Exec(ctx, "echo", []string{"hidden-line"}, quiet))
	text := ""
	for _, entry := range must[[]LogEntry](t)(sandbox.Logs(ctx, LogOptions{})) {
		text += entry.Text()
	}
	if !strings.Contains(text, "logged-line") || strings.Contains(text, "hidden-line") {
		t.Fatal(text)
	}
	last := must[[]LogEntry](t)(sandbox.Logs(ctx, LogOptions{Tail: 1}))
	if len(last) != 1 || last[0].Timestamp.IsZero() {
		t.Fatal(last)
	}
	sample := must[*Metrics](t)(sandbox.Metrics(ctx))
	equal(t, sample.MemoryLimitBytes, 512<<20)
	stream := must[*MetricsStream](t)(sandbox.MetricsStream(ctx, 200*time.Millisecond))
	first := must[*Metrics](t)(stream.Recv(ctx))
	if second := must[*Metrics](t)(stream.Recv(ctx)); !first.Timestamp.Before(second.Timestamp) {
		t.Fatal("one sample twice")
	}
	ok(t, stream.Close())
	if must[map[string]*Metrics](t)(AllSandboxMetrics(ctx))[sandbox.Name()] == nil {
		t.Fatal("no sample")
	}
}

func testSSH(t *testing.T, sandbox *Sandbox) {
	ctx := context.Background()
	session := must[*SSHClient](t)(sandbox.SSH().Connect(ctx))
	output := must[*SSHOutput](t)(session.Exec(ctx, "echo $HOME; exit 2"))
	equal(t, string(output.Stdout), "/root\n")
	equal(t, output.Status, 2)
	files := must[*SFTPClient](t)(session.SFTP(ctx))
	ok(t, files.Write(ctx, "/root/s", []byte("sftp")))
	equal(t, string(must[[]byte](t)(files.Read(ctx, "/root/s"))), "sftp")
	ok(t, files.RemoveFile(ctx, "/root/s"))
	ok(t, session.Close())
	_, err := sandbox.SSH().Server(ctx, WithSSHServerUser("x"))
	is(t, err, ErrUnsupportedOperation)
}

func testHandles(t *testing.T, sandbox *Sandbox) {
	ctx := context.Background()
	handle := must[*SandboxHandle](t)(GetSandbox(ctx, sandbox.Name()))
	equal(t, handle.Status(), StatusRunning)
	if !strings.Contains(handle.ConfigJSON(), `"memory_mib":512`) {
		t.Fatal(handle.ConfigJSON())
	}
	if handle.CreatedAt().IsZero() || handle.UpdatedAt().Before(handle.CreatedAt()) {
		t.Fatal(handle.CreatedAt(), handle.UpdatedAt())
	}
	if len(must[[]*SandboxHandle](t)(ListSandboxes(ctx))) == 0 {
		t.Fatal("no sandbox")
	}
	filter := NewSandboxFilter().WithLabels(map[string]string{"no": "label"})
	equal(t, len(must[[]*SandboxHandle](t)(ListSandboxesWith(ctx, filter))), 0)
	equal(t, sandbox.OwnsLifecycleOrFalse(), true)
	_, err := GetSandbox(ctx, "go-none")
	is(t, err, ErrSandboxNotFound)
	is(t, handle.Remove(ctx), ErrSandboxStillRunning)
	_, err = CreateSandbox(ctx, sandbox.Name(), WithImage(testImage()))
	is(t, err, ErrSandboxAlreadyExists)
	must[time.Duration](t)(sandbox.Ping(ctx))
	is(t, sandbox.Drain(ctx), ErrUnsupportedOperation)
}
