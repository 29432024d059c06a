package microsandbox

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// writeTime is the time for the peer to take a frame, before the connection is given up.
const writeTime = 60 * time.Second

// incoming is what a call receives: bytes of a channel, or a message, of which the last one ends it.
type incoming struct {
	channel byte
	bytes   []byte
	message object
	last    bool
}

// call is one call of a connection.
//
// A receiver grants credit when a caller has consumed bytes. So a slow reader holds at most one
// window per channel in memory, and stops its own command and no other.
type call struct {
	connection *connection
	stream     uint32

	lock      sync.Mutex
	inbox     []incoming
	ended     bool
	abandoned bool
	credit    int
	consumed  [3]int
	received  [3]int
	changed   chan struct{}
	writing   sync.Mutex
	done      chan struct{}
}

// change wakes what waits for the call. The lock is held.
func (c *call) change() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// receive returns the next bytes or message. It fails when the connection has ended before the call.
func (c *call) receive(ctx context.Context) (incoming, error) {
	for {
		c.lock.Lock()
		if len(c.inbox) > 0 {
			item := c.inbox[0]
			c.inbox[0] = incoming{}
			c.inbox = c.inbox[1:]
			grant := c.consume(item)
			c.lock.Unlock()
			c.connection.send(grant)
			return item, nil
		}
		ended, changed := c.ended, c.changed
		c.lock.Unlock()
		if ended {
			return incoming{}, c.connection.failure()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return incoming{}, cancelled(ctx)
		}
	}
}

// consume returns a frame of credit, if one is due. The lock is held.
func (c *call) consume(item incoming) []byte {
	if len(item.bytes) == 0 {
		return nil
	}
	c.consumed[item.channel] += len(item.bytes)
	count := c.consumed[item.channel]
	if count < creditBytes || c.ended {
		return nil
	}
	c.consumed[item.channel] = 0
	c.received[item.channel] += count
	payload := make([]byte, 4)
	binary.BigEndian.PutUint32(payload, uint32(count))
	return frame(c.stream, kindCredit, payload, item.channel, 0)
}

// write writes to channel 0. It waits while the peer does not read, and drops what comes too late.
func (c *call) write(ctx context.Context, data []byte) error {
	// Writes of several callers follow each other whole.
	c.writing.Lock()
	defer c.writing.Unlock()
	for len(data) > 0 {
		c.lock.Lock()
		ended, changed := c.ended, c.changed
		count := len(data)
		if count > c.credit {
			count = c.credit
		}
		if count > dataBytes {
			count = dataBytes
		}
		c.credit -= count
		c.lock.Unlock()
		if ended {
			return nil
		}
		if count == 0 {
			select {
			case <-changed:
			case <-ctx.Done():
				return cancelled(ctx)
			}
			continue
		}
		c.connection.send(frame(c.stream, kindData, data[:count], channelStdin, 0))
		data = data[count:]
	}
	return nil
}

// closeStdin ends channel 0.
func (c *call) closeStdin() {
	c.send(frame(c.stream, kindData, nil, channelStdin, flagEnd))
}

// control sends a control message.
func (c *call) control(value object) {
	if frames, err := message(c.stream, kindControl, value); err == nil {
		c.send(frames)
	}
}

// abandon abandons the call: the guest kills the command. Bytes that still come are dropped.
func (c *call) abandon() {
	c.lock.Lock()
	again := c.abandoned || c.ended
	c.abandoned = true
	var grants []byte
	for _, item := range c.inbox {
		grants = append(grants, c.consume(item)...)
	}
	c.inbox = nil
	c.lock.Unlock()
	if !again {
		c.connection.send(append(frame(c.stream, kindClose, nil, 0, 0), grants...))
	}
}

// waitEnded waits for the end of the call.
func (c *call) waitEnded(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-c.done:
	case <-timer.C:
	}
}

func (c *call) send(frames []byte) {
	c.lock.Lock()
	ended := c.ended
	c.lock.Unlock()
	if !ended {
		c.connection.send(frames)
	}
}

