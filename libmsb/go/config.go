package microsandbox

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// PullPolicy is when to pull an image: always, if-missing or never.
type PullPolicy string

// Pull policies.
const (
	PullAlways    PullPolicy = "always"
	PullIfMissing PullPolicy = "if-missing"
	PullNever     PullPolicy = "never"
)

// SecurityProfile is the privileges of commands: default or restricted.
type SecurityProfile string

// LogLevel is a level of messages. It is accepted for compatibility and has no effect.
type LogLevel string

// RegistryAuth is the credentials of one pull. They are not stored.
type RegistryAuth struct{ Username, Password string }

// sandboxConfig is the document for the programs, and the options that have no field.
type sandboxConfig struct {
	fields   object
	options  []string
	more     []string
	network  *NetworkConfig
	bindings []PortBinding
	secrets  []SecretEntry
	snapshot string
	replace  bool
	timeout  *time.Duration
	detached bool
	errs     []error
}

// SandboxOption is an option of CreateSandbox.
type SandboxOption func(*sandboxConfig)

func field(name string, value any) SandboxOption {
	return func(c *sandboxConfig) { c.fields[name] = value }
}

// WithImage sets the root: an image, or the path of a directory or disk image of the host.
func WithImage(image string) SandboxOption {
	return func(c *sandboxConfig) {
		isPath := image == "." || image == ".."
		for _, prefix := range []string{"/", "./", "../"} {
			isPath = isPath || strings.HasPrefix(image, prefix)
		}
		if !isPath {
			upper := c.fields["upper"]
			c.fields["image"] = object{"Oci": object{"reference": image, "upper_size_mib": upper}}
			return
		}
		if status, err := os.Stat(image); err == nil && status.IsDir() {
			c.fields["image"] = object{"Bind": absolute(image)}
			return
		}
		WithImageDisk(image, "")(c)
	}
}

// WithOCIUpperSize sets the size of the writable disk of an image in MiB.
func WithOCIUpperSize(mib uint32) SandboxOption {
	return func(c *sandboxConfig) {
		c.fields["upper"] = mib
		if image, ok := c.fields["image"].(object); ok {
			if oci, ok := image["Oci"].(object); ok {
				oci["upper_size_mib"] = mib
			}
		}
	}
}

// WithImageDisk sets the root: a disk image of the host. The suffix names its format.
func WithImageDisk(path, fstype string) SandboxOption {
	return func(c *sandboxConfig) {
		c.fields["image"] = object{"DiskImage": object{
			"path": absolute(path), "format": diskFormat(path), "fstype": orNil(fstype),
		}}
	}
}

func absolute(path string) string {
	found, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return found
}

func diskFormat(path string) string {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".qcow2":
		return "Qcow2"
	case ".vmdk":
		return "Vmdk"
	}
	return "Raw"
}

// WithSnapshot starts from a snapshot.
func WithSnapshot(name string) SandboxOption {
	return func(c *sandboxConfig) { c.snapshot = name }
}

// WithMemory sets the memory in MiB; 512 by default.
func WithMemory(mib uint32) SandboxOption { return field("memory_mib", mib) }

// WithCPUs sets the number of processors; 1 by default.
func WithCPUs(count uint8) SandboxOption { return field("cpus", count) }

// WithWorkdir sets the working directory.
func WithWorkdir(path string) SandboxOption { return field("workdir", path) }

// WithShell sets the shell.
func WithShell(shell string) SandboxOption { return field("shell", shell) }

// WithSecurityProfile sets the privileges of commands.
func WithSecurityProfile(profile SecurityProfile) SandboxOption {
	return field("security_profile", profile)
}

func merge(name string, pairs map[string]string) SandboxOption {
	return func(c *sandboxConfig) {
		merged, _ := c.fields[name].(map[string]string)
		if merged == nil {
			merged = map[string]string{}
		}
		for key, value := range pairs {
			merged[key] = value
		}
		c.fields[name] = merged
	}
}

// WithEnv sets environment variables. Several are merged.
func WithEnv(env map[string]string) SandboxOption { return merge("env", env) }

// WithLabels sets labels. Several are merged.
func WithLabels(labels map[string]string) SandboxOption { return merge("labels", labels) }

// WithLabel sets a label.
func WithLabel(name, value string) SandboxOption {
	return WithLabels(map[string]string{name: value})
}

// WithScripts adds scripts, which are programs in the guest.
func WithScripts(scripts map[string]string) SandboxOption { return merge("scripts", scripts) }

// WithHostname sets the host name.
func WithHostname(name string) SandboxOption { return field("hostname", name) }

