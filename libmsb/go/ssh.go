package microsandbox

import (
	"context"
	"os"
	"os/exec"
	"strings"
)

// SandboxSSH is sessions as over SSH, without SSH: login shells and files of a sandbox.
type SandboxSSH struct{ sandbox *Sandbox }

// SSHOutput is the result of a command.
type SSHOutput struct {
	Status         int
	Stdout, Stderr []byte
}

// Success returns whether the status is 0.
func (o *SSHOutput) Success() bool { return o.Status == 0 }

type sshConfig struct {
	user, term, detachKeys string
	noSFTP, tty            bool
	refused                []string
}

// SSHOption is an option of Connect.
type SSHOption func(*sshConfig)

// SSHExecOption is an option of SSHClient.Exec.
type SSHExecOption func(*sshConfig)

// SSHAttachOption is an option of SSHClient.Attach.
type SSHAttachOption func(*sshConfig)

// SSHServerOption is an option of Server.
type SSHServerOption func(*sshConfig)

// WithSSHUser sets the user; root by default.
func WithSSHUser(user string) SSHOption { return func(c *sshConfig) { c.user = user } }

// WithSSHTerm sets the terminal's type.
func WithSSHTerm(term string) SSHOption { return func(c *sshConfig) { c.term = term } }

// WithSSHClientSFTP sets whether the session has files.
func WithSSHClientSFTP(enabled bool) SSHOption { return func(c *sshConfig) { c.noSFTP = !enabled } }

// WithSSHTTY gives the command a terminal.
func WithSSHTTY() SSHExecOption { return func(c *sshConfig) { c.tty = true } }

// WithSSHAttachTerm sets the terminal's type.
func WithSSHAttachTerm(term string) SSHAttachOption { return func(c *sshConfig) { c.term = term } }

// WithSSHDetachKeys sets the keys after which the shell goes on without the terminal.
func WithSSHDetachKeys(keys string) SSHAttachOption {
	return func(c *sshConfig) { c.detachKeys = keys }
}

func refuse(name string) SSHServerOption {
	return func(c *sshConfig) { c.refused = append(c.refused, name) }
}

// WithSSHHostKeyPath is not supported: the keys are those of the state directory.
func WithSSHHostKeyPath(string) SSHServerOption { return refuse("host key path") }

// WithSSHAuthorizedKeysPath is not supported: the keys are those of the state directory.
func WithSSHAuthorizedKeysPath(string) SSHServerOption { return refuse("authorized keys path") }

// WithSSHServerUser is not supported.
func WithSSHServerUser(string) SSHServerOption { return refuse("user") }

// WithSSHServerSFTP sets whether there are files, which there are.
func WithSSHServerSFTP(enabled bool) SSHServerOption {
	if enabled {
		return func(*sshConfig) {}
	}
	return refuse("sftp")
}

// SSHClient is a session as a user: commands run as at a login.
type SSHClient struct {
	sandbox *Sandbox
	config  sshConfig
	files   []*SFTPClient
}

// Connect opens a session as a user.
func (s *SandboxSSH) Connect(_ context.Context, options ...SSHOption) (*SSHClient, error) {
	client := &SSHClient{sandbox: s.sandbox, config: sshConfig{user: "root"}}
	for _, option := range options {
		option(&client.config)
	}
	return client, s.sandbox.ready()
}

// Exec runs a command line by the user's shell.
func (c *SSHClient) Exec(
	ctx context.Context, command string, options ...SSHExecOption,
) (*SSHOutput, error) {
	config := c.config
	for _, option := range options {
		option(&config)
	}
	given := []ExecOption{WithExecUser(config.user), func(c *execConfig) { c.login = true }}
	if config.term != "" {
		given = append(given, WithExecEnv(map[string]string{"TERM": config.term}))
	}
	if config.tty {
		given = append(given, WithExecTTY(TTY{24, 80}))
	}
	output, err := c.sandbox.Exec(ctx, command, nil, given...)
	if err != nil {
		return nil, err
	}
	return &SSHOutput{output.code, output.stdout, output.stderr}, nil
}

// Attach connects the terminal of this process to a shell. It returns its exit code.
func (c *SSHClient) Attach(ctx context.Context, options ...SSHAttachOption) (int, error) {
	config := c.config
	for _, option := range options {
		option(&config)
	}
	env := map[string]string{}
	if config.term != "" {
		env["TERM"] = config.term
	}
	host, name := c.sandbox.host, c.sandbox.name
	words := []string{"/bin/sh", "-l"}
	if config.detachKeys == "" {
		return attach(ctx, host, name, config.user, env, words)
	}
	args := append([]string{"exec", "--detach"}, attachArgs(name, config.user, env, words)...)
	job, err := host.run(ctx, args...)
	if err != nil {
		return 0, err
	}
	keys := "--detach-keys=" + config.detachKeys
	return inherit(ctx, host, "attach", "--logs", keys, name, strings.TrimSpace(string(job)))
}

