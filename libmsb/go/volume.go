package microsandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"
	"time"
)

// Volume is a named volume.
type Volume struct{ fields volumeFields }

// VolumeHandle is a named volume with its state at one moment.
type VolumeHandle struct{ fields volumeFields }

type volumeFields struct {
	Name      string            `json:"name"`
	QuotaMiB  *uint32           `json:"quota_mib"`
	UsedBytes uint64            `json:"used_bytes"`
	Labels    map[string]string `json:"labels"`
	CreatedAt string            `json:"created_at"`
	Kind      string            `json:"kind"`
	Path      string            `json:"path"`
}

type volumeConfig struct{ args []string }

// VolumeOption is an option of CreateVolume.
type VolumeOption func(*volumeConfig)

// WithVolumeQuota makes a disk of a size in MiB instead of a directory.
func WithVolumeQuota(mib uint32) VolumeOption {
	return func(c *volumeConfig) {
		c.args = append(c.args, "--kind=disk", fmt.Sprintf("--size=%d", mib))
	}
}

// WithVolumeLabels sets labels.
func WithVolumeLabels(labels map[string]string) VolumeOption {
	return func(c *volumeConfig) {
		for name, value := range labels {
			c.args = append(c.args, "--label="+name+"="+value)
		}
	}
}

// CreateVolume creates a volume: a directory, or a disk with WithVolumeQuota.
func CreateVolume(ctx context.Context, name string, options ...VolumeOption) (*Volume, error) {
	config := &volumeConfig{}
	for _, option := range options {
		option(config)
	}
	if !strings.Contains(strings.Join(config.args, " "), "--kind=disk") {
		config.args = append(config.args, "--kind=dir")
	}
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	args := append([]string{"volume", "create", "--quiet"}, config.args...)
	if _, err := host.run(ctx, append(args, "--", name)...); err != nil {
		return nil, err
	}
	handle, err := GetVolume(ctx, name)
	if err != nil {
		return nil, err
	}
	return &Volume{handle.fields}, nil
}

// GetVolume returns a volume.
func GetVolume(ctx context.Context, name string) (*VolumeHandle, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	handle := &VolumeHandle{}
	err = host.json(ctx, &handle.fields, "volume", "inspect", "--format=json", "--", name)
	if err != nil {
		return nil, err
	}
	return handle, nil
}

// ListVolumes returns all volumes, sorted by name.
func ListVolumes(ctx context.Context) ([]*VolumeHandle, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	var rows []object
	if err := host.json(ctx, &rows, "volume", "list", "--format=json"); err != nil {
		return nil, err
	}
	var handles []*VolumeHandle
	for _, row := range rows {
		if row["error"] != nil {
			continue
		}
		handle, err := GetVolume(ctx, row.text("name"))
		if IsKind(err, ErrVolumeNotFound) {
			// It was removed meanwhile.
			continue
		}
		if err != nil {
			return nil, err
		}
		handles = append(handles, handle)
	}
	return handles, nil
}

// RemoveVolume removes a volume and its contents.
func RemoveVolume(ctx context.Context, name string) error {
	host, err := currentHost()
	if err == nil {
		_, err = host.run(ctx, "volume", "remove", "--quiet", "--", name)
	}
	return err
}

// Name returns the name.
func (v *Volume) Name() string { return v.fields.Name }

// Path returns the path of the contents on the host.
func (v *Volume) Path() string { return v.fields.Path }

// FS returns the files of the volume, from the host.
func (v *Volume) FS() *VolumeFs { return &VolumeFs{v.fields.Path, v.fields.Kind} }

// Name returns the name.
func (h *VolumeHandle) Name() string { return h.fields.Name }

// Path returns the path of the contents on the host.
func (h *VolumeHandle) Path() string { return h.fields.Path }

// QuotaMiB returns the size of the disk; nil for a directory.
func (h *VolumeHandle) QuotaMiB() *uint32 { return h.fields.QuotaMiB }

// UsedBytes returns the size of the contents.
func (h *VolumeHandle) UsedBytes() uint64 { return h.fields.UsedBytes }

// Labels returns the labels.
func (h *VolumeHandle) Labels() map[string]string { return h.fields.Labels }

// CreatedAt returns the time of the creation.
func (h *VolumeHandle) CreatedAt() time.Time { return timeOf(h.fields.CreatedAt) }

// FS returns the files of the volume, from the host.
func (h *VolumeHandle) FS() *VolumeFs { return &VolumeFs{h.fields.Path, h.fields.Kind} }

// Remove removes the volume.
func (h *VolumeHandle) Remove(ctx context.Context) error { return RemoveVolume(ctx, h.Name()) }

// VolumeFs is the files of a volume that is a directory, from the host. A path never leaves the
// volume: its directories are opened one by one, without symbolic links.
type VolumeFs struct{ root, kind string }

// Root returns the path of the contents on the host.
func (f *VolumeFs) Root() string { return f.root }

const openDirectory = syscall.O_RDONLY | syscall.O_DIRECTORY | syscall.O_NOFOLLOW | syscall.O_CLOEXEC