// WithUser sets the user of commands.
func WithUser(user string) SandboxOption { return field("user", user) }

// WithReplace replaces a sandbox of that name.
func WithReplace() SandboxOption { return func(c *sandboxConfig) { c.replace = true } }

// WithReplaceWithTimeout replaces a sandbox of that name, which gets time to stop; 0 kills it.
func WithReplaceWithTimeout(timeout time.Duration) SandboxOption {
	return func(c *sandboxConfig) { c.timeout = &timeout }
}

// WithDetached lets the sandbox go on without this process.
func WithDetached() SandboxOption { return func(c *sandboxConfig) { c.detached = true } }

// WithEntrypoint sets the command that the arguments of the image's command follow.
func WithEntrypoint(words ...string) SandboxOption { return field("entrypoint", words) }

// WithInit starts an init as the first process of the guest.
func WithInit(init InitConfig) SandboxOption {
	pairs := [][2]string{}
	for name, value := range init.Env {
		pairs = append(pairs, [2]string{name, value})
	}
	args := append([]string{}, init.Args...)
	return field("init", object{"cmd": init.Cmd, "args": args, "env": pairs})
}

// WithLogLevel is accepted for compatibility and has no effect.
func WithLogLevel(LogLevel) SandboxOption { return func(*sandboxConfig) {} }

// WithQuietLogs is accepted for compatibility and has no effect.
func WithQuietLogs() SandboxOption { return func(*sandboxConfig) {} }

// WithPullPolicy sets when the image is pulled.
func WithPullPolicy(policy PullPolicy) SandboxOption {
	words := map[PullPolicy]string{
		PullAlways: "Always", PullIfMissing: "IfMissing", PullNever: "Never",
	}
	return func(c *sandboxConfig) {
		word, ok := words[policy]
		if !ok {
			c.errs = append(c.errs, invalid("%q is not a pull policy", policy))
		}
		c.fields["pull_policy"] = word
	}
}

func timeOption(name string, value time.Duration) SandboxOption {
	return func(c *sandboxConfig) {
		if value < 0 {
			c.errs = append(c.errs, invalid("%s is negative", name))
		}
		c.options = append(c.options, "--"+name+"="+duration(value))
	}
}

// WithMaxDuration stops the sandbox after a time.
func WithMaxDuration(limit time.Duration) SandboxOption { return timeOption("max-duration", limit) }

// WithIdleTimeout stops the sandbox when it was idle for a time.
func WithIdleTimeout(limit time.Duration) SandboxOption { return timeOption("idle-timeout", limit) }

// WithMetricsInterval sets the time between two samples of the resource usage.
func WithMetricsInterval(interval time.Duration) SandboxOption {
	return timeOption("metrics-sample-interval", interval)
}

// WithLibkrunfwPath sets the path of libkrunfw or of a kernel.
func WithLibkrunfwPath(path string) SandboxOption {
	return func(c *sandboxConfig) { c.more = append(c.more, "MSB_KRUNFW="+path) }
}

// WithRegistryAuth sets the credentials of the pull.
func WithRegistryAuth(auth RegistryAuth) SandboxOption {
	login := object{"username": auth.Username, "password": auth.Password}
	return field("registry_auth", object{"Basic": login})
}

// WithPorts publishes TCP ports of the loopback address: ports of the host to those of the guest.
func WithPorts(ports map[uint16]uint16) SandboxOption { return withPorts(ports, TCP) }

// WithPortsUDP publishes UDP ports of the loopback address.
func WithPortsUDP(ports map[uint16]uint16) SandboxOption { return withPorts(ports, UDP) }

func withPorts(ports map[uint16]uint16, protocol PortProtocol) SandboxOption {
	return func(c *sandboxConfig) {
		for host, guest := range ports {
			binding := PortBinding{HostPort: host, GuestPort: guest, Protocol: protocol}
			c.bindings = append(c.bindings, binding)
		}
	}
}

// WithPortBindings publishes ports.
func WithPortBindings(bindings ...PortBinding) SandboxOption {
	return func(c *sandboxConfig) { c.bindings = append(c.bindings, bindings...) }
}

// WithNetwork sets the network.
func WithNetwork(network *NetworkConfig) SandboxOption {
	return func(c *sandboxConfig) { c.network = network }
}

// WithSecrets adds secrets.
func WithSecrets(entries ...SecretEntry) SandboxOption {
	return func(c *sandboxConfig) { c.secrets = append(c.secrets, entries...) }
}

