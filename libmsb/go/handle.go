package microsandbox

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"time"
)

// SandboxStatus is the state of a sandbox.
type SandboxStatus string

// States of a sandbox. Draining does not occur.
const (
	StatusCreated  SandboxStatus = "created"
	StatusStarting SandboxStatus = "starting"
	StatusRunning  SandboxStatus = "running"
	StatusPaused   SandboxStatus = "paused"
	StatusDraining SandboxStatus = "draining"
	StatusStopping SandboxStatus = "stopping"
	StatusStopped  SandboxStatus = "stopped"
	StatusCrashed  SandboxStatus = "crashed"
)

// namesAtOnce is the number of names in the arguments of one program.
const namesAtOnce = 500

// StopResult is the end of a sandbox. ExitCode and Signal are those of the main command, if it ended.
type StopResult struct {
	Name     string
	Status   SandboxStatus
	ExitCode *int
	Signal   *int
	Reason   string
	// Clean is whether the guest's file systems were flushed.
	Clean bool
}

// statusOf returns the status of a word of the programs. Broken files count as a crash.
func statusOf(word string) SandboxStatus {
	switch status := SandboxStatus(strings.ToLower(word)); status {
	case StatusCreated, StatusStarting, StatusRunning, StatusPaused, StatusStopping, StatusStopped:
		return status
	}
	return StatusCrashed
}

func stopSandbox(ctx context.Context, host *host, name string, timeout time.Duration) error {
	if timeout < 0 {
		return invalid("the timeout is negative")
	}
	limit := "--timeout=" + duration(timeout)
	if timeout == 0 {
		limit = "--force"
	}
	_, err := host.run(ctx, "stop", "--quiet", limit, "--", name)
	if IsKind(err, ErrSandboxNotRunning) {
		// It has ended already, which is what was asked for.
		return nil
	}
	return err
}

func waitUntilStopped(ctx context.Context, host *host, name string) (*StopResult, error) {
	var line struct {
		Status   string `json:"status"`
		ExitCode *int   `json:"exit_code"`
		Reason   string `json:"reason"`
		Clean    bool   `json:"clean"`
	}
	if err := host.json(ctx, &line, "wait", "--format=json", "--", name); err != nil {
		return nil, err
	}
	result := &StopResult{
		Name: name, Status: statusOf(line.Status), ExitCode: line.ExitCode, Reason: line.Reason,
		Clean: line.Clean,
	}
	if line.ExitCode != nil && *line.ExitCode > 128 && *line.ExitCode < 193 {
		signal := *line.ExitCode - 128
		result.Signal = &signal
	}
	return result, nil
}

// SandboxHandle is a sandbox by its name, with its state at one moment.
type SandboxHandle struct {
	host     *host
	document object
}

// GetSandbox returns the handle of a sandbox, running or not.
func GetSandbox(ctx context.Context, name string) (*SandboxHandle, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	handle := &SandboxHandle{host: host}
	args := []string{"inspect", "--format=json", "--as=microsandbox", "--", name}
	if err := host.json(ctx, &handle.document, args...); err != nil {
		return nil, err
	}
	return handle, nil
}

// SandboxFilter selects sandboxes.
type SandboxFilter struct{ labels map[string]string }

// NewSandboxFilter returns a filter that selects every sandbox.
func NewSandboxFilter() *SandboxFilter { return &SandboxFilter{map[string]string{}} }

// WithLabels selects sandboxes that have all these labels.
func (f *SandboxFilter) WithLabels(labels map[string]string) *SandboxFilter {
	for name, value := range labels {
		f.labels[name] = value
	}
	return f
}

// ListSandboxes returns the handles of all sandboxes, sorted by name.
func ListSandboxes(ctx context.Context) ([]*SandboxHandle, error) {
	return ListSandboxesWith(ctx, NewSandboxFilter())
}

// ListSandboxesWith returns the handles of the sandboxes that a filter selects, sorted by name.
func ListSandboxesWith(ctx context.Context, filter *SandboxFilter) ([]*SandboxHandle, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	args := []string{"ls", "--format=json"}
	for name, value := range filter.labels {
		args = append(args, "--label="+name+"="+value)
	}
	var rows []object
	if err := host.json(ctx, &rows, args...); err != nil {
		return nil, err
	}
	var names []string
	for _, row := range rows {
		if row["error"] == nil {
			names = append(names, row.text("name"))
		}
	}
	found := map[string]object{}
	for len(names) > 0 {
		some := names
		if len(some) > namesAtOnce {
			some = some[:namesAtOnce]
		}
		names = names[len(some):]
		if err := inspectAll(ctx, host, some, found); err != nil {
			return nil, err
		}
	}
	var handles []*SandboxHandle
	for _, row := range rows {
		// A sandbox that was removed meanwhile is missing; one that cannot be read has no config.
		document, ok := found[row.text("name")]
		if row["error"] != nil {
			document, ok = row, true
		}
		if ok {
			handles = append(handles, &SandboxHandle{host, document})
		}
	}
	return handles, nil
}

