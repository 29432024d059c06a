package microsandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"
)

const (
	// outstanding is the number of reads or writes of one file that are on their way at a time.
	outstanding = 8
	// filesMax is the number of whole files that are read or written at a time: a session has 512.
	filesMax = 64
)

// FsEntryKind is the kind of a file.
type FsEntryKind string

// Kinds of files.
const (
	FsFile      FsEntryKind = "file"
	FsDirectory FsEntryKind = "directory"
	FsSymlink   FsEntryKind = "symlink"
	FsOther     FsEntryKind = "other"
)

// FsEntry is an entry of a directory. Mode has the permission bits.
type FsEntry struct {
	Path string
	Kind FsEntryKind
	Size int64
	Mode uint32
}

// FsStat is the metadata of a file.
type FsStat struct {
	Path     string
	Kind     FsEntryKind
	Size     int64
	Mode     uint32
	ModTime  time.Time
	IsDir    bool
	UID, GID uint32
}

func fsKind(mode uint32) FsEntryKind {
	switch mode & 0o170000 {
	case 0o100000:
		return FsFile
	case 0o040000:
		return FsDirectory
	case 0o120000:
		return FsSymlink
	}
	return FsOther
}

// SandboxFs is the files in a sandbox, read and changed as the sandbox's user. Relative paths start
// in the user's home directory. Any number of goroutines can use it.
type SandboxFs struct {
	client     *client
	host       *host
	name, user string
	lock       sync.Mutex
	opened     *session
	gate       chan struct{}
}

func newFs(client *client, host *host, name, user string) *SandboxFs {
	gate := make(chan struct{}, filesMax)
	return &SandboxFs{client: client, host: host, name: name, user: user, gate: gate}
}

// session returns an open file session, which all calls share.
func (f *SandboxFs) session(ctx context.Context, paths ...string) (*session, error) {
	if ctx.Err() != nil {
		return nil, cancelled(ctx)
	}
	if err := unixTexts(paths...); err != nil {
		return nil, err
	}
	f.lock.Lock()
	defer f.lock.Unlock()
	if f.opened != nil && f.opened.isOpen() {
		return f.opened, nil
	}
	opened, err := openSession(ctx, f.client, f.user)
	if err == nil {
		f.opened = opened
	}
	return opened, err
}

func (f *SandboxFs) close() {
	f.lock.Lock()
	defer f.lock.Unlock()
	if f.opened != nil {
		f.opened.close()
		f.opened = nil
	}
}

// enter waits until another whole file can be read or written.
func (f *SandboxFs) enter(ctx context.Context) error {
	select {
	case f.gate <- struct{}{}:
		return nil
	case <-ctx.Done():
		return cancelled(ctx)
	}
}

// Read returns the contents of a file.
func (f *SandboxFs) Read(ctx context.Context, path string) ([]byte, error) {
	if err := f.enter(ctx); err != nil {
		return nil, err
	}
	defer func() { <-f.gate }()
	stream, err := f.ReadStream(ctx, path)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	// Most files are short: one read at a time until the second.
	stream.ahead = 1
	var contents bytes.Buffer
	_, err = stream.CopyTo(ctx, &contents)
	return contents.Bytes(), err
}

// ReadString returns the contents of a file as text.
func (f *SandboxFs) ReadString(ctx context.Context, path string) (string, error) {
	contents, err := f.Read(ctx, path)
	return string(contents), err
}

// Write writes a file. An existing one is truncated.
func (f *SandboxFs) Write(ctx context.Context, path string, data []byte) error {
	return f.WriteMode(ctx, path, data, nil)
}

// WriteMode writes a file with permission bits.
func (f *SandboxFs) WriteMode(ctx context.Context, path string, data []byte, mode *uint32) error {
	if err := f.enter(ctx); err != nil {
		return err
	}
	defer func() { <-f.gate }()
	stream, err := f.WriteStreamMode(ctx, path, mode)
	if err != nil {
		return err
	}
	if err := stream.WriteCtx(ctx, data); err != nil {
		stream.Close(ctx)
		return err
	}
	return stream.Close(ctx)
}

