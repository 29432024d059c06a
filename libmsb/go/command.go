package microsandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"
)

// killTime is the time for a killed command to end, before its call is given up.
const killTime = 2 * time.Second

var errnos = map[string]syscall.Errno{
	"not_found": syscall.ENOENT, "permission_denied": syscall.EACCES,
	"not_executable": syscall.ENOEXEC, "resource_limit": syscall.EAGAIN,
}

var errnoNames = map[string]string{
	"not_found": "ENOENT", "permission_denied": "EACCES",
	"not_executable": "ENOEXEC", "resource_limit": "EAGAIN",
}

// ExecOutput is the result of a command that has ended.
type ExecOutput struct {
	code           int
	stdout, stderr []byte
	truncated      bool
	oomKilled      bool
}

// ExitCode returns the exit code; 128 + n if signal n killed the command.
func (o *ExecOutput) ExitCode() int { return o.code }

// Success returns whether the exit code is 0.
func (o *ExecOutput) Success() bool { return o.code == 0 }

// Stdout returns standard output as text.
func (o *ExecOutput) Stdout() string { return string(o.stdout) }

// Stderr returns standard error as text.
func (o *ExecOutput) Stderr() string { return string(o.stderr) }

// StdoutBytes returns standard output.
func (o *ExecOutput) StdoutBytes() []byte { return o.stdout }

// StderrBytes returns standard error.
func (o *ExecOutput) StderrBytes() []byte { return o.stderr }

// Truncated returns whether a stream was longer than WithExecMaxOutput allows.
func (o *ExecOutput) Truncated() bool { return o.truncated }

// OOMKilled returns whether the guest's kernel killed the command for lack of memory.
func (o *ExecOutput) OOMKilled() bool { return o.oomKilled }

// ExecEventKind is the kind of an event of a command.
type ExecEventKind string

// Kinds of events.
const (
	ExecEventStarted    ExecEventKind = "started"
	ExecEventStdout     ExecEventKind = "stdout"
	ExecEventStderr     ExecEventKind = "stderr"
	ExecEventExited     ExecEventKind = "exited"
	ExecEventFailed     ExecEventKind = "failed"
	ExecEventStdinError ExecEventKind = "stdin_error"
	ExecEventDone       ExecEventKind = "done"
)

// ExecEvent is an event of a command.
type ExecEvent struct {
	Kind ExecEventKind
	// PID is the process ID in the guest, of a started event.
	PID int
	// Data is the output, of a stdout or stderr event.
	Data []byte
	// ExitCode is that of an exited event.
	ExitCode int
	// Failure is the reason of a failed or stdin_error event.
	Failure *ExecFailure
}

// ExecHandle is a running command. The context of ExecStream kills it when it ends.
type ExecHandle struct {
	call    *call
	command string
	config  *execConfig
	ctx     context.Context
	expired context.Context
	stop    context.CancelFunc

	lock      sync.Mutex
	events    []ExecEvent
	pid       int
	ended     bool
	code      int
	failure   *Error
	oomKilled bool
	sink      *ExecSink
}

// ExecSink is the standard input of a running command.
type ExecSink struct {
	handle *ExecHandle
	once   sync.Once
	closed bool
}

// Write writes bytes. It waits while the command does not read.
func (s *ExecSink) Write(data []byte) (int, error) {
	if s.closed {
		return 0, fail(ErrInvalidHandle, "the input is closed")
	}
	if err := s.handle.call.write(s.handle.expired, data); err != nil {
		return 0, err
	}
	return len(data), nil
}

// Close ends the input.
func (s *ExecSink) Close() error {
	s.once.Do(func() {
		s.closed = true
		s.handle.call.closeStdin()
	})
	return nil
}

// startCommand starts a command and waits until it runs.
func startCommand(
	ctx context.Context, client *client, cmd string, args []string, options []ExecOption,
) (*ExecHandle, error) {
	config, err := execConfigOf(options)
	if err != nil {
		return nil, err
	}
	request, needs, err := config.request(cmd, args)
	if err != nil {
		return nil, err
	}
	call, err := client.call(ctx, request, needs...)
	if err != nil {
		return nil, err
	}
	handle := &ExecHandle{call: call, command: cmd, config: config, ctx: ctx}
	handle.expired, handle.stop = context.WithCancel(ctx)
	if config.timeout > 0 {
		handle.expired, handle.stop = context.WithTimeout(ctx, config.timeout)
	}
	item, err := handle.next()
	if err != nil {
		return nil, err
	}
	if item.message == nil {
		handle.Close()
		return nil, fail(ErrProtocol, "output before the command's start")
	}
	if item.message.text("type") == "failed" {
		handle.stop()
		return nil, notStarted(item.message, cmd)
	}
	handle.pid = int(item.message.int("pid"))
	handle.events = []ExecEvent{{Kind: ExecEventStarted, PID: handle.pid}}
	if item.last {
		handle.end(item.message)
	} else if config.pipe {
		handle.sink = &ExecSink{handle: handle}
	} else if config.hasStdin {
		go handle.pump(config.stdin)
	}
	go handle.watch()
	return handle, nil
}

