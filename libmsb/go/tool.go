package microsandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// stopTime is the time for a program to end after SIGTERM, when its call is cancelled.
	stopTime = 2 * time.Second
	// lineBytesMax is the longest JSON line that is read.
	lineBytesMax = 64 << 20
)

// object is a JSON object.
type object map[string]any

var errorKinds = map[string]ErrorKind{
	"SandboxNotFound":        ErrSandboxNotFound,
	"SandboxAlreadyExists":   ErrSandboxAlreadyExists,
	"SandboxStillRunning":    ErrSandboxStillRunning,
	"SandboxNotRunning":      ErrSandboxNotRunning,
	"ImageNotFound":          ErrImageNotFound,
	"ImageInUse":             ErrImageInUse,
	"BootFailed":             ErrBootStart,
	"MetricsDisabled":        ErrMetricsDisabled,
	"UnsupportedOperation":   ErrUnsupportedOperation,
	"Usage":                  ErrInvalidConfig,
	"InvalidConfig":          ErrInvalidConfig,
	"VolumeNotFound":         ErrVolumeNotFound,
	"VolumeAlreadyExists":    ErrVolumeAlreadyExists,
	"VolumeInUse":            ErrVolumeInUse,
	"SnapshotNotFound":       ErrSnapshotNotFound,
	"SnapshotAlreadyExists":  ErrSnapshotAlreadyExists,
	"SnapshotSandboxRunning": ErrSnapshotSandboxRunning,
	"SnapshotImageMissing":   ErrSnapshotImageMissing,
	"SnapshotIntegrity":      ErrSnapshotIntegrity,
	"PullFailed":             ErrImagePullFailed,
}

var (
	programLock sync.Mutex
	programPath string
)

// SetProgram sets the path of the program msb; "" searches it again.
func SetProgram(path string) {
	programLock.Lock()
	defer programLock.Unlock()
	programPath = path
}

// findProgram returns the program msb: the one that was set, MSB_PATH, or of PATH.
func findProgram() (string, error) {
	programLock.Lock()
	named := programPath
	programLock.Unlock()
	if named == "" {
		named = os.Getenv("MSB_PATH")
	}
	where := "'" + named + "'"
	if named == "" {
		named, where = "msb", "PATH"
	}
	found, err := exec.LookPath(named)
	if err == nil {
		found, err = filepath.Abs(found)
	}
	if err != nil {
		missing := fail(ErrProgramNotFound, "cannot find the program 'msb' in %s", where)
		missing.Hint = "install msb, or set MSB_PATH to its path"
		return "", missing
	}
	return found, nil
}

// host is the programs and the state directory that a call uses.
type host struct{ program, home, runtime string }

func currentHost() (*host, error) {
	program, err := findProgram()
	if err != nil {
		return nil, err
	}
	return &host{program, os.Getenv("MSB_HOME"), os.Getenv("XDG_RUNTIME_DIR")}, nil
}

func (h *host) environment(more ...string) []string {
	var environment []string
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		if name != "MSB_HOME" && name != "XDG_RUNTIME_DIR" && name != "MSB_ERRORS" {
			environment = append(environment, pair)
		}
	}
	if h.home != "" {
		environment = append(environment, "MSB_HOME="+h.home)
	}
	if h.runtime != "" {
		environment = append(environment, "XDG_RUNTIME_DIR="+h.runtime)
	}
	return append(environment, more...)
}

// socket returns the path of a sandbox's socket, as in msb-state(5).
func (h *host) socket(name string) string {
	if h.home == "" && h.runtime != "" {
		var status syscall.Stat_t
		if syscall.Stat(h.runtime, &status) == nil && int(status.Uid) == os.Getuid() {
			return filepath.Join(h.runtime, "msb", name, "agent.sock")
		}
	}
	home := h.home
	if home == "" {
		user, _ := os.UserHomeDir()
		home = filepath.Join(user, ".msb")
	}
	return filepath.Join(home, "run", name, "agent.sock")
}

// runOptions are the input, the descriptor 3 and the environment of a program.
type runOptions struct {
	stdin []byte
	bond  *os.File
	more  []string
}

func (h *host) command(args []string, options runOptions) *exec.Cmd {
	command := exec.Command(h.program, args...)
	command.Env = h.environment(append(options.more, "MSB_ERRORS=json")...)
	if options.stdin != nil {
		command.Stdin = bytes.NewReader(options.stdin)
	}
	if options.bond != nil {
		command.ExtraFiles = []*os.File{options.bond}
	}
	// A key such as Ctrl-C reaches the caller, which ends the program itself.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return command
}

// run runs msb to its end and returns its standard output.
func (h *host) run(ctx context.Context, args ...string) ([]byte, error) {
	return h.runWith(ctx, runOptions{}, args...)
}

func (h *host) runWith(ctx context.Context, options runOptions, args ...string) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, cancelled(ctx)
	}
	command := h.command(args, options)
	var output, notes bytes.Buffer
	command.Stdout, command.Stderr = &output, &notes
	if err := command.Start(); err != nil {
		return nil, notStartedProgram(h.program, err)
	}
	err := waitFor(ctx, command)
	if ctx.Err() != nil {
		return nil, cancelled(ctx)
	}
	if err != nil {
		return nil, failure(args, notes.Bytes(), err)
	}
	return output.Bytes(), nil
}