// WithPatches adds changes of files before the first boot.
func WithPatches(patches ...PatchConfig) SandboxOption {
	return func(c *sandboxConfig) {
		listed, _ := c.fields["patches"].([]object)
		for _, patch := range patches {
			listed = append(listed, patch.json())
		}
		c.fields["patches"] = listed
	}
}

// WithMounts adds mounts by their paths in the guest.
func WithMounts(mounts map[string]MountConfig) SandboxOption {
	return func(c *sandboxConfig) {
		listed, _ := c.fields["mounts"].([]object)
		for guest, mount := range mounts {
			json := object{"guest": guest}
			for name, value := range mount.fields {
				json[name] = value
			}
			listed = append(listed, json)
		}
		c.fields["mounts"] = listed
	}
}

// WithRlimit limits a resource of every command.
func WithRlimit(resource RlimitResource, soft, hard uint64) SandboxOption {
	return func(c *sandboxConfig) {
		listed, _ := c.fields["rlimits"].([]object)
		limit := object{"resource": resource, "soft": soft, "hard": hard}
		c.fields["rlimits"] = append(listed, limit)
	}
}

// Unlimited is the limit of a resource that has none.
const Unlimited = math.MaxUint64

// build returns the document and the arguments of the program.
func (c *sandboxConfig) build(name string) ([]string, error) {
	if len(c.errs) > 0 {
		return nil, c.errs[0]
	}
	if name == "" || len(name) > 128 {
		return nil, fail(ErrInvalidConfig, "a name has 1 to 128 bytes")
	}
	if (c.fields["image"] == nil) == (c.snapshot == "") {
		return nil, invalid("give exactly one of WithImage and WithSnapshot")
	}
	delete(c.fields, "upper")
	c.fields["name"] = name
	if env, ok := c.fields["env"].(map[string]string); ok {
		pairs := [][2]string{}
		for name, value := range env {
			pairs = append(pairs, [2]string{name, value})
		}
		c.fields["env"] = pairs
	}
	if err := c.buildNetwork(); err != nil {
		return nil, err
	}
	args := append([]string{"create", "--name=" + name, "--from-microsandbox=-"}, c.options...)
	if c.snapshot != "" {
		args = append(args, "--snapshot="+c.snapshot)
	}
	if words, _ := c.fields["entrypoint"].([]string); len(words) == 0 {
		// As upstream: a sandbox boots and waits for commands.
		args = append(args, "--entrypoint=")
	}
	if c.timeout != nil {
		args = append(args, "--replace-with-timeout="+duration(*c.timeout))
	} else if c.replace {
		args = append(args, "--replace")
	}
	return args, nil
}

func (c *sandboxConfig) buildNetwork() error {
	network := NetworkConfig{}
	if c.network != nil {
		network = *c.network
	} else if len(c.bindings) == 0 && len(c.secrets) == 0 {
		return nil
	}
	network.PortBindings = append(append([]PortBinding{}, network.PortBindings...), c.bindings...)
	fields, err := network.json()
	if err != nil {
		return err
	}
	if len(c.secrets) > 0 {
		listed := []object{}
		for _, entry := range c.secrets {
			json, err := entry.json()
			if err != nil {
				return err
			}
			listed = append(listed, json)
		}
		action := network.OnSecretViolation
		if action == "" {
			action = "block-and-log"
		}
		fields["secrets"] = object{"secrets": listed, "on_violation": action}
	}
	c.fields["network"] = fields
	return nil
}

// InitConfig is an init as the first process of the guest.
type InitConfig struct {
	Cmd  string
	Args []string
	Env  map[string]string
}

// InitOptions are the options of Init.Cmd.
type InitOptions struct {
	Args []string
	Env  map[string]string
}

// Init makes inits.
var Init inits

type inits struct{}

// Auto finds the init of the image.
func (inits) Auto() InitConfig { return InitConfig{Cmd: "auto"} }

// Cmd returns an init by its path.
func (inits) Cmd(cmd string, options InitOptions) InitConfig {
	return InitConfig{cmd, options.Args, options.Env}
}

// PatchConfig is a change of files before the first boot. Kind is text, mkdir, append, copyFile,
// copyDir, symlink or remove.
type PatchConfig struct {
	Kind          string
	Path, Content string
	Mode          *uint32
	Replace       bool
	Src, Dst      string
	Target, Link  string
}

// PatchOptions are the permission bits of a new file, and whether it replaces an old one.
type PatchOptions struct {
	Mode    *uint32
	Replace bool
}

// Patch makes changes of files.
var Patch patches

type patches struct{}