// watch kills the command when its context or its time ends.
func (h *ExecHandle) watch() {
	select {
	case <-h.call.done:
		return
	case <-h.expired.Done():
	}
	h.lock.Lock()
	ended := h.ended
	h.lock.Unlock()
	if ended {
		return
	}
	if h.ctx.Err() == nil {
		h.call.control(object{"type": "signal", "signal": int(syscall.SIGKILL)})
	} else {
		h.call.abandon()
	}
	// A command that does not end holds no caller.
	h.call.waitEnded(killTime)
	h.call.finish()
}

// pump writes an input to the command and ends it.
func (h *ExecHandle) pump(input io.Reader) {
	defer h.call.closeStdin()
	buffer := make([]byte, 64<<10)
	for input != nil {
		count, err := input.Read(buffer)
		if count > 0 {
			if h.call.write(h.expired, buffer[:count]) != nil {
				return
			}
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			h.lock.Lock()
			failure := &ExecFailure{Kind: "stdin", Message: err.Error()}
			h.events = append(h.events, ExecEvent{Kind: ExecEventStdinError, Failure: failure})
			h.lock.Unlock()
			return
		}
	}
}

// ID returns the identifier of the call on its connection.
func (h *ExecHandle) ID() string { return fmt.Sprint(h.call.stream) }

// PID returns the process ID in the guest.
func (h *ExecHandle) PID() int { return h.pid }

// TakeStdin returns the input of a command with WithExecStdinPipe, once; then nil.
func (h *ExecHandle) TakeStdin() io.WriteCloser {
	h.lock.Lock()
	defer h.lock.Unlock()
	if h.sink == nil {
		return nil
	}
	sink := h.sink
	h.sink = nil
	return sink
}

// Recv returns the next event; one of the kind done after the last one.
func (h *ExecHandle) Recv(ctx context.Context) (*ExecEvent, error) {
	for {
		h.lock.Lock()
		ended := h.ended
		if len(h.events) > 0 {
			event := h.events[0]
			h.events = h.events[1:]
			h.lock.Unlock()
			return &event, nil
		}
		h.lock.Unlock()
		if ended {
			return &ExecEvent{Kind: ExecEventDone}, nil
		}
		item, err := h.nextWithin(ctx)
		if err != nil {
			return nil, err
		}
		if item.last {
			h.end(item.message)
		} else if len(item.bytes) > 0 {
			kind := ExecEventStdout
			if item.channel == channelStderr {
				kind = ExecEventStderr
			}
			return &ExecEvent{Kind: kind, Data: item.bytes}, nil
		}
	}
}

// Wait waits for the end and returns the exit code. Output is dropped.
func (h *ExecHandle) Wait(ctx context.Context) (int, error) {
	err := h.copyWithin(ctx, io.Discard, io.Discard)
	return h.code, err
}

// CopyTo copies the output to writers until the end, and returns the exit code.
func (h *ExecHandle) CopyTo(ctx context.Context, stdout, stderr io.Writer) (int, error) {
	err := h.copyWithin(ctx, stdout, stderr)
	return h.code, err
}

// Collect waits for the end and returns the output.
func (h *ExecHandle) Collect(ctx context.Context) (*ExecOutput, error) {
	stdout, stderr := capture{most: h.config.most}, capture{most: h.config.most}
	if err := h.copyWithin(ctx, &stdout, &stderr); err != nil {
		var found *Error
		if errors.As(err, &found) {
			found.Stdout, found.Stderr = stdout.buffer.Bytes(), stderr.buffer.Bytes()
		}
		return nil, err
	}
	return &ExecOutput{
		code: h.code, stdout: stdout.buffer.Bytes(), stderr: stderr.buffer.Bytes(),
		truncated: stdout.truncated || stderr.truncated, oomKilled: h.oomKilled,
	}, nil
}

func (h *ExecHandle) copyWithin(ctx context.Context, stdout, stderr io.Writer) error {
	for !h.hasEnded() {
		item, err := h.nextWithin(ctx)
		if err != nil {
			return err
		}
		if item.last {
			h.end(item.message)
			break
		}
		writer := stdout
		if item.channel == channelStderr {
			writer = stderr
		}
		if _, err := writer.Write(item.bytes); err != nil {
			h.Close()
			return err
		}
	}
	if h.failure != nil {
		return h.failure
	}
	return nil
}

