package microsandbox

import (
	"context"
	"encoding/binary"
	"io/fs"
	"sync"
	"time"
)

// Version 3 of the SSH file transfer protocol, over the operation sftp of a sandbox.
const (
	packetBytesMax = 1 << 20
	chunkBytes     = 128 << 10
	// sessionTime is the time for a session to open.
	sessionTime = 30 * time.Second

	openRead     = 1
	openWrite    = 2
	openCreate   = 8
	openTruncate = 16

	sftpOpen     = 3
	sftpClose    = 4
	sftpRead     = 5
	sftpWrite    = 6
	sftpLstat    = 7
	sftpSetstat  = 9
	sftpFsetstat = 10
	sftpOpendir  = 11
	sftpReaddir  = 12
	sftpRemove   = 13
	sftpMkdir    = 14
	sftpRmdir    = 15
	sftpRealpath = 16
	sftpStat     = 17
	sftpReadlink = 19
	sftpSymlink  = 20
	sftpExtended = 200

	sftpStatus = 101
	sftpHandle = 102
	sftpData   = 103
	sftpName   = 104
	sftpAttrs  = 105

	statusOK         = 0
	statusEOF        = 1
	statusNoSuchFile = 2
)

// attributes are the attributes of a file; unknown ones are nil.
type attributes struct {
	size               *uint64
	uid, gid           *uint32
	mode               *uint32
	accessed, modified *uint32
}

func modeOf(mode uint32) attributes { return attributes{mode: &mode} }

func (a attributes) perm() uint32 {
	if a.mode == nil {
		return 0
	}
	return *a.mode
}

func (a attributes) isDir() bool { return a.perm()&0o170000 == 0o040000 }

// packet writes fields of a packet.
type packet []byte

func (p packet) u32(values ...uint32) packet {
	for _, value := range values {
		p = binary.BigEndian.AppendUint32(p, value)
	}
	return p
}

func (p packet) u64(values ...uint64) packet {
	for _, value := range values {
		p = binary.BigEndian.AppendUint64(p, value)
	}
	return p
}

func (p packet) text(value string) packet {
	return append(p.u32(uint32(len(value))), value...)
}

func (p packet) attributes(a attributes) packet {
	flags := uint32(0)
	body := packet(nil)
	if a.size != nil {
		flags, body = flags|1, body.u64(*a.size)
	}
	if a.uid != nil && a.gid != nil {
		flags, body = flags|2, body.u32(*a.uid, *a.gid)
	}
	if a.mode != nil {
		flags, body = flags|4, body.u32(*a.mode)
	}
	if a.accessed != nil && a.modified != nil {
		flags, body = flags|8, body.u32(*a.accessed, *a.modified)
	}
	return append(p.u32(flags), body...)
}

// fields reads fields of a packet, in order. Too few make it broken.
type fields struct {
	data   []byte
	broken bool
}

func (f *fields) take(count int) []byte {
	if f.broken || count < 0 || count > len(f.data) {
		f.broken = true
		return make([]byte, 8)
	}
	taken := f.data[:count]
	f.data = f.data[count:]
	return taken
}

func (f *fields) u32() uint32 { return binary.BigEndian.Uint32(f.take(4)) }
func (f *fields) u64() uint64 { return binary.BigEndian.Uint64(f.take(8)) }

func (f *fields) bytes() []byte {
	length := int(f.u32())
	if f.broken {
		return nil
	}
	return f.take(length)
}

func (f *fields) attributes() attributes {
	flags := f.u32()
	var found attributes
	if flags&1 != 0 {
		size := f.u64()
		found.size = &size
	}
	if flags&2 != 0 {
		uid, gid := f.u32(), f.u32()
		found.uid, found.gid = &uid, &gid
	}
	if flags&4 != 0 {
		mode := f.u32()
		found.mode = &mode
	}
	if flags&8 != 0 {
		accessed, modified := f.u32(), f.u32()
		found.accessed, found.modified = &accessed, &modified
	}
	if flags&0x80000000 != 0 {
		for count := f.u32(); count > 0 && !f.broken; count-- {
			f.bytes()
			f.bytes()
		}
	}
	return found
}

var errEarly = fail(ErrProtocol, "a packet of files ends early")

func (f *fields) check() error {
	if f.broken {
		return errEarly
	}
	return nil
}

// answer is the answer of a request.
type answer struct {
	kind   byte
	fields fields
}

// session is a file session with a guest. Requests of several callers share it.
type session struct {
	call    *call
	buffer  []byte
	lock    sync.Mutex
	waiting map[uint32]chan answer
	next    uint32
	broken  *Error
}

