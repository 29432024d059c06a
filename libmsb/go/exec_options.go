package microsandbox

import (
	"io"
	"strings"
	"time"
)

// RlimitResource is a resource that setrlimit(2) limits, such as "nofile".
type RlimitResource string

// Rlimit is a resource limit. A nil limit is no limit.
type Rlimit struct {
	Resource   RlimitResource
	Soft, Hard *uint64
}

// TTY is the size of a terminal.
type TTY struct{ Rows, Cols uint16 }

type execConfig struct {
	cwd, user string
	env       map[string]string
	timeout   time.Duration
	hasStdin  bool
	stdin     io.Reader
	pipe      bool
	tty       *TTY
	rlimits   []Rlimit
	noLog     bool
	most      int
	login     bool
}

// ExecOption is an option of a command.
type ExecOption func(*execConfig)

// WithExecCwd sets the working directory.
func WithExecCwd(path string) ExecOption { return func(c *execConfig) { c.cwd = path } }

// WithExecUser sets the user.
func WithExecUser(user string) ExecOption { return func(c *execConfig) { c.user = user } }

// WithExecEnv sets environment variables. Several are merged.
func WithExecEnv(env map[string]string) ExecOption {
	return func(c *execConfig) {
		if c.env == nil {
			c.env = map[string]string{}
		}
		for name, value := range env {
			c.env[name] = value
		}
	}
}

// WithExecTimeout kills the command after a time. The error has the output until then.
func WithExecTimeout(timeout time.Duration) ExecOption {
	return func(c *execConfig) { c.timeout = timeout }
}

// WithExecStdinPipe gives an input that ExecHandle.TakeStdin writes.
func WithExecStdinPipe() ExecOption {
	return func(c *execConfig) { c.hasStdin, c.pipe, c.stdin = true, true, nil }
}

// WithExecStdin gives an input, which is read to its end.
func WithExecStdin(input io.Reader) ExecOption {
	return func(c *execConfig) { c.hasStdin, c.pipe, c.stdin = true, false, input }
}

// WithExecStdinBytes gives bytes as the input.
func WithExecStdinBytes(data []byte) ExecOption {
	return WithExecStdin(strings.NewReader(string(data)))
}

// WithExecTTY gives a terminal.
func WithExecTTY(size TTY) ExecOption { return func(c *execConfig) { c.tty = &size } }

// WithExecRlimit limits a resource.
func WithExecRlimit(resource RlimitResource, soft, hard uint64) ExecOption {
	return func(c *execConfig) { c.rlimits = append(c.rlimits, Rlimit{resource, &soft, &hard}) }
}

// WithExecLog logs the output, which is the default.
func WithExecLog(log bool) ExecOption { return func(c *execConfig) { c.noLog = !log } }

// WithExecMaxOutput bounds what is kept of each stream.
func WithExecMaxOutput(bytes int) ExecOption { return func(c *execConfig) { c.most = bytes } }

func execConfigOf(options []ExecOption) (*execConfig, error) {
	config := &execConfig{most: -1}
	for _, option := range options {
		option(config)
	}
	if config.timeout < 0 {
		return nil, invalid("the timeout is negative")
	}
	for name, value := range config.env {
		if name == "" || strings.Contains(name, "=") {
			return nil, invalid("%q cannot be the name of a variable", name)
		}
		if err := unixTexts(name, value); err != nil {
			return nil, err
		}
	}
	return config, unixTexts(config.cwd, config.user)
}

// request returns the request of the wire protocol, and the operations that its fields need.
func (c *execConfig) request(cmd string, args []string) (object, []string, error) {
	argv := append([]string{cmd}, args...)
	if err := unixTexts(argv...); err != nil {
		return nil, nil, err
	}
	request := object{"op": "exec", "argv": argv, "stdin": c.hasStdin}
	var needs []string
	if len(c.env) > 0 {
		pairs := make([]string, 0, len(c.env))
		for name, value := range c.env {
			pairs = append(pairs, name+"="+value)
		}
		request["env"] = pairs
	}
	if c.cwd != "" {
		request["cwd"] = c.cwd
	}
	if c.user != "" {
		request["user"] = c.user
	}
	if c.tty != nil {
		request["tty"] = object{"rows": c.tty.Rows, "cols": c.tty.Cols}
	}
	if !c.noLog {
		request["log"] = true
		needs = append(needs, "exec.log")
	}
	if len(c.rlimits) > 0 {
		var limits []object
		for _, limit := range c.rlimits {
			limits = append(limits, object{
				"resource": limit.Resource, "soft": limit.Soft, "hard": limit.Hard,
			})
		}
		request["rlimits"] = limits
		needs = append(needs, "exec.rlimit")
	}
	if c.login {
		request["login"] = true
		needs = append(needs, "exec.login")
	}
	return request, needs, nil
}
