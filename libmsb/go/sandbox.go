package microsandbox

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"sync"
	"time"
)

const (
	// stopDefault is the time for a sandbox to stop before it is killed.
	stopDefault = 10 * time.Second
	// connectTime is the time for a sandbox that starts to accept clients.
	connectTime  = 10 * time.Second
	connectPause = 50 * time.Millisecond
)

// Sandbox is a running sandbox. One that was created or started ends when this process ends, unless
// it is detached. Any number of goroutines can use it.
type Sandbox struct {
	host   *host
	name   string
	client *client
	fs     *SandboxFs
	made   *[2]time.Time

	lock   sync.Mutex
	bond   *os.File
	usedUp bool
	shell  string
}

func newSandbox(host *host, name string, bond *os.File) *Sandbox {
	connections := &client{name: name, path: func() string { return host.socket(name) }}
	return &Sandbox{
		host: host, name: name, client: connections, bond: bond,
		fs: newFs(connections, host, name, ""),
	}
}

// CreateSandbox creates a sandbox and starts it. It returns when its guest accepts commands.
//
// What the installed programs do not support is ErrUnsupportedOperation with the names of the fields,
// and nothing is created.
func CreateSandbox(ctx context.Context, name string, options ...SandboxOption) (*Sandbox, error) {
	config := &sandboxConfig{fields: object{"cpus": 1, "memory_mib": 512}}
	for _, option := range options {
		option(config)
	}
	args, err := config.build(name)
	if err != nil {
		return nil, err
	}
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	document, err := json.Marshal(config.fields)
	if err != nil {
		return nil, invalid("the configuration is no JSON: %v", err)
	}
	began := time.Now()
	bond, err := host.bonded(ctx, config.detached, runOptions{stdin: document, more: config.more}, args)
	if err != nil {
		if errors.Is(err, ErrCancelled) {
			removeMade(host, name, began, time.Now().Add(time.Hour))
		}
		if IsKind(err, ErrImageNotFound) && config.fields["pull_policy"] != "Never" {
			err.(*Error).Kind = ErrImagePullFailed
		}
		return nil, err
	}
	sandbox := newSandbox(host, name, bond)
	sandbox.made = &[2]time.Time{began, time.Now()}
	return sandbox, nil
}

// bonded runs msb with a keepalive pipe at its descriptor 3, unless detached is set.
//
// The supervisor of the sandbox holds the reading end. The kernel closes the writing end when this
// process ends for any reason, SIGKILL included.
func (h *host) bonded(
	ctx context.Context, detached bool, options runOptions, args []string,
) (*os.File, error) {
	if detached {
		_, err := h.runWith(ctx, options, args...)
		return nil, err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, &Error{Kind: ErrIO, Message: err.Error(), Cause: err}
	}
	defer reader.Close()
	options.bond = reader
	bonded := append([]string{args[0], "--bond-fd=3"}, args[1:]...)
	if _, err := h.runWith(ctx, options, bonded...); err != nil {
		writer.Close()
		return nil, err
	}
	return writer, nil
}

// removeMade kills and removes a sandbox, if it was created between two times: ours, and no later one.
func removeMade(host *host, name string, began, ended time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var found object
	if host.json(ctx, &found, "inspect", "--format=json", "--", name) != nil {
		return
	}
	created := timeOf(found.text("created_at"))
	if created.Before(began.Add(-time.Millisecond)) || created.After(ended) {
		return
	}
	_, _ = host.run(ctx, "rm", "--force", "--", name)
}

// StartSandbox starts a sandbox that is not running.
func StartSandbox(ctx context.Context, name string) (*Sandbox, error) {
	return startSandbox(ctx, name, false)
}

// StartSandboxDetached starts a sandbox that goes on without this process.
func StartSandboxDetached(ctx context.Context, name string) (*Sandbox, error) {
	return startSandbox(ctx, name, true)
}

func startSandbox(ctx context.Context, name string, detached bool) (*Sandbox, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	args := []string{"start", "--quiet", "--", name}
	bond, err := host.bonded(ctx, detached, runOptions{}, args)
	if err != nil {
		return nil, err
	}
	return newSandbox(host, name, bond), nil
}