// take takes what has arrived.
func (c *call) take(item incoming) error {
	c.lock.Lock()
	if item.message == nil {
		if item.channel != channelStdout && item.channel != channelStderr {
			c.lock.Unlock()
			return fmt.Errorf("data on channel %d", item.channel)
		}
		c.received[item.channel] -= len(item.bytes)
		if c.received[item.channel] < 0 {
			c.lock.Unlock()
			return errors.New("more data than credit")
		}
	}
	var grant []byte
	if c.abandoned {
		grant = c.consume(item)
	} else {
		c.inbox = append(c.inbox, item)
		c.change()
	}
	c.lock.Unlock()
	if item.last {
		c.finish()
	}
	if grant != nil {
		c.connection.send(grant)
	}
	return nil
}

// takeCredit takes additional credit.
func (c *call) takeCredit(channel byte, count uint32) error {
	c.lock.Lock()
	defer c.lock.Unlock()
	if channel != channelStdin || uint64(c.credit)+uint64(count) > window {
		return errors.New("more credit than a window")
	}
	c.credit += int(count)
	c.change()
	return nil
}

// finish ends the call.
func (c *call) finish() {
	c.lock.Lock()
	defer c.lock.Unlock()
	if !c.ended {
		c.ended = true
		close(c.done)
		c.change()
	}
}

// connection is a connection to the supervisor of a sandbox.
type connection struct {
	name       string
	socket     net.Conn
	operations map[string]bool
	program    string

	lock       sync.Mutex
	calls      map[uint32]*call
	next       uint32
	lost       *Error
	writing    sync.Mutex
	greeted    chan struct{}
	isGreeted  bool
	incomplete map[[2]uint32][]byte
}

// dial connects to a socket and exchanges the handshake.
func dial(ctx context.Context, path, name string) (*connection, error) {
	socket, err := dialUnix(ctx, path, name)
	if err != nil {
		return nil, err
	}
	c := &connection{
		name: name, socket: socket, calls: map[uint32]*call{}, next: 1,
		greeted: make(chan struct{}), incomplete: map[[2]uint32][]byte{},
	}
	hello, _ := message(0, kindHello, object{
		"version_min": wireVersion, "version_max": wireVersion,
		"program": "msb-sdk-go", "operations": []string{},
	})
	c.send(hello)
	go c.read()
	timer := time.NewTimer(helloTime)
	defer timer.Stop()
	select {
	case <-c.greeted:
	case <-timer.C:
		c.end(fail(ErrProtocol, "the sandbox '%s' sent no hello", name))
	case <-ctx.Done():
		c.end(cancelled(ctx))
	}
	if !c.isOpen() {
		return nil, c.failure()
	}
	return c, nil
}

// dialUnix connects to a socket. A path that is too long goes through its open directory.
func dialUnix(ctx context.Context, path, name string) (net.Conn, error) {
	address := path
	if len(path) > addressBytesMax {
		directory, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, dialError(name, err)
		}
		defer directory.Close()
		address = fmt.Sprintf("/proc/self/fd/%d/%s", directory.Fd(), filepath.Base(path))
	}
	deadline := time.Now().Add(helloTime)
	for {
		var dialer net.Dialer
		socket, err := dialer.DialContext(ctx, "unix", address)
		if err == nil {
			if err := checkPeer(socket); err != nil {
				socket.Close()
				return nil, err
			}
			return socket, nil
		}
		if ctx.Err() != nil {
			return nil, cancelled(ctx)
		}
		if !errors.Is(err, syscall.EAGAIN) || time.Now().After(deadline) {
			return nil, dialError(name, err)
		}
		// The queue of the listener is full.
		time.Sleep(5 * time.Millisecond)
	}
}