// openSession opens a session as a user.
func openSession(ctx context.Context, client *client, user string) (*session, error) {
	request := object{"op": "sftp"}
	if user != "" {
		request["user"] = user
	}
	call, err := client.call(ctx, request)
	if err != nil {
		return nil, err
	}
	s := &session{call: call, waiting: map[uint32]chan answer{}, next: 1}
	if err := s.greet(ctx); err != nil {
		call.abandon()
		return nil, err
	}
	go s.readAnswers()
	return s, nil
}

func (s *session) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sessionTime)
	defer cancel()
	item, err := s.call.receive(ctx)
	if err != nil {
		return err
	}
	if item.message == nil {
		return fail(ErrProtocol, "files before the start of their session")
	}
	if item.message.text("type") == "failed" {
		return notStarted(item.message, "sftp")
	}
	if err := s.call.write(ctx, packet(nil).u32(5)); err != nil {
		return err
	}
	if err := s.call.write(ctx, append([]byte{1}, packet(nil).u32(3)...)); err != nil {
		return err
	}
	body, err := s.packet(ctx)
	if err == nil && body[0] != 2 {
		return fail(ErrProtocol, "no version of the file protocol")
	}
	return err
}

// packet returns the next packet, without its length.
func (s *session) packet(ctx context.Context) ([]byte, error) {
	for {
		if len(s.buffer) >= 4 {
			length := int(binary.BigEndian.Uint32(s.buffer))
			if length < 1 || length > packetBytesMax {
				return nil, fail(ErrProtocol, "a packet of files with %d bytes", length)
			}
			if len(s.buffer) >= 4+length {
				body := s.buffer[4 : 4+length : 4+length]
				s.buffer = s.buffer[4+length:]
				return body, nil
			}
		}
		item, err := s.call.receive(ctx)
		if err != nil {
			return nil, err
		}
		if item.last {
			return nil, fail(ErrFilesystem, "the file session has ended")
		}
		if item.channel == channelStdout {
			s.buffer = append(s.buffer, item.bytes...)
		}
	}
}

func (s *session) readAnswers() {
	for {
		body, err := s.packet(context.Background())
		if err == nil && len(body) < 5 {
			err = fail(ErrProtocol, "an answer without a number")
		}
		if err != nil {
			s.call.abandon()
			s.fail(err.(*Error))
			return
		}
		number := binary.BigEndian.Uint32(body[1:])
		s.lock.Lock()
		waiting := s.waiting[number]
		delete(s.waiting, number)
		s.lock.Unlock()
		if waiting != nil {
			waiting <- answer{body[0], fields{data: body[5:]}}
		}
	}
}

func (s *session) fail(err *Error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	if s.broken == nil {
		s.broken = err
	}
	for _, waiting := range s.waiting {
		close(waiting)
	}
	s.waiting = map[uint32]chan answer{}
}

func (s *session) isOpen() bool {
	s.lock.Lock()
	defer s.lock.Unlock()
	return s.broken == nil
}

// close ends the session.
func (s *session) close() {
	s.call.abandon()
	s.fail(fail(ErrFilesystem, "the file session was closed"))
}

// pending is a request whose answer has not been read.
type pending struct {
	session *session
	number  uint32
	answer  chan answer
}

// send sends a request.
func (s *session) send(ctx context.Context, kind byte, body []byte) (*pending, error) {
	if ctx.Err() != nil {
		return nil, cancelled(ctx)
	}
	s.lock.Lock()
	if s.broken != nil {
		defer s.lock.Unlock()
		copied := *s.broken
		return nil, &copied
	}
	request := &pending{s, s.next, make(chan answer, 1)}
	s.waiting[request.number] = request.answer
	s.next++
	s.lock.Unlock()
	head := append(packet(nil).u32(uint32(len(body)+5)), kind)
	// A packet is written whole, even if its caller is cancelled.
	whole := append(packet(head).u32(request.number), body...)
	if err := s.call.write(context.Background(), whole); err != nil {
		return nil, err
	}
	return request, nil
}

// wait waits for the answer.
func (p *pending) wait(ctx context.Context) (answer, error) {
	select {
	case found, ok := <-p.answer:
		if !ok {
			p.session.lock.Lock()
			defer p.session.lock.Unlock()
			copied := *p.session.broken
			return answer{}, &copied
		}
		return found, nil
	case <-ctx.Done():
		p.session.lock.Lock()
		delete(p.session.waiting, p.number)
		p.session.lock.Unlock()
		return answer{}, cancelled(ctx)
	}
}