// ConnectSandbox returns a running sandbox, without owning it. It waits while it starts.
func ConnectSandbox(ctx context.Context, name string) (*Sandbox, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	sandbox := newSandbox(host, name, nil)
	for deadline := time.Now().Add(connectTime); ; time.Sleep(connectPause) {
		err := sandbox.client.connect(ctx)
		if err == nil {
			return sandbox, nil
		}
		if !IsKind(err, ErrSandboxNotRunning) {
			return nil, err
		}
		found, foundErr := GetSandbox(ctx, name)
		if foundErr != nil {
			return nil, foundErr
		}
		status := found.Status()
		if status != StatusStarting && status != StatusRunning || time.Now().After(deadline) {
			return nil, err
		}
	}
}

// RemoveSandbox removes a sandbox.
func RemoveSandbox(ctx context.Context, name string) error {
	host, err := currentHost()
	if err == nil {
		_, err = host.run(ctx, "rm", "--", name)
	}
	return err
}

// Name returns the name.
func (s *Sandbox) Name() string { return s.name }

// OwnsLifecycle returns whether the sandbox ends when this process ends.
func (s *Sandbox) OwnsLifecycle() (bool, error) { return s.OwnsLifecycleOrFalse(), nil }

// OwnsLifecycleOrFalse returns whether the sandbox ends when this process ends.
func (s *Sandbox) OwnsLifecycleOrFalse() bool {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.bond != nil
}

// FS returns the files of the guest.
func (s *Sandbox) FS() *SandboxFs { return s.fs }

// Exec runs a command to its end and returns its output. The end of ctx kills it in the guest.
func (s *Sandbox) Exec(
	ctx context.Context, cmd string, args []string, options ...ExecOption,
) (*ExecOutput, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	return runCommand(ctx, s.client, cmd, args, options)
}

// ExecStream starts a command and streams its events. The end of ctx kills it in the guest.
func (s *Sandbox) ExecStream(
	ctx context.Context, cmd string, args []string, options ...ExecOption,
) (*ExecHandle, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	return startCommand(ctx, s.client, cmd, args, options)
}

// Shell runs a script by the shell of the sandbox.
func (s *Sandbox) Shell(
	ctx context.Context, script string, options ...ExecOption,
) (*ExecOutput, error) {
	shell, err := s.shellProgram(ctx)
	if err != nil {
		return nil, err
	}
	return s.Exec(ctx, shell, []string{"-c", script}, options...)
}

// ShellStream starts a script by the shell of the sandbox and streams its events.
func (s *Sandbox) ShellStream(
	ctx context.Context, script string, options ...ExecOption,
) (*ExecHandle, error) {
	shell, err := s.shellProgram(ctx)
	if err != nil {
		return nil, err
	}
	return s.ExecStream(ctx, shell, []string{"-c", script}, options...)
}

// Attach runs a command on the terminal of this process. It returns its exit code.
func (s *Sandbox) Attach(ctx context.Context, cmd string, args ...string) (int, error) {
	if err := s.ready(); err != nil {
		return 0, err
	}
	return attach(ctx, s.host, s.name, "", nil, append([]string{cmd}, args...))
}

// AttachShell runs the shell of the sandbox on the terminal of this process.
func (s *Sandbox) AttachShell(ctx context.Context) (int, error) {
	shell, err := s.shellProgram(ctx)
	if err != nil {
		return 0, err
	}
	return s.Attach(ctx, shell)
}

// Ping asks the guest for a sign of life. It returns the time that it took.
func (s *Sandbox) Ping(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	_, err := s.client.ask(ctx, object{"op": "ping"})
	return time.Since(began), err
}

// Metrics returns the last sample of the resource usage.
func (s *Sandbox) Metrics(ctx context.Context) (*Metrics, error) {
	return readMetrics(ctx, s.host, s.name)
}

// MetricsStream opens a stream of samples.
func (s *Sandbox) MetricsStream(
	ctx context.Context, interval time.Duration,
) (*MetricsStream, error) {
	return openMetrics(ctx, s.host, s.name, interval)
}

// Logs returns the log: output of the main command, of jobs and of logged commands.
func (s *Sandbox) Logs(ctx context.Context, options LogOptions) ([]LogEntry, error) {
	return readLogs(ctx, s.host, s.name, options)
}