func dialError(name string, err error) *Error {
	for _, gone := range []error{os.ErrNotExist, syscall.ECONNREFUSED, syscall.ECONNRESET} {
		if errors.Is(err, gone) {
			return fail(ErrSandboxNotRunning, "the sandbox '%s' is not running", name)
		}
	}
	message := fmt.Sprintf("cannot connect to the sandbox '%s': %v", name, err)
	return &Error{Kind: ErrIO, Message: message, Cause: err}
}

// checkPeer refuses a supervisor of another user, as the programs do.
func checkPeer(socket net.Conn) error {
	unix, ok := socket.(*net.UnixConn)
	if !ok {
		return fail(ErrIO, "no Unix socket")
	}
	raw, err := unix.SyscallConn()
	if err != nil {
		return &Error{Kind: ErrIO, Message: err.Error(), Cause: err}
	}
	var credentials *syscall.Ucred
	var failed error
	err = raw.Control(func(descriptor uintptr) {
		credentials, failed = syscall.GetsockoptUcred(
			int(descriptor), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return &Error{Kind: ErrIO, Message: err.Error(), Cause: err}
	}
	if credentials.Uid != 0 && int(credentials.Uid) != os.Getuid() {
		return fail(ErrIO, "the socket belongs to the user %d", credentials.Uid)
	}
	return nil
}

var operationsOf = map[string]string{"attach": "jobs", "signal": "jobs"}

// call opens a call. needs are the operations of its fields, besides its own.
func (c *connection) call(request object, needs ...string) (*call, error) {
	operation := request.text("op")
	if other, ok := operationsOf[operation]; ok {
		operation = other
	}
	var missing []string
	for _, need := range append([]string{operation}, needs...) {
		if !c.operations[need] {
			missing = append(missing, need)
		}
	}
	if missing != nil {
		err := unsupported(missing...)
		err.Message = fmt.Sprintf("%s does not serve: %s", c.program, missing)
		err.Hint = "restart the sandbox: msb restart " + c.name
		return nil, err
	}
	c.lock.Lock()
	if c.lost != nil {
		c.lock.Unlock()
		return nil, c.failure()
	}
	made := &call{
		connection: c, stream: c.next, credit: window, received: [3]int{0, window, window},
		changed: make(chan struct{}), done: make(chan struct{}),
	}
	opened, err := message(made.stream, kindOpen, request)
	if err == nil {
		c.next++
		c.calls[made.stream] = made
	}
	c.lock.Unlock()
	if err != nil {
		return nil, err
	}
	c.send(opened)
	return made, nil
}

func (c *connection) count() int {
	c.lock.Lock()
	defer c.lock.Unlock()
	return len(c.calls)
}

func (c *connection) isOpen() bool {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.lost == nil
}

// send sends frames.
func (c *connection) send(frames []byte) {
	if len(frames) == 0 {
		return
	}
	c.writing.Lock()
	_ = c.socket.SetWriteDeadline(time.Now().Add(writeTime))
	_, err := c.socket.Write(frames)
	c.writing.Unlock()
	if err != nil {
		// What the peer has sent before its end is still read.
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.end(fail(ErrSandboxNotRunning, "the sandbox '%s' does not answer", c.name))
		}
	}
}

// failure returns a new error for the end of this connection.
func (c *connection) failure() *Error {
	c.lock.Lock()
	defer c.lock.Unlock()
	if c.lost == nil {
		return fail(ErrSandboxNotRunning, "the sandbox '%s' has ended", c.name)
	}
	copied := *c.lost
	return &copied
}

// close closes the connection. The peer ends its calls.
func (c *connection) close() {
	c.end(fail(ErrSandboxNotRunning, "the connection to '%s' was closed", c.name))
}

func (c *connection) end(err *Error) {
	c.lock.Lock()
	if c.lost != nil {
		c.lock.Unlock()
		return
	}
	c.lost = err
	calls := c.calls
	c.calls = map[uint32]*call{}
	if !c.isGreeted {
		c.isGreeted = true
		close(c.greeted)
	}
	c.lock.Unlock()
	c.socket.Close()
	for _, call := range calls {
		call.finish()
	}
}

// read reads frames until the connection ends.
func (c *connection) read() {
	reader := bufio.NewReaderSize(c.socket, 128<<10)
	header := make([]byte, headerBytes)
	for {
		if _, err := io.ReadFull(reader, header); err != nil {
			c.end(fail(ErrSandboxNotRunning, "the sandbox '%s' has ended", c.name))
			return
		}
		length := binary.BigEndian.Uint32(header)
		if length > frameBytesMax {
			c.violated(fmt.Errorf("a frame of %d bytes", length))
			return
		}
		payload := make([]byte, length)
		if _, err := io.ReadFull(reader, payload); err != nil {
			c.end(fail(ErrSandboxNotRunning, "the sandbox '%s' has ended", c.name))
			return
		}
		stream := binary.BigEndian.Uint32(header[4:])
		flags := binary.BigEndian.Uint16(header[10:])
		if err := c.take(stream, header[8], header[9], flags, payload); err != nil {
			c.violated(err)
			return
		}
	}
}

func (c *connection) violated(err error) {
	c.end(fail(ErrProtocol, "the sandbox '%s' broke the protocol: %v", c.name, err))
}

func (c *connection) find(stream uint32) *call {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.calls[stream]
}

func (c *connection) take(stream uint32, kind, channel byte, flags uint16, payload []byte) error {
	if (kind == kindHello) != (stream == 0) {
		return errors.New("only a hello has the stream 0")
	}
	if c.operations == nil && kind != kindHello {
		return errors.New("no hello at the start")
	}
	switch kind {
	case kindData:
		if flags&^flagEnd != 0 {
			return errors.New("unknown flags")
		}
		if found := c.find(stream); found != nil {
			return found.take(incoming{channel: channel, bytes: payload})
		}
	case kindCredit:
		if len(payload) != 4 {
			return errors.New("a credit of another length")
		}
		if found := c.find(stream); found != nil {
			return found.takeCredit(channel, binary.BigEndian.Uint32(payload))
		}
	case kindHello, kindEvent:
		return c.takePiece(stream, kind, flags, payload)
	default:
		return fmt.Errorf("a frame of the kind %d", kind)
	}
	return nil
}

func (c *connection) takePiece(stream uint32, kind byte, flags uint16, payload []byte) error {
	allowed := uint16(flagMore | flagEnd)
	if kind == kindHello {
		allowed = flagMore
	}
	if flags&^allowed != 0 {
		return errors.New("unknown flags")
	}
	key := [2]uint32{stream, uint32(kind)}
	whole := append(c.incomplete[key], payload...)
	if len(whole) > messageBytesMax {
		return errors.New("a message is too long")
	}
	if flags&flagMore != 0 {
		c.incomplete[key] = whole
		if len(c.incomplete) > incompleteMax {
			return errors.New("too many incomplete messages")
		}
		return nil
	}
	delete(c.incomplete, key)
	var fields object
	if err := json.Unmarshal(whole, &fields); err != nil {
		return err
	}
	if fields == nil {
		return errors.New("a message is no object")
	}
	if kind == kindHello {
		return c.takeHello(fields)
	}
	last := flags&flagEnd != 0
	c.lock.Lock()
	found := c.calls[stream]
	if last {
		delete(c.calls, stream)
	}
	c.lock.Unlock()
	if found != nil {
		return found.take(incoming{message: fields, last: last})
	}
	return nil
}

func (c *connection) takeHello(hello object) error {
	if c.operations != nil {
		return errors.New("a second hello")
	}
	if hello.int("version_min") > wireVersion || hello.int("version_max") < wireVersion {
		return errors.New("no common version")
	}
	c.program = hello.text("program")
	c.operations = map[string]bool{}
	listed, _ := hello["operations"].([]any)
	for _, operation := range listed {
		if name, ok := operation.(string); ok {
			c.operations[name] = true
		}
	}
	c.lock.Lock()
	defer c.lock.Unlock()
	if !c.isGreeted {
		c.isGreeted = true
		close(c.greeted)
	}
	return nil
}
