package microsandbox

import (
	"context"
	"syscall"
	"time"
)

// Job is a command that continues without a client.
//
// A job survives this process. Another one finds it by Jobs, reads what it printed meanwhile from the
// log, and waits for it.
type Job struct {
	sandbox *Sandbox
	id      string
}

// JobInfo is the state of a job. Status is running, exited, or lost if the sandbox ended before it.
type JobInfo struct {
	ID        string
	Status    string
	Command   []string
	PID       int
	ExitCode  *int
	TimedOut  bool
	OOMKilled bool
	StartedAt time.Time
	EndedAt   time.Time
}

type jobFields struct {
	ID        string   `json:"id"`
	Status    string   `json:"status"`
	Command   []string `json:"command"`
	PID       int      `json:"pid"`
	ExitCode  *int     `json:"exit_code"`
	TimedOut  bool     `json:"timed_out"`
	OOMKilled bool     `json:"oom_killed"`
	StartedAt string   `json:"started_at"`
	EndedAt   string   `json:"ended_at"`
}

func (f jobFields) info() JobInfo {
	return JobInfo{
		f.ID, string(jobStatus(f.Status)), f.Command, f.PID, f.ExitCode, f.TimedOut, f.OOMKilled,
		timeOf(f.StartedAt), timeOf(f.EndedAt),
	}
}

func jobStatus(word string) string {
	switch word {
	case "Running", "running":
		return "running"
	case "Exited", "exited":
		return "exited"
	}
	return "lost"
}

// StartJob starts a command that continues without this process. Its output is in the log.
func (s *Sandbox) StartJob(
	ctx context.Context, cmd string, args []string, options ...ExecOption,
) (*Job, error) {
	config, err := execConfigOf(append(options, WithExecLog(false)))
	if err != nil {
		return nil, err
	}
	request, needs, err := config.request(cmd, args)
	if err != nil {
		return nil, err
	}
	request["job"] = true
	if config.timeout > 0 {
		request["timeout_ms"] = (config.timeout + time.Millisecond - 1) / time.Millisecond
	}
	answer, err := s.client.ask(ctx, request, append(needs, "jobs")...)
	if err != nil {
		return nil, err
	}
	if answer.text("type") == "failed" {
		return nil, notStarted(answer, cmd)
	}
	return &Job{s, answer.text("job")}, nil
}

// Job returns a job by its identifier.
func (s *Sandbox) Job(ctx context.Context, id string) (*Job, error) {
	job := &Job{s, id}
	_, err := job.Info(ctx)
	return job, err
}

// Jobs returns the running jobs and the last ones that have ended.
func (s *Sandbox) Jobs(ctx context.Context) ([]JobInfo, error) {
	var rows []jobFields
	if err := s.host.json(ctx, &rows, "jobs", "--format=json", "--", s.name); err != nil {
		return nil, err
	}
	var infos []JobInfo
	for _, row := range rows {
		infos = append(infos, row.info())
	}
	return infos, nil
}

// ID returns the identifier.
func (j *Job) ID() string { return j.id }

// Info returns the state.
func (j *Job) Info(ctx context.Context) (*JobInfo, error) {
	var rows []jobFields
	err := j.sandbox.host.json(ctx, &rows, "jobs", "--format=json", j.sandbox.name, j.id)
	if err == nil && len(rows) == 0 {
		err = fail(ErrProtocol, "'msb jobs' printed no job")
	}
	if err != nil {
		return nil, err
	}
	info := rows[0].info()
	return &info, nil
}

// Wait waits for the end and returns the exit code.
func (j *Job) Wait(ctx context.Context) (int, error) {
	call, err := j.sandbox.client.call(ctx, object{"op": "attach", "job": j.id}, "jobs")
	last := object{}
	if err == nil {
		defer call.abandon()
		for last["type"] == nil {
			item, err := call.receive(ctx)
			if err != nil {
				return 0, err
			}
			if item.last {
				last = item.message
			}
		}
	} else if !IsKind(err, ErrSandboxNotRunning) {
		return 0, err
	}
	info, err := j.Info(ctx)
	if err != nil {
		return 0, err
	}
	switch {
	case info.ExitCode != nil:
		return *info.ExitCode, nil
	case last.text("type") == "exited":
		// The record is written after the event.
		return exitCode(last), nil
	}
	return 0, fail(ErrUnknown, "the sandbox ended before the job '%s'", j.id)
}

// Signal sends a signal to the process group of the job.
func (j *Job) Signal(ctx context.Context, signal int) error {
	request := object{"op": "signal", "job": j.id, "signal": signal}
	answer, err := j.sandbox.client.ask(ctx, request, "jobs")
	if err == nil && answer.text("type") == "failed" {
		return notStarted(answer, "job "+j.id)
	}
	return err
}

// Kill kills the process group of the job.
func (j *Job) Kill(ctx context.Context) error { return j.Signal(ctx, int(syscall.SIGKILL)) }

// Logs returns what the job has printed.
func (j *Job) Logs(ctx context.Context, options LogOptions) ([]LogEntry, error) {
	options.job = j.id
	return readLogs(ctx, j.sandbox.host, j.sandbox.name, options)
}

// LogStream opens a stream of what the job prints.
func (j *Job) LogStream(ctx context.Context, options LogStreamOptions) (*LogStream, error) {
	options.job = j.id
	return openLogs(ctx, j.sandbox.host, j.sandbox.name, options)
}