// LogStream opens a stream of the log, from the start, a time or a cursor.
func (s *Sandbox) LogStream(ctx context.Context, options LogStreamOptions) (*LogStream, error) {
	return openLogs(ctx, s.host, s.name, options)
}

// SSH returns sessions as over SSH.
func (s *Sandbox) SSH() *SandboxSSH { return &SandboxSSH{s} }

// Stop stops the sandbox and waits for its end. It is killed after 10 seconds.
func (s *Sandbox) Stop(ctx context.Context) error {
	return stopSandbox(ctx, s.host, s.name, stopDefault)
}

// StopWithTimeout stops the sandbox, and kills it when the time is up; 0 kills it at once.
func (s *Sandbox) StopWithTimeout(ctx context.Context, timeout time.Duration) error {
	return stopSandbox(ctx, s.host, s.name, timeout)
}

// StopAndWait stops the sandbox and returns the exit code of its main command.
func (s *Sandbox) StopAndWait(ctx context.Context) (int, error) {
	if err := s.Stop(ctx); err != nil {
		return 0, err
	}
	return s.Wait(ctx)
}

// Wait waits for the end. It returns the exit code of the main command; 0 if it had none.
func (s *Sandbox) Wait(ctx context.Context) (int, error) {
	result, err := waitUntilStopped(ctx, s.host, s.name)
	if err != nil || result.ExitCode == nil {
		return 0, err
	}
	return *result.ExitCode, nil
}

// WaitUntilStopped waits for the end of the sandbox.
func (s *Sandbox) WaitUntilStopped(ctx context.Context) (*StopResult, error) {
	return waitUntilStopped(ctx, s.host, s.name)
}

// Kill kills the sandbox and waits for its end.
func (s *Sandbox) Kill(ctx context.Context) error { return stopSandbox(ctx, s.host, s.name, 0) }

// Drain asks the sandbox to end when its commands have ended. msb does not serve this.
func (s *Sandbox) Drain(context.Context) error { return unsupported("drain") }

// Detach lets the sandbox go on without this process. The object is used up.
func (s *Sandbox) Detach(context.Context) error {
	if err := s.ready(); err != nil {
		return err
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	if s.bond != nil {
		_, _ = s.bond.Write([]byte("d"))
		s.bond.Close()
		s.bond = nil
	}
	s.useUp()
	return nil
}

// RemovePersisted removes the stopped sandbox. The object is used up.
func (s *Sandbox) RemovePersisted(ctx context.Context) error {
	if _, err := s.host.run(ctx, "rm", "--", s.name); err != nil {
		return err
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	s.useUp()
	return nil
}

// Close stops the sandbox if it ends with this process, and closes the connections. The second call
// is ErrInvalidHandle.
func (s *Sandbox) Close() error {
	if err := s.ready(); err != nil {
		return err
	}
	var err error
	if s.OwnsLifecycleOrFalse() {
		err = s.Stop(context.Background())
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	s.useUp()
	return err
}

// Discard kills the sandbox, and removes it if this object created it and no other took its place.
func (s *Sandbox) Discard(ctx context.Context) error {
	var err error
	if s.made != nil {
		removeMade(s.host, s.name, s.made[0], s.made[1])
	} else {
		err = s.Kill(ctx)
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	s.useUp()
	return err
}

// useUp closes everything. The lock is held.
func (s *Sandbox) useUp() {
	s.usedUp = true
	s.fs.close()
	s.client.close()
	if s.bond != nil {
		s.bond.Close()
		s.bond = nil
	}
}

func (s *Sandbox) ready() error {
	s.lock.Lock()
	defer s.lock.Unlock()
	if s.usedUp {
		return fail(ErrInvalidHandle, "the object of the sandbox '%s' is used up", s.name)
	}
	return nil
}

func (s *Sandbox) shellProgram(ctx context.Context) (string, error) {
	s.lock.Lock()
	shell := s.shell
	s.lock.Unlock()
	if shell != "" {
		return shell, nil
	}
	found, err := GetSandbox(ctx, s.name)
	if err != nil {
		return "", err
	}
	shell = "/bin/sh"
	if config, ok := found.document["config"].(map[string]any); ok {
		if named, _ := config["shell"].(string); named != "" {
			shell = named
		}
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	s.shell = shell
	return shell, nil
}