// WriteString writes a file from text.
func (f *SandboxFs) WriteString(ctx context.Context, path, text string) error {
	return f.Write(ctx, path, []byte(text))
}

// List returns the entries of a directory, sorted by name.
func (f *SandboxFs) List(ctx context.Context, directory string) ([]FsEntry, error) {
	session, err := f.session(ctx, directory)
	if err != nil {
		return nil, err
	}
	found, err := session.entries(ctx, directory)
	if err != nil {
		return nil, err
	}
	entries := make([]FsEntry, 0, len(found))
	for _, entry := range found {
		mode := entry.attributes.perm()
		size := int64(0)
		if entry.attributes.size != nil {
			size = int64(*entry.attributes.size)
		}
		at := path.Join(directory, entry.name)
		entries = append(entries, FsEntry{at, fsKind(mode), size, mode & 0o7777})
	}
	sort.Slice(entries, func(one, other int) bool { return entries[one].Path < entries[other].Path })
	return entries, nil
}

// Stat returns the metadata of a file.
func (f *SandboxFs) Stat(ctx context.Context, path string) (*FsStat, error) {
	return f.stat(ctx, path, true)
}

// Lstat returns the metadata of a file, of a link itself.
func (f *SandboxFs) Lstat(ctx context.Context, path string) (*FsStat, error) {
	return f.stat(ctx, path, false)
}

func (f *SandboxFs) stat(ctx context.Context, path string, follow bool) (*FsStat, error) {
	session, err := f.session(ctx, path)
	if err != nil {
		return nil, err
	}
	found, err := session.stat(ctx, path, follow)
	if err != nil {
		return nil, err
	}
	mode := found.perm()
	stat := &FsStat{Path: path, Kind: fsKind(mode), Mode: mode & 0o7777, IsDir: found.isDir()}
	if found.size != nil {
		stat.Size = int64(*found.size)
	}
	if found.modified != nil {
		stat.ModTime = time.Unix(int64(*found.modified), 0)
	}
	if found.uid != nil && found.gid != nil {
		stat.UID, stat.GID = *found.uid, *found.gid
	}
	return stat, nil
}