// Text writes a text file.
func (patches) Text(path, content string, options PatchOptions) PatchConfig {
	return PatchConfig{
		Kind: "text", Path: path, Content: content, Mode: options.Mode, Replace: options.Replace,
	}
}

// Mkdir creates a directory and its parents.
func (patches) Mkdir(path string, options PatchOptions) PatchConfig {
	return PatchConfig{Kind: "mkdir", Path: path, Mode: options.Mode}
}

// Append appends to a file.
func (patches) Append(path, content string) PatchConfig {
	return PatchConfig{Kind: "append", Path: path, Content: content}
}

// CopyFile copies a file of the host.
func (patches) CopyFile(src, dst string, options PatchOptions) PatchConfig {
	return PatchConfig{
		Kind: "copyFile", Src: src, Dst: dst, Mode: options.Mode, Replace: options.Replace,
	}
}

// CopyDir copies a directory of the host.
func (patches) CopyDir(src, dst string, options PatchOptions) PatchConfig {
	return PatchConfig{Kind: "copyDir", Src: src, Dst: dst, Replace: options.Replace}
}

// Symlink creates a symbolic link.
func (patches) Symlink(target, link string, options PatchOptions) PatchConfig {
	return PatchConfig{Kind: "symlink", Target: target, Link: link, Replace: options.Replace}
}

// Remove removes a file or directory, if it exists.
func (patches) Remove(path string) PatchConfig { return PatchConfig{Kind: "remove", Path: path} }

func (p PatchConfig) json() object {
	switch p.Kind {
	case "text":
		return object{"Text": object{
			"path": p.Path, "content": p.Content, "mode": p.Mode, "replace": p.Replace,
		}}
	case "mkdir":
		return object{"Mkdir": object{"path": p.Path, "mode": p.Mode}}
	case "append":
		return object{"Append": object{"path": p.Path, "content": p.Content}}
	case "copyFile":
		return object{"CopyFile": object{
			"src": absolute(p.Src), "dst": p.Dst, "mode": p.Mode, "replace": p.Replace,
		}}
	case "copyDir":
		return object{"CopyDir": object{"src": absolute(p.Src), "dst": p.Dst, "replace": p.Replace}}
	case "symlink":
		return object{"Symlink": object{
			"target": p.Target, "link": p.Link, "replace": p.Replace,
		}}
	}
	return object{"Remove": object{"path": p.Path}}
}

// MountConfig is a mount of a sandbox. The makers are in Mount.
type MountConfig struct{ fields object }

// MountOptions are the options of a directory or named volume.
type MountOptions struct{ Readonly, NoExec, NoSUID, NoDev bool }

// TmpfsOptions are the options of memory.
type TmpfsOptions struct {
	SizeMiB                         uint32
	Readonly, NoExec, NoSUID, NoDev bool
}

// DiskOptions are the options of a disk image. Format is qcow2 or raw; the suffix names it otherwise.
type DiskOptions struct {
	Format, Fstype                  string
	Readonly, NoExec, NoSUID, NoDev bool
}

// Mount makes mounts.
var Mount mounts

type mounts struct{}

func (o MountOptions) json() object {
	return object{
		"readonly": o.Readonly, "noexec": o.NoExec, "nosuid": o.NoSUID, "nodev": o.NoDev,
	}
}

// Bind mounts a directory or file of the host.
func (mounts) Bind(path string, options MountOptions) MountConfig {
	return MountConfig{object{"type": "Bind", "host": absolute(path), "options": options.json()}}
}

// Named mounts a named volume, which is created if it is missing.
func (mounts) Named(name string, options MountOptions) MountConfig {
	return MountConfig{object{"type": "Named", "name": name, "options": options.json()}}
}

// Tmpfs mounts memory.
func (mounts) Tmpfs(o TmpfsOptions) MountConfig {
	options := MountOptions{o.Readonly, o.NoExec, o.NoSUID, o.NoDev}
	var size any
	if o.SizeMiB > 0 {
		size = o.SizeMiB
	}
	return MountConfig{object{"type": "Tmpfs", "size_mib": size, "options": options.json()}}
}

// Disk mounts a disk image.
func (mounts) Disk(path string, o DiskOptions) MountConfig {
	options := MountOptions{o.Readonly, o.NoExec, o.NoSUID, o.NoDev}
	format := diskFormat(path)
	if o.Format != "" {
		format = diskFormat("." + o.Format)
	}
	return MountConfig{object{
		"type": "DiskImage", "host": absolute(path), "format": format, "fstype": orNil(o.Fstype),
		"options": options.json(),
	}}
}