// within opens the parent of a path step by step, and acts on the path below its descriptor.
func (f *VolumeFs) within(name string, parents bool, act func(at string) error) error {
	if f.kind != "dir" {
		return unsupported("VolumeFs of a volume with a quota, whose files a guest has")
	}
	var words []string
	for _, word := range strings.Split(name, "/") {
		if word == ".." || strings.ContainsRune(word, 0) {
			return fail(ErrPathEscape, "'%s': leaves the volume", name)
		}
		if word != "" && word != "." {
			words = append(words, word)
		}
	}
	if len(words) == 0 {
		words = []string{"."}
	}
	directory, err := syscall.Open(f.root, openDirectory, 0)
	for err == nil && len(words) > 1 {
		at := fmt.Sprintf("/proc/self/fd/%d/%s", directory, words[0])
		if parents {
			err = makeDirectory(at)
		}
		next := -1
		if err == nil {
			next, err = syscall.Open(at, openDirectory, 0)
		}
		syscall.Close(directory)
		directory, words = next, words[1:]
	}
	if err == nil {
		err = act(fmt.Sprintf("/proc/self/fd/%d/%s", directory, words[0]))
		syscall.Close(directory)
	}
	return volumeError(name, err)
}

func volumeError(name string, err error) error {
	var found *Error
	if err == nil || errors.As(err, &found) {
		return err
	}
	kind := ErrFilesystem
	switch {
	case errors.Is(err, os.ErrNotExist):
		kind = ErrPathNotFound
	case errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENOTDIR):
		kind = ErrPathEscape
	}
	var why *os.PathError
	if errors.As(err, &why) {
		err = why.Err
	}
	return &Error{Kind: kind, Message: fmt.Sprintf("'%s': %v", name, err), Cause: err}
}

func makeDirectory(at string) error {
	err := os.Mkdir(at, 0o755)
	if errors.Is(err, os.ErrExist) {
		if status, statErr := os.Lstat(at); statErr == nil && status.IsDir() {
			return nil
		}
	}
	return err
}

// openRegular opens a regular file. A pipe that a guest has made blocks nothing.
func openRegular(at string, flags int) (*os.File, error) {
	file, err := os.OpenFile(at, flags|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o644)
	if err != nil {
		return nil, err
	}
	if status, err := file.Stat(); err != nil || !status.Mode().IsRegular() {
		file.Close()
		return nil, fail(ErrFilesystem, "'%s': not a regular file", path.Base(at))
	}
	return file, nil
}

// Read returns the contents of a file.
func (f *VolumeFs) Read(name string) (contents []byte, err error) {
	err = f.within(name, false, func(at string) error {
		file, err := openRegular(at, os.O_RDONLY)
		if err != nil {
			return err
		}
		defer file.Close()
		status, err := file.Stat()
		if err != nil {
			return err
		}
		contents = make([]byte, status.Size())
		count, err := readFull(file, contents)
		contents = contents[:count]
		return err
	})
	return contents, err
}

func readFull(file *os.File, into []byte) (int, error) {
	total := 0
	for total < len(into) {
		count, err := file.Read(into[total:])
		total += count
		if err != nil || count == 0 {
			break
		}
	}
	return total, nil
}

// ReadString returns the contents of a file as text.
func (f *VolumeFs) ReadString(name string) (string, error) {
	contents, err := f.Read(name)
	return string(contents), err
}

// Write writes a file. An existing one is truncated.
func (f *VolumeFs) Write(name string, data []byte) error {
	return f.within(name, false, func(at string) error {
		file, err := openRegular(at, os.O_WRONLY|os.O_CREATE)
		if err != nil {
			return err
		}
		if err = file.Truncate(0); err == nil {
			_, err = file.Write(data)
		}
		if closed := file.Close(); err == nil {
			err = closed
		}
		return err
	})
}

// WriteString writes a file from text.
func (f *VolumeFs) WriteString(name, text string) error { return f.Write(name, []byte(text)) }

// Mkdir creates a directory and its parents.
func (f *VolumeFs) Mkdir(name string) error { return f.within(name, true, makeDirectory) }

// List returns the entries of a directory, sorted by name.
func (f *VolumeFs) List(name string) (entries []FsEntry, err error) {
	err = f.within(name, false, func(at string) error {
		directory, err := os.OpenFile(at, openDirectory, 0)
		if err != nil {
			return err
		}
		defer directory.Close()
		found, err := os.ReadDir(fmt.Sprintf("/proc/self/fd/%d", directory.Fd()))
		for _, entry := range found {
			info, err := entry.Info()
			if err != nil {
				continue
			}
			mode := info.Sys().(*syscall.Stat_t).Mode
			entries = append(entries, FsEntry{
				path.Join(name, entry.Name()), fsKind(mode), info.Size(), mode & 0o7777,
			})
		}
		return err
	})
	return entries, err
}

// Remove removes a file or an empty directory.
func (f *VolumeFs) Remove(name string) error { return f.within(name, false, os.Remove) }

// RemoveAll removes a file, or a directory with all that is in it. It follows no links.
func (f *VolumeFs) RemoveAll(name string) error { return f.within(name, false, os.RemoveAll) }

// Exists returns whether a path exists. Other errors than a missing path are returned.
func (f *VolumeFs) Exists(name string) (bool, error) {
	err := f.within(name, false, func(at string) error {
		_, err := os.Lstat(at)
		return err
	})
	if IsKind(err, ErrPathNotFound) {
		return false, nil
	}
	return err == nil, err
}