// Exists returns whether a path exists. Other errors than a missing path are returned.
func (f *SandboxFs) Exists(ctx context.Context, path string) (bool, error) {
	_, err := f.Stat(ctx, path)
	if errors.Is(err, ErrPathNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Mkdir creates a directory and its parents. An existing directory is no error.
func (f *SandboxFs) Mkdir(ctx context.Context, directory string) error {
	session, err := f.session(ctx, directory)
	if err != nil {
		return err
	}
	body := packet(nil).text(directory).attributes(attributes{})
	err = session.status(ctx, "mkdir", directory, sftpMkdir, body)
	parent := path.Dir(strings.TrimRight(directory, "/"))
	switch {
	case errors.Is(err, ErrPathNotFound) && parent != directory && parent != ".":
		if err := f.Mkdir(ctx, parent); err != nil {
			return err
		}
		return session.status(ctx, "mkdir", directory, sftpMkdir, body)
	case errors.Is(err, ErrFilesystem) && !errors.Is(err, ErrPathNotFound):
		if found, statErr := session.stat(ctx, directory, true); statErr == nil && found.isDir() {
			return nil
		}
	}
	return err
}

// Remove removes a file or symbolic link.
func (f *SandboxFs) Remove(ctx context.Context, path string) error {
	session, err := f.session(ctx, path)
	if err != nil {
		return err
	}
	return session.status(ctx, "remove", path, sftpRemove, packet(nil).text(path))
}

// RemoveDir removes a directory with all that is in it.
func (f *SandboxFs) RemoveDir(ctx context.Context, path string) error {
	session, err := f.session(ctx, path)
	if err != nil {
		return err
	}
	found, err := session.stat(ctx, path, false)
	if err != nil {
		return err
	}
	if !found.isDir() {
		return fail(ErrFilesystem, "remove '%s': not a directory", path)
	}
	return removeTree(ctx, session, path)
}

func removeTree(ctx context.Context, session *session, directory string) error {
	entries, err := session.entries(ctx, directory)
	if err != nil {
		return err
	}
	var requests []*pending
	var paths []string
	for _, entry := range entries {
		at := path.Join(directory, entry.name)
		if entry.attributes.isDir() {
			if err := removeTree(ctx, session, at); err != nil {
				return err
			}
			continue
		}
		request, err := session.send(ctx, sftpRemove, packet(nil).text(at))
		if err != nil {
			return err
		}
		requests, paths = append(requests, request), append(paths, at)
	}
	for index, request := range requests {
		found, err := request.wait(ctx)
		if err == nil {
			_, err = found.check("remove", paths[index], statusOK)
		}
		if err != nil {
			return err
		}
	}
	return session.status(ctx, "remove", directory, sftpRmdir, packet(nil).text(directory))
}

// RemoveEmptyDir removes an empty directory.
func (f *SandboxFs) RemoveEmptyDir(ctx context.Context, path string) error {
	session, err := f.session(ctx, path)
	if err != nil {
		return err
	}
	return session.status(ctx, "remove", path, sftpRmdir, packet(nil).text(path))
}

// Copy copies a file inside the guest, with its permission bits.
func (f *SandboxFs) Copy(ctx context.Context, source, target string) error {
	session, err := f.session(ctx, source, target)
	if err != nil {
		return err
	}
	found, err := session.stat(ctx, source, true)
	if err != nil {
		return err
	}
	reading, err := session.openFile(ctx, source, openRead, attributes{})
	if err != nil {
		return err
	}
	defer session.closeHandle(reading, source)
	mode := modeOf(found.perm() & 0o7777)
	writing, err := session.openFile(ctx, target, openWrite|openCreate|openTruncate, mode)
	if err != nil {
		return err
	}
	defer session.closeHandle(writing, target)
	body := packet(nil).text("copy-data").text(reading).u64(0, 0).text(writing).u64(0)
	if err := session.status(ctx, "copy", source, sftpExtended, body); err != nil {
		return err
	}
	body = packet(nil).text(writing).attributes(mode)
	return session.status(ctx, "copy", target, sftpFsetstat, body)
}

// Rename renames a file or directory. An existing file is replaced.
func (f *SandboxFs) Rename(ctx context.Context, source, target string) error {
	session, err := f.session(ctx, source, target)
	if err != nil {
		return err
	}
	body := packet(nil).text("posix-rename@openssh.com").text(source).text(target)
	return session.status(ctx, "rename", source, sftpExtended, body)
}

// ReadLink returns the target of a symbolic link.
func (f *SandboxFs) ReadLink(ctx context.Context, path string) (string, error) {
	session, err := f.session(ctx, path)
	if err != nil {
		return "", err
	}
	return session.name(ctx, path, sftpReadlink)
}

// Symlink creates a symbolic link to target.
func (f *SandboxFs) Symlink(ctx context.Context, target, link string) error {
	session, err := f.session(ctx, target, link)
	if err != nil {
		return err
	}
	return session.status(ctx, "link", link, sftpSymlink, packet(nil).text(target).text(link))
}

// RealPath returns the absolute path without symbolic links.
func (f *SandboxFs) RealPath(ctx context.Context, path string) (string, error) {
	session, err := f.session(ctx, path)
	if err != nil {
		return "", err
	}
	return session.name(ctx, path, sftpRealpath)
}

// Chmod sets the permission bits of a file.
func (f *SandboxFs) Chmod(ctx context.Context, path string, mode uint32) error {
	return f.setStat(ctx, path, modeOf(mode))
}

// Chown sets the owner and group of a file.
func (f *SandboxFs) Chown(ctx context.Context, path string, uid, gid uint32) error {
	return f.setStat(ctx, path, attributes{uid: &uid, gid: &gid})
}

func (f *SandboxFs) setStat(ctx context.Context, path string, with attributes) error {
	session, err := f.session(ctx, path)
	if err != nil {
		return err
	}
	body := packet(nil).text(path).attributes(with)
	return session.status(ctx, "change", path, sftpSetstat, body)
}

// CopyFromHost copies a file or directory tree of the host into the guest.
func (f *SandboxFs) CopyFromHost(ctx context.Context, hostPath, guestPath string) error {
	status, err := os.Stat(hostPath)
	if err != nil {
		return &Error{Kind: ErrIO, Message: err.Error(), Cause: err}
	}
	if status.IsDir() {
		source, err := filepath.Abs(hostPath)
		if err == nil {
			_, err = f.host.run(ctx, "cp", "--", source, f.name+":"+guestPath)
		}
		return err
	}
	file, err := os.Open(hostPath)
	if err != nil {
		return &Error{Kind: ErrIO, Message: err.Error(), Cause: err}
	}
	defer file.Close()
	mode := uint32(status.Mode().Perm())
	stream, err := f.WriteStreamMode(ctx, guestPath, &mode)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(ctxWriter{ctx, stream}, file, make([]byte, chunkBytes))
	if closed := stream.Close(ctx); err == nil {
		err = closed
	}
	return err
}

// CopyToHost copies a file or directory tree of the guest to the host.
func (f *SandboxFs) CopyToHost(ctx context.Context, guestPath, hostPath string) error {
	status, err := f.Stat(ctx, guestPath)
	if err != nil {
		return err
	}
	if status.IsDir {
		target, err := filepath.Abs(hostPath)
		if err == nil {
			_, err = f.host.run(ctx, "cp", "--", f.name+":"+guestPath, target)
		}
		return err
	}
	stream, err := f.ReadStream(ctx, guestPath)
	if err != nil {
		return err
	}
	defer stream.Close()
	file, err := os.Create(hostPath)
	if err != nil {
		return &Error{Kind: ErrIO, Message: err.Error(), Cause: err}
	}
	_, err = stream.CopyTo(ctx, file)
	if closed := file.Close(); err == nil && closed != nil {
		err = &Error{Kind: ErrIO, Message: closed.Error(), Cause: closed}
	}
	return err
}

// FsReadStream is the contents of a file, in chunks.
type FsReadStream struct {
	ctx      context.Context
	session  *session
	handle   string
	path     string
	offset   uint64
	ahead    int
	requests []*pending
	rest     []byte
	closed   bool
}

// ReadStream opens a file for reading in chunks. The stream is an io.Reader and an io.WriterTo.
func (f *SandboxFs) ReadStream(ctx context.Context, path string) (*FsReadStream, error) {
	session, err := f.session(ctx, path)
	if err != nil {
		return nil, err
	}
	handle, err := session.openFile(ctx, path, openRead, attributes{})
	if err != nil {
		return nil, err
	}
	stream := &FsReadStream{ctx: ctx, session: session, handle: handle, path: path}
	stream.ahead = outstanding
	return stream, nil
}

// Recv returns the next chunk; io.EOF at the end.
func (s *FsReadStream) Recv(ctx context.Context) ([]byte, error) {
	if s.closed {
		return nil, io.EOF
	}
	for len(s.requests) < s.ahead {
		body := packet(nil).text(s.handle).u64(s.offset).u32(chunkBytes)
		request, err := s.session.send(ctx, sftpRead, body)
		if err != nil {
			return nil, err
		}
		s.requests = append(s.requests, request)
		s.offset += chunkBytes
	}
	found, err := s.requests[0].wait(ctx)
	if err != nil {
		return nil, err
	}
	data, err := found.data(s.path)
	if err != nil {
		return nil, err
	}
	if len(data) == chunkBytes {
		s.ahead = outstanding
		s.requests = s.requests[1:]
		return data, nil
	}
	// The next read starts after these bytes, which need not be the last.
	s.offset -= uint64(len(s.requests))*chunkBytes - uint64(len(data))
	s.requests = nil
	if len(data) == 0 {
		s.Close()
		return nil, io.EOF
	}
	return data, nil
}

// Read reads bytes. The context is that of ReadStream.
func (s *FsReadStream) Read(into []byte) (int, error) {
	if len(s.rest) == 0 {
		data, err := s.Recv(s.ctx)
		if err != nil {
			return 0, err
		}
		s.rest = data
	}
	count := copy(into, s.rest)
	s.rest = s.rest[count:]
	return count, nil
}

// WriteTo copies the rest to a writer. The context is that of ReadStream.
func (s *FsReadStream) WriteTo(writer io.Writer) (int64, error) { return s.CopyTo(s.ctx, writer) }

// CopyTo copies the rest to a writer.
func (s *FsReadStream) CopyTo(ctx context.Context, writer io.Writer) (int64, error) {
	total := int64(0)
	data := s.rest
	s.rest = nil
	for {
		count, err := writer.Write(data)
		total += int64(count)
		if err != nil {
			return total, err
		}
		if data, err = s.Recv(ctx); err == io.EOF {
			return total, nil
		} else if err != nil {
			return total, err
		}
	}
}

// Close closes the file.
func (s *FsReadStream) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return s.session.closeHandle(s.handle, s.path)
}

// FsWriteStream is a file that is written in chunks.
type FsWriteStream struct {
	ctx      context.Context
	session  *session
	handle   string
	path     string
	offset   uint64
	requests []*pending
	closed   bool
}

// WriteStream opens a file for writing in chunks. An existing file is truncated.
func (f *SandboxFs) WriteStream(ctx context.Context, path string) (*FsWriteStream, error) {
	return f.WriteStreamMode(ctx, path, nil)
}

// WriteStreamMode opens a file for writing in chunks, with permission bits.
func (f *SandboxFs) WriteStreamMode(
	ctx context.Context, path string, mode *uint32,
) (*FsWriteStream, error) {
	session, err := f.session(ctx, path)
	if err != nil {
		return nil, err
	}
	with := attributes{mode: mode}
	handle, err := session.openFile(ctx, path, openWrite|openCreate|openTruncate, with)
	if err != nil {
		return nil, err
	}
	stream := &FsWriteStream{ctx: ctx, session: session, handle: handle, path: path}
	if mode != nil {
		// The mode of an existing file, and without the umask of the guest.
		body := packet(nil).text(handle).attributes(with)
		if err := session.status(ctx, "change", path, sftpFsetstat, body); err != nil {
			stream.Close(ctx)
			return nil, err
		}
	}
	return stream, nil
}

// Write writes bytes. The context is that of WriteStream.
func (s *FsWriteStream) Write(data []byte) (int, error) {
	if err := s.WriteCtx(s.ctx, data); err != nil {
		return 0, err
	}
	return len(data), nil
}

// WriteCtx writes bytes.
func (s *FsWriteStream) WriteCtx(ctx context.Context, data []byte) error {
	if s.closed {
		return fail(ErrInvalidHandle, "the file is closed")
	}
	for len(data) > 0 {
		if err := s.settle(ctx, outstanding-1); err != nil {
			return err
		}
		chunk := data
		if len(chunk) > chunkBytes {
			chunk = chunk[:chunkBytes]
		}
		body := packet(nil).text(s.handle).u64(s.offset).text(string(chunk))
		request, err := s.session.send(ctx, sftpWrite, body)
		if err != nil {
			return err
		}
		s.requests = append(s.requests, request)
		s.offset += uint64(len(chunk))
		data = data[len(chunk):]
	}
	return nil
}

// settle waits until no more than a number of writes are on their way.
func (s *FsWriteStream) settle(ctx context.Context, most int) error {
	for len(s.requests) > most {
		found, err := s.requests[0].wait(ctx)
		s.requests = s.requests[1:]
		if err != nil {
			return err
		}
		if _, err := found.check("write", s.path, statusOK); err != nil {
			return err
		}
	}
	return nil
}

// Close waits for the writes and closes the file. It reports errors of writes under way.
func (s *FsWriteStream) Close(ctx context.Context) error {
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.settle(ctx, 0)
	if closed := s.session.closeHandle(s.handle, s.path); err == nil {
		err = closed
	}
	return err
}

type ctxWriter struct {
	ctx    context.Context
	stream *FsWriteStream
}

func (w ctxWriter) Write(data []byte) (int, error) {
	return len(data), w.stream.WriteCtx(w.ctx, data)
}
