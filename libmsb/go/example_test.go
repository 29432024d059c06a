//go:build sandbox

package microsandbox_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	microsandbox "msb/libmsb/go"
)

func image() microsandbox.SandboxOption {
	if image := os.Getenv("MSB_TEST_IMAGE"); image != "" {
		return microsandbox.WithImage(image)
	}
	return microsandbox.WithImage("busybox:test")
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// A command, its output, and a sandbox that is gone afterwards.
func Example() {
	ctx := context.Background()
	sandbox, err := microsandbox.CreateSandbox(ctx, "example", image(), microsandbox.WithReplace())
	check(err)
	defer sandbox.Discard(ctx)
	output, err := sandbox.Exec(ctx, "echo", []string{"hello"})
	check(err)
	fmt.Print(output.Stdout())
	// Output: hello
}

// Code that a model wrote runs in a sandbox without a network, with limits of time and output.
func ExampleSandbox_Shell_agentLoop() {
	ctx := context.Background()
	sandbox, err := microsandbox.CreateSandbox(ctx, "example-agent", image(),
		microsandbox.WithNetwork(microsandbox.NetworkPolicy.None()),
		microsandbox.WithMemory(256), microsandbox.WithReplace())
	check(err)
	defer sandbox.Discard(ctx)
	for _, code := range []string{"echo $((6 * 7)) > /root/a", "cat /root/a; exit 3"} {
		output, err := sandbox.Shell(ctx, code,
			microsandbox.WithExecTimeout(30*time.Second), microsandbox.WithExecMaxOutput(4096))
		check(err)
		fmt.Printf("exit code %d: %q\n", output.ExitCode(), output.Stdout())
	}
	// Output:
	// exit code 0: ""
	// exit code 3: "42\n"
}

// The output of a command while it runs.
func ExampleSandbox_ShellStream() {
	ctx := context.Background()
	sandbox, err := microsandbox.CreateSandbox(
		ctx, "example-streaming", image(), microsandbox.WithReplace())
	check(err)
	defer sandbox.Discard(ctx)
	handle, err := sandbox.ShellStream(ctx, "for n in 1 2; do echo step $n; sleep 0.3; done; exit 4")
	check(err)
	for {
		event, err := handle.Recv(ctx)
		check(err)
		switch event.Kind {
		case microsandbox.ExecEventStdout:
			fmt.Print(string(event.Data))
		case microsandbox.ExecEventExited:
			fmt.Println("exit code", event.ExitCode)
		case microsandbox.ExecEventDone:
			return
		}
	}
	// Output:
	// step 1
	// step 2
	// exit code 4
}

// Time limits, partial output, and commands that end with their caller.
func ExampleWithExecTimeout() {
	ctx := context.Background()
	sandbox, err := microsandbox.CreateSandbox(
		ctx, "example-cancel", image(), microsandbox.WithReplace())
	check(err)
	defer sandbox.Discard(ctx)
	_, err = sandbox.Shell(ctx, "echo half; sleep 600", microsandbox.WithExecTimeout(time.Second))
	var found *microsandbox.Error
	if errors.As(err, &found) {
		fmt.Printf("%v after %v: %q\n", found.Kind, found.Timeout, found.Stdout)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err = sandbox.Exec(short, "sleep", []string{"601"})
	fmt.Println(errors.Is(err, microsandbox.ErrCancelled), errors.Is(err, context.DeadlineExceeded))
	left, err := sandbox.Shell(ctx, "ps | grep '[s]leep 60' || echo none")
	check(err)
	fmt.Println("left in the guest:", strings.TrimSpace(left.Stdout()))
	// Output:
	// command timed out after 1s: "half\n"
	// true true
	// left in the guest: none
}

// Files go in, a program runs, results come out.
func ExampleSandboxFs_CopyToHost() {
	ctx := context.Background()
	directory, err := os.MkdirTemp("", "msb-example-")
	check(err)
	defer os.RemoveAll(directory)
	sandbox, err := microsandbox.CreateSandbox(
		ctx, "example-data", image(), microsandbox.WithReplace())
	check(err)
	defer sandbox.Discard(ctx)
	table := []byte("name,count\nred,1\nblue,2\nred,40\n")
	check(sandbox.FS().Write(ctx, "/root/in.csv", table))
	program := "awk -F, 'NR > 1 { s[$1] += $2 } END { for (k in s) print k \",\" s[k] }' in.csv" +
		" | sort > out.csv"
	_, err = sandbox.Shell(ctx, program, microsandbox.WithExecCwd("/root"))
	check(err)
	check(sandbox.FS().CopyToHost(ctx, "/root/out.csv", filepath.Join(directory, "out.csv")))
	result, err := os.ReadFile(filepath.Join(directory, "out.csv"))
	check(err)
	fmt.Print(string(result))
	// Output:
	// blue,2
	// red,41
}

// A backend for agent frameworks: commands with cut output, files by path and bytes, and reasons
// that a model reads instead of errors.
func Example_backend() {
	ctx := context.Background()
	sandbox, err := microsandbox.CreateSandbox(
		ctx, "example-backend", image(), microsandbox.WithReplace())
	check(err)
	defer sandbox.Discard(ctx)
	execute := func(command string) string {
		output, err := sandbox.Shell(ctx, command,
			microsandbox.WithExecTimeout(30*time.Second), microsandbox.WithExecMaxOutput(4096))
		if err != nil {
			return fmt.Sprintf("[%v]", err)
		}
		return fmt.Sprintf("exit code %d: %s%s", output.ExitCode(), output.Stdout(), output.Stderr())
	}
	upload := func(path string, data []byte) error {
		if err := sandbox.FS().Mkdir(ctx, filepath.Dir(path)); err != nil {
			return err
		}
		return sandbox.FS().Write(ctx, path, data)
	}
	fmt.Println(upload("/root/in/a", []byte("a")), upload("/proc/none/f", nil) != nil)
	_, err = sandbox.FS().Read(ctx, "/none")
	fmt.Println(errors.Is(err, microsandbox.ErrPathNotFound))
	fmt.Println(execute("cat /root/in/a; exit 5"))
	// Output:
	// <nil> true
	// true
	// exit code 5: a
}

// A pool: sandboxes that are ready before a task needs one, made from one snapshot.
func Example_pool() {
	ctx := context.Background()
	setup, err := microsandbox.CreateSandbox(
		ctx, "example-pool-setup", image(), microsandbox.WithReplace())
	check(err)
	check(setup.FS().WriteString(ctx, "/root/task", "echo task $1"))
	_, err = setup.StopAndWait(ctx)
	check(err)
	handle, err := microsandbox.GetSandbox(ctx, "example-pool-setup")
	check(err)
	snapshot, err := handle.Snapshot(ctx, "example-pool")
	check(err)
	check(setup.Discard(ctx))

	ready := make(chan *microsandbox.Sandbox, 2)
	go func() {
		defer close(ready)
		for number := range [3]int{} {
			name := fmt.Sprintf("example-pool-%d", number)
			sandbox, err := microsandbox.CreateSandbox(ctx, name,
				microsandbox.WithSnapshot("example-pool"), microsandbox.WithReplace())
			check(err)
			ready <- sandbox
		}
	}()
	number := 0
	for sandbox := range ready {
		output, err := sandbox.Exec(ctx, "sh", []string{"/root/task", fmt.Sprint(number)})
		check(err)
		fmt.Print(output.Stdout())
		check(sandbox.Discard(ctx))
		number++
	}
	check(microsandbox.Snapshot.Remove(ctx, snapshot.Digest(), false))
	// Output:
	// task 0
	// task 1
	// task 2
}

// A server in the guest, on a published port.
func Example_webServer() {
	ctx := context.Background()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	port := uint16(listener.Addr().(*net.TCPAddr).Port)
	check(listener.Close())
	sandbox, err := microsandbox.CreateSandbox(ctx, "example-web", image(),
		microsandbox.WithPorts(map[uint16]uint16{port: 80}), microsandbox.WithReplace())
	check(err)
	defer sandbox.Discard(ctx)
	server := "mkdir -p /www; echo hello from the guest > /www/index.html; httpd -f -p 80 -h /www"
	_, err = sandbox.StartJob(ctx, "sh", []string{"-c", server})
	check(err)
	for range [600]int{} {
		response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		defer response.Body.Close()
		page, err := io.ReadAll(response.Body)
		check(err)
		fmt.Print(string(page))
		return
	}
	// Output:
	// hello from the guest
}