func inspectAll(ctx context.Context, host *host, names []string, found map[string]object) error {
	args := append([]string{"inspect", "--format=json", "--as=microsandbox", "--"}, names...)
	if len(names) == 1 {
		var document object
		if err := host.json(ctx, &document, args...); err == nil {
			found[names[0]] = document
		}
		return nil
	}
	reader, err := host.lines(ctx, args...)
	if err != nil {
		return err
	}
	defer reader.close()
	for {
		var document object
		err := reader.next(&document)
		if err == io.EOF || err != nil && len(found) > 0 && !IsKind(err, ErrCancelled) {
			return nil
		}
		if err != nil {
			return err
		}
		found[document.text("name")] = document
	}
}

// Name returns the name.
func (h *SandboxHandle) Name() string { return h.document.text("name") }

// Status returns the state, when the handle was made.
func (h *SandboxHandle) Status() SandboxStatus { return statusOf(h.document.text("status")) }

// ConfigJSON returns the configuration, in the form that msb create --from-microsandbox reads.
func (h *SandboxHandle) ConfigJSON() string {
	config, err := json.Marshal(h.document["config"])
	if err != nil || h.document["config"] == nil {
		return "{}"
	}
	return string(config)
}

// CreatedAt returns the time of the creation.
func (h *SandboxHandle) CreatedAt() time.Time { return timeOf(h.document.text("created_at")) }

// UpdatedAt returns the time at which the state was entered.
func (h *SandboxHandle) UpdatedAt() time.Time { return timeOf(h.document.text("updated_at")) }

// Refresh returns a new handle with the state of now.
func (h *SandboxHandle) Refresh(ctx context.Context) (*SandboxHandle, error) {
	return GetSandbox(ctx, h.Name())
}

// Metrics returns the last sample of the resource usage.
func (h *SandboxHandle) Metrics(ctx context.Context) (*Metrics, error) {
	return readMetrics(ctx, h.host, h.Name())
}

// Logs returns the log. The sandbox need not run.
func (h *SandboxHandle) Logs(ctx context.Context, options LogOptions) ([]LogEntry, error) {
	return readLogs(ctx, h.host, h.Name(), options)
}

// LogStream opens a stream of the log.
func (h *SandboxHandle) LogStream(
	ctx context.Context, options LogStreamOptions,
) (*LogStream, error) {
	return openLogs(ctx, h.host, h.Name(), options)
}

// Start starts the sandbox.
func (h *SandboxHandle) Start(ctx context.Context) (*Sandbox, error) {
	return StartSandbox(ctx, h.Name())
}

// StartDetached starts the sandbox, which goes on without this process.
func (h *SandboxHandle) StartDetached(ctx context.Context) (*Sandbox, error) {
	return StartSandboxDetached(ctx, h.Name())
}

// Connect returns the running sandbox, without owning it.
func (h *SandboxHandle) Connect(ctx context.Context) (*Sandbox, error) {
	return ConnectSandbox(ctx, h.Name())
}

// Stop stops the sandbox. It is killed after 10 seconds.
func (h *SandboxHandle) Stop(ctx context.Context) error {
	return stopSandbox(ctx, h.host, h.Name(), stopDefault)
}

// StopWithTimeout stops the sandbox, and kills it when the time is up; 0 kills it at once.
func (h *SandboxHandle) StopWithTimeout(ctx context.Context, timeout time.Duration) error {
	return stopSandbox(ctx, h.host, h.Name(), timeout)
}

// Kill kills the sandbox.
func (h *SandboxHandle) Kill(ctx context.Context) error {
	return stopSandbox(ctx, h.host, h.Name(), 0)
}

// Remove removes the sandbox.
func (h *SandboxHandle) Remove(ctx context.Context) error { return RemoveSandbox(ctx, h.Name()) }

// WaitUntilStopped waits for the end of the sandbox.
func (h *SandboxHandle) WaitUntilStopped(ctx context.Context) (*StopResult, error) {
	return waitUntilStopped(ctx, h.host, h.Name())
}

// Snapshot creates a snapshot of the sandbox.
func (h *SandboxHandle) Snapshot(ctx context.Context, name string) (*SnapshotArtifact, error) {
	return Snapshot.Create(ctx, h.Name(), SnapshotCreateOptions{Name: name})
}

// SnapshotTo creates a snapshot of the sandbox in a new directory.
func (h *SandboxHandle) SnapshotTo(ctx context.Context, path string) (*SnapshotArtifact, error) {
	return Snapshot.Create(ctx, h.Name(), SnapshotCreateOptions{Path: path})
}