func (s *session) request(ctx context.Context, kind byte, body []byte) (answer, error) {
	request, err := s.send(ctx, kind, body)
	if err != nil {
		return answer{}, err
	}
	return request.wait(ctx)
}

func (s *session) status(ctx context.Context, op string, path string, kind byte, body []byte) error {
	found, err := s.request(ctx, kind, body)
	if err != nil {
		return err
	}
	_, err = found.check(op, path, statusOK)
	return err
}

func (s *session) handle(ctx context.Context, path string, kind byte, body []byte) (string, error) {
	found, err := s.request(ctx, kind, body)
	if err != nil {
		return "", err
	}
	if found.kind == sftpHandle {
		handle := string(found.fields.bytes())
		return handle, found.fields.check()
	}
	if _, err := found.check("open", path, statusOK); err != nil {
		return "", err
	}
	return "", fail(ErrProtocol, "no handle")
}

func (s *session) name(ctx context.Context, path string, kind byte) (string, error) {
	found, err := s.request(ctx, kind, packet(nil).text(path))
	if err != nil {
		return "", err
	}
	if found.kind == sftpName && found.fields.u32() == 1 {
		name := string(found.fields.bytes())
		return name, found.fields.check()
	}
	if _, err := found.check("read", path, statusOK); err != nil {
		return "", err
	}
	return "", fail(ErrProtocol, "no name")
}

func (s *session) openFile(
	ctx context.Context, path string, flags uint32, with attributes,
) (string, error) {
	return s.handle(ctx, path, sftpOpen, packet(nil).text(path).u32(flags).attributes(with))
}

// closeHandle closes a file or directory. A cancellation does not prevent this.
func (s *session) closeHandle(handle, path string) error {
	if !s.isOpen() {
		return nil
	}
	return s.status(context.Background(), "close", path, sftpClose, packet(nil).text(handle))
}

func (s *session) stat(ctx context.Context, path string, follow bool) (attributes, error) {
	kind := byte(sftpStat)
	if !follow {
		kind = sftpLstat
	}
	found, err := s.request(ctx, kind, packet(nil).text(path))
	if err != nil {
		return attributes{}, err
	}
	if found.kind == sftpAttrs {
		attributes := found.fields.attributes()
		return attributes, found.fields.check()
	}
	if _, err := found.check("stat", path, statusOK); err != nil {
		return attributes{}, err
	}
	return attributes{}, fail(ErrProtocol, "no attributes")
}

// data returns the bytes of the answer of a read; none at the end.
func (a answer) data(path string) ([]byte, error) {
	if a.kind == sftpData {
		data := a.fields.bytes()
		return data, a.fields.check()
	}
	_, err := a.check("read", path, statusEOF)
	return nil, err
}

type directoryEntry struct {
	name       string
	attributes attributes
}

// entries returns the entries of a directory, in the order of the guest.
func (s *session) entries(ctx context.Context, path string) ([]directoryEntry, error) {
	handle, err := s.handle(ctx, path, sftpOpendir, packet(nil).text(path))
	if err != nil {
		return nil, err
	}
	defer s.closeHandle(handle, path)
	var entries []directoryEntry
	for {
		found, err := s.request(ctx, sftpReaddir, packet(nil).text(handle))
		if err != nil {
			return nil, err
		}
		if found.kind != sftpName {
			_, err := found.check("list", path, statusEOF)
			return entries, err
		}
		for count := found.fields.u32(); count > 0 && !found.fields.broken; count-- {
			name := string(found.fields.bytes())
			found.fields.bytes()
			attributes := found.fields.attributes()
			if name != "." && name != ".." {
				entries = append(entries, directoryEntry{name, attributes})
			}
		}
		if err := found.fields.check(); err != nil {
			return nil, err
		}
	}
}

// check returns the code of a status that is a success, or also. Others are errors.
func (a answer) check(op, path string, also uint32) (uint32, error) {
	if a.kind != sftpStatus {
		return 0, fail(ErrProtocol, "an answer of the kind %d", a.kind)
	}
	code := a.fields.u32()
	why := string(a.fields.bytes())
	if code == statusOK || code == also {
		return code, nil
	}
	err := fail(ErrFilesystem, "%s '%s': %s", op, path, why)
	if code == statusNoSuchFile {
		err.Kind, err.Cause = ErrPathNotFound, fs.ErrNotExist
	}
	return code, err
}