// Signal sends a signal to the process group of the command.
func (h *ExecHandle) Signal(_ context.Context, signal int) error {
	if signal < 1 {
		return invalid("%d is not a signal", signal)
	}
	h.call.control(object{"type": "signal", "signal": signal})
	return nil
}

// Kill kills the process group of the command. Wait waits for its end.
func (h *ExecHandle) Kill(ctx context.Context) error { return h.Signal(ctx, int(syscall.SIGKILL)) }

// Resize sets the size of the command's terminal.
func (h *ExecHandle) Resize(_ context.Context, size TTY) error {
	h.call.control(object{"type": "resize", "rows": size.Rows, "cols": size.Cols})
	return nil
}

// Close kills the command if it still runs, and waits until it has ended.
func (h *ExecHandle) Close() error {
	h.call.abandon()
	h.call.waitEnded(killTime)
	h.stop()
	return nil
}

func (h *ExecHandle) hasEnded() bool {
	h.lock.Lock()
	defer h.lock.Unlock()
	return h.ended
}

// next returns what comes next, of a command whose context has not ended.
func (h *ExecHandle) next() (incoming, error) {
	item, err := h.call.receive(h.expired)
	if err == nil {
		return item, nil
	}
	// Nothing watches the command before it has started.
	if h.expired.Err() != nil {
		h.call.abandon()
		h.call.waitEnded(killTime)
	}
	return incoming{}, h.reason(err)
}

// nextWithin returns what comes next. The end of ctx leaves the command alone.
func (h *ExecHandle) nextWithin(ctx context.Context) (incoming, error) {
	item, err := h.call.receive(ctx)
	if err != nil {
		if ctx.Err() != nil && h.ctx.Err() == nil {
			return incoming{}, err
		}
		if h.ctx.Err() != nil {
			h.call.waitEnded(killTime + time.Second)
		}
		return incoming{}, h.reason(err)
	}
	if item.last && h.expired.Err() != nil {
		h.end(item.message)
		return incoming{}, h.reason(nil)
	}
	return item, nil
}

// reason returns the error of the end of the command's context or time, or another error.
func (h *ExecHandle) reason(err error) error {
	defer h.stop()
	if h.ctx.Err() != nil {
		return cancelled(h.ctx)
	}
	if errors.Is(h.expired.Err(), context.DeadlineExceeded) {
		expired := fail(ErrExecTimeout, "'%s' was killed after %v", h.command, h.config.timeout)
		expired.Timeout = h.config.timeout
		return expired
	}
	return err
}

func (h *ExecHandle) end(message object) {
	h.lock.Lock()
	defer h.lock.Unlock()
	h.ended = true
	h.oomKilled, _ = message["oom_killed"].(bool)
	if message.text("type") == "failed" {
		h.code, h.failure = 127, notStarted(message, h.command)
		event := ExecEvent{Kind: ExecEventFailed, Failure: h.failure.Failure}
		h.events = append(h.events, event)
	} else {
		h.code = exitCode(message)
		h.events = append(h.events, ExecEvent{Kind: ExecEventExited, ExitCode: h.code})
	}
	if h.expired.Err() == nil {
		h.stop()
	}
}

// capture keeps output up to a number of bytes.
type capture struct {
	buffer    bytes.Buffer
	most      int
	truncated bool
}

func (c *capture) Write(data []byte) (int, error) {
	kept := data
	if left := c.most - c.buffer.Len(); c.most >= 0 && len(data) > left {
		c.truncated = true
		kept = data[:left]
	}
	c.buffer.Write(kept)
	return len(data), nil
}

// exitCode returns the exit code of a last event, as shells have it.
func exitCode(message object) int {
	if message["signal"] != nil {
		return 128 + int(message.int("signal"))
	}
	return int(message.int("code"))
}

// notStarted returns the error for a command that was not started.
func notStarted(message object, cmd string) *Error {
	kind, why := message.text("kind"), message.text("message")
	if kind == "unsupported_operation" {
		return unsupported(why)
	}
	err := fail(ErrExecFailed, "cannot run '%s': %s", cmd, why)
	err.Failure = &ExecFailure{
		Kind: kind, Errno: int(errnos[kind]), ErrnoName: errnoNames[kind], Message: why, Path: cmd,
	}
	return err
}

// runCommand runs a command to its end. The end of the context kills it in the guest.
func runCommand(
	ctx context.Context, client *client, cmd string, args []string, options []ExecOption,
) (*ExecOutput, error) {
	handle, err := startCommand(ctx, client, cmd, args, options)
	if err != nil {
		return nil, err
	}
	return handle.Collect(context.Background())
}