// waitFor waits for the end of a program. A cancellation ends it: by SIGTERM, then by SIGKILL.
func waitFor(ctx context.Context, command *exec.Cmd) error {
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-ended:
			return
		case <-ctx.Done():
			_ = command.Process.Signal(syscall.SIGTERM)
		}
		select {
		case <-ended:
		case <-time.After(stopTime):
			_ = command.Process.Kill()
		}
	}()
	return command.Wait()
}

// json runs msb and decodes the JSON document that it prints.
func (h *host) json(ctx context.Context, into any, args ...string) error {
	output, err := h.run(ctx, args...)
	if err != nil {
		return err
	}
	return parse(args, output, into)
}

func parse(args []string, output []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(output))
	if err := decoder.Decode(into); err != nil {
		err := fail(ErrProtocol, "'msb %s' printed no JSON", strings.Join(args[:1], " "))
		return err
	}
	return nil
}

func notStartedProgram(program string, err error) *Error {
	if errors.Is(err, os.ErrNotExist) {
		return fail(ErrProgramNotFound, "cannot find the program '%s'", program)
	}
	return &Error{Kind: ErrIO, Message: "cannot start '" + program + "': " + err.Error(), Cause: err}
}

// lineReader reads JSON lines of a running program.
type lineReader struct {
	args    []string
	command *exec.Cmd
	lines   *bufio.Scanner
	notes   bytes.Buffer
	ended   bool
	end     chan struct{}
	ctx     context.Context
	once    sync.Once
}

func (h *host) lines(ctx context.Context, args ...string) (*lineReader, error) {
	if ctx.Err() != nil {
		return nil, cancelled(ctx)
	}
	command := h.command(args, runOptions{})
	output, err := command.StdoutPipe()
	if err != nil {
		return nil, notStartedProgram(h.program, err)
	}
	reader := &lineReader{args: args, command: command, ctx: ctx, end: make(chan struct{})}
	command.Stderr = &reader.notes
	if err := command.Start(); err != nil {
		return nil, notStartedProgram(h.program, err)
	}
	reader.lines = bufio.NewScanner(output)
	reader.lines.Buffer(make([]byte, 64<<10), lineBytesMax)
	go func() {
		select {
		case <-reader.end:
			return
		case <-ctx.Done():
			_ = command.Process.Signal(syscall.SIGTERM)
		}
		select {
		case <-reader.end:
		case <-time.After(stopTime):
			_ = command.Process.Kill()
		}
	}()
	return reader, nil
}

// next decodes the next object. It returns io.EOF at the end of a program that succeeded.
func (r *lineReader) next(into any) error {
	for !r.ended && r.lines.Scan() {
		if line := r.lines.Bytes(); len(line) > 0 {
			return parse(r.args, line, into)
		}
	}
	if r.ended {
		return io.EOF
	}
	err := r.wait()
	if r.ctx.Err() != nil {
		return cancelled(r.ctx)
	}
	if err != nil {
		return failure(r.args, r.notes.Bytes(), err)
	}
	return io.EOF
}

func (r *lineReader) wait() error {
	r.ended = true
	err := r.command.Wait()
	r.once.Do(func() { close(r.end) })
	return err
}

// close ends the program.
func (r *lineReader) close() {
	if r.ended {
		return
	}
	_ = r.command.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(stopTime, func() { _ = r.command.Process.Kill() })
	_ = r.wait()
	timer.Stop()
}

// failure returns the error for a program that failed: its last error line.
func failure(args []string, notes []byte, ended error) *Error {
	var last object
	hint := ""
	for _, line := range bytes.Split(notes, []byte("\n")) {
		var found object
		if json.Unmarshal(line, &found) != nil {
			continue
		}
		if _, ok := found["error"]; ok {
			last = found
		}
		if text, _ := found["hint"].(string); text != "" {
			hint = text
		}
	}
	if last == nil {
		text := strings.TrimSpace(string(notes))
		return fail(ErrUnknown, "'msb %s' failed: %v: %s", args[0], ended, text)
	}
	message, _ := last["error"].(string)
	code, _ := last["code"].(string)
	kind, ok := errorKinds[code]
	if !ok {
		kind = ErrUnknown
		if last["tool"] == "msb-image" && args[0] != "image" {
			kind = ErrImagePullFailed
		}
	}
	err := &Error{Kind: kind, Message: message, Hint: hint}
	if kind == ErrUnsupportedOperation {
		err.Fields = fieldsOf(message)
	}
	return err
}

// fieldsOf returns the names in "… unsupported fields: NAME (reason), NAME (reason)".
func fieldsOf(message string) []string {
	_, listed, found := strings.Cut(message, "unsupported fields: ")
	if !found {
		return nil
	}
	var outside strings.Builder
	depth := 0
	for _, letter := range listed {
		if letter == '(' {
			depth++
		}
		if depth == 0 {
			outside.WriteRune(letter)
		}
		if letter == ')' {
			depth--
		}
	}
	var names []string
	for _, name := range strings.Split(outside.String(), ",") {
		if words := strings.Fields(name); len(words) > 0 {
			names = append(names, words[0])
		}
	}
	return names
}

func (o object) text(name string) string {
	value, _ := o[name].(string)
	return value
}

func (o object) int(name string) int64 {
	value, _ := o[name].(float64)
	return int64(value)
}

// timeOf returns a time of the programs; the zero time for a missing one.
func timeOf(text string) time.Time {
	found, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return found
}

// duration returns a time as the programs take it. It rounds up to whole milliseconds.
func duration(value time.Duration) string {
	ms := (value + time.Millisecond - 1) / time.Millisecond
	return strconv.FormatInt(int64(ms), 10) + "ms"
}