// SFTP opens a session for files.
func (c *SSHClient) SFTP(context.Context) (*SFTPClient, error) {
	if c.config.noSFTP {
		return nil, fail(ErrFilesystem, "the session was opened without files")
	}
	files := &SFTPClient{newFs(c.sandbox.client, c.sandbox.host, c.sandbox.name, c.config.user)}
	c.files = append(c.files, files)
	return files, nil
}

// Close ends the sessions for files.
func (c *SSHClient) Close() error {
	for _, files := range c.files {
		files.fs.close()
	}
	return nil
}

// SFTPClient is the files of a sandbox, as a user.
type SFTPClient struct{ fs *SandboxFs }

// Read returns the contents of a file.
func (c *SFTPClient) Read(ctx context.Context, path string) ([]byte, error) {
	return c.fs.Read(ctx, path)
}

// Write writes a file.
func (c *SFTPClient) Write(ctx context.Context, path string, data []byte) error {
	return c.fs.Write(ctx, path, data)
}

// Mkdir creates a directory.
func (c *SFTPClient) Mkdir(ctx context.Context, path string) error { return c.fs.Mkdir(ctx, path) }

// RemoveFile removes a file.
func (c *SFTPClient) RemoveFile(ctx context.Context, path string) error {
	return c.fs.Remove(ctx, path)
}

// RemoveDir removes an empty directory.
func (c *SFTPClient) RemoveDir(ctx context.Context, path string) error {
	return c.fs.RemoveEmptyDir(ctx, path)
}

// Rename renames a file.
func (c *SFTPClient) Rename(ctx context.Context, source, target string) error {
	return c.fs.Rename(ctx, source, target)
}

// RealPath returns the absolute path without symbolic links.
func (c *SFTPClient) RealPath(ctx context.Context, path string) (string, error) {
	return c.fs.RealPath(ctx, path)
}

// ReadLink returns the target of a symbolic link.
func (c *SFTPClient) ReadLink(ctx context.Context, path string) (string, error) {
	return c.fs.ReadLink(ctx, path)
}

// Symlink creates a symbolic link.
func (c *SFTPClient) Symlink(ctx context.Context, target, link string) error {
	return c.fs.Symlink(ctx, target, link)
}

// Close ends the session.
func (c *SFTPClient) Close() error {
	c.fs.close()
	return nil
}

// SSHServer is an SSH server for one connection, on standard input and output of this process.
type SSHServer struct{ sandbox *Sandbox }

// Server returns a server with the keys of the state directory, msb-ssh(1).
func (s *SandboxSSH) Server(_ context.Context, options ...SSHServerOption) (*SSHServer, error) {
	var config sshConfig
	for _, option := range options {
		option(&config)
	}
	if config.refused != nil {
		return nil, unsupported(config.refused...)
	}
	return &SSHServer{s.sandbox}, nil
}

// ServeStdio serves the connection to its end.
func (s *SSHServer) ServeStdio(ctx context.Context) error {
	code, err := inherit(ctx, s.sandbox.host, "ssh", "serve", "--stdio", s.sandbox.name)
	if err == nil && code != 0 {
		err = fail(ErrUnknown, "'msb ssh serve' failed with exit code %d", code)
	}
	return err
}

// Close ends the server. It holds nothing between connections.
func (s *SSHServer) Close() error { return nil }

func isTerminal(file *os.File) bool {
	status, err := file.Stat()
	return err == nil && status.Mode()&os.ModeCharDevice != 0
}

func attachArgs(name, user string, env map[string]string, words []string) []string {
	args := []string{"--interactive"}
	if isTerminal(os.Stdin) && isTerminal(os.Stdout) {
		args = append(args, "--tty")
	}
	if user != "" {
		args = append(args, "--user="+user)
	}
	for name, value := range env {
		args = append(args, "--env="+name+"="+value)
	}
	return append(append(args, name, "--"), words...)
}

func attach(
	ctx context.Context, host *host, name, user string, env map[string]string, words []string,
) (int, error) {
	return inherit(ctx, host, append([]string{"exec"}, attachArgs(name, user, env, words)...)...)
}

// inherit runs a program on the descriptors of this process. It returns its exit code.
func inherit(ctx context.Context, host *host, args ...string) (int, error) {
	command := exec.Command(host.program, args...)
	command.Env = host.environment()
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := command.Start(); err != nil {
		return 0, notStartedProgram(host.program, err)
	}
	_ = waitFor(ctx, command)
	if ctx.Err() != nil {
		return 0, cancelled(ctx)
	}
	code := command.ProcessState.ExitCode()
	if code == 125 || code < 0 {
		return code, fail(ErrUnknown, "'msb %s' failed", args[0])
	}
	return code, nil
}
