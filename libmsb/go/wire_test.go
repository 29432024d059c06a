package microsandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

type frameFixtures struct {
	Frames []struct {
		What           string
		Stream         uint32
		Kind, Channel  byte
		Flags          uint16
		Payload, Bytes string
	}
	Violations []struct{ What, Bytes string }
	Hello      object
	Refused    object `json:"refused_hello"`
}

// peer plays the supervisor of a sandbox: an older one, a hostile one, one that dies.
type peer struct {
	socket net.Conn
	reader *bufio.Reader
}

func (p *peer) receive() (stream uint32, kind byte, payload []byte, err error) {
	header := make([]byte, headerBytes)
	if _, err = io.ReadFull(p.reader, header); err != nil {
		return
	}
	payload = make([]byte, binary.BigEndian.Uint32(header))
	_, err = io.ReadFull(p.reader, payload)
	return binary.BigEndian.Uint32(header[4:]), header[8], payload, err
}

func (p *peer) opened() uint32 {
	stream, _, _, _ := p.receive()
	return stream
}

func (p *peer) idle() { _, _ = io.Copy(io.Discard, p.reader) }

func (p *peer) event(stream uint32, fields object, last bool) {
	payload, _ := json.Marshal(fields)
	flags := uint16(0)
	if last {
		flags = flagEnd
	}
	_, _ = p.socket.Write(frame(stream, kindEvent, payload, 0, flags))
}

func (p *peer) data(stream uint32, data []byte) {
	_, _ = p.socket.Write(frame(stream, kindData, data, channelStdout, 0))
}

// withPeer returns a client of a peer that act plays, after the hello of the client.
func withPeer(t *testing.T, hello object, act func(*peer)) *client {
	t.Helper()
	if hello == nil {
		var fixtures frameFixtures
		fixture(t, "frames.json", &fixtures)
		hello = fixtures.Hello
	}
	// The directory of a test has its name, with which a socket's path would be too long.
	directory, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(directory, "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			socket, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer socket.Close()
				peer := &peer{socket, bufio.NewReader(socket)}
				if _, _, _, err := peer.receive(); err != nil {
					return
				}
				greeting, _ := message(0, kindHello, hello)
				_, _ = socket.Write(greeting)
				act(peer)
			}()
		}
	}()
	connections := &client{name: "peer", path: func() string { return path }}
	t.Cleanup(func() {
		connections.close()
		listener.Close()
		os.RemoveAll(directory)
	})
	return connections
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func unhex(text string) []byte {
	bytes, _ := hex.DecodeString(text)
	return bytes
}

func drain(ctx context.Context, call *call) error {
	for {
		if _, err := call.receive(ctx); err != nil {
			return err
		}
	}
}

var quiet = WithExecLog(false)

func TestFramesHaveTheBytesOfTheFixtures(t *testing.T) {
	var fixtures frameFixtures
	fixture(t, "frames.json", &fixtures)
	for _, one := range fixtures.Frames {
		made := frame(one.Stream, one.Kind, unhex(one.Payload), one.Channel, one.Flags)
		if hex.EncodeToString(made) != one.Bytes {
			t.Errorf("%s: %x", one.What, made)
		}
	}
	long := make([]byte, messageBytesMax)
	if _, err := message(3, kindOpen, object{"op": string(long)}); err == nil {
		t.Error("a message that is too long")
	}
	sent, _ := message(3, kindOpen, object{"op": string(bytes.Repeat([]byte("x"), 100_000))})
	if hex.EncodeToString(sent[:12]) != "000100000000000302000001" {
		t.Errorf("%x", sent[:12])
	}
}

func TestEachViolationEndsTheConnectionWithAProtocolError(t *testing.T) {
	var fixtures frameFixtures
	fixture(t, "frames.json", &fixtures)
	for _, violation := range fixtures.Violations {
		client := withPeer(t, nil, func(peer *peer) {
			peer.opened()
			_, _ = peer.socket.Write(unhex(violation.Bytes))
			peer.idle()
		})
		call, err := client.call(within(t), object{"op": "exec"})
		if err == nil {
			err = drain(within(t), call)
		}
		if !IsKind(err, ErrProtocol) {
			t.Errorf("%s: %v", violation.What, err)
		}
	}
}

func TestRandomBytesEndTheConnection(t *testing.T) {
	for round := 0; round < 60; round++ {
		noise := make([]byte, 1+rand.Intn(4000))
		_, _ = rand.Read(noise)
		client := withPeer(t, nil, func(peer *peer) {
			peer.opened()
			_, _ = peer.socket.Write(noise)
		})
		call, err := client.call(within(t), object{"op": "exec"})
		if err == nil {
			err = drain(within(t), call)
		}
		if !IsKind(err, ErrProtocol) && !IsKind(err, ErrSandboxNotRunning) {
			t.Error(err)
		}
	}
}

func TestAnOlderPeerRefusesSingleCalls(t *testing.T) {
	client := withPeer(t, nil, func(peer *peer) {
		stream := peer.opened()
		peer.event(stream, object{"type": "started", "pid": 5}, false)
		peer.event(stream, object{"type": "exited", "code": 0}, true)
		peer.idle()
	})
	ctx := within(t)
	var refusal *Error
	_, err := client.call(ctx, object{"op": "connect"})
	if !errors.As(err, &refusal) || refusal.Fields[0] != "connect" {
		t.Error(err)
	}
	_, err = runCommand(ctx, client, "cmd", nil, nil)
	if !IsKind(err, ErrUnsupportedOperation) {
		t.Error(err)
	}
	output, err := runCommand(ctx, client, "cmd", nil, []ExecOption{quiet})
	if err != nil || !output.Success() {
		t.Error(err)
	}
}

func TestAPeerOfAnotherVersionIsRefused(t *testing.T) {
	var fixtures frameFixtures
	fixture(t, "frames.json", &fixtures)
	client := withPeer(t, fixtures.Refused, (*peer).idle)
	if _, err := client.call(within(t), object{"op": "exec"}); !IsKind(err, ErrProtocol) {
		t.Error(err)
	}
}

func TestASlowReaderHoldsOneWindowAndThePeerWaits(t *testing.T) {
	const total = 20 << 20
	var sent int64
	client := withPeer(t, nil, func(peer *peer) {
		stream := peer.opened()
		peer.event(stream, object{"type": "started", "pid": 1}, false)
		credit := window
		for atomic.LoadInt64(&sent) < total {
			for credit < frameBytesMax {
				_, kind, payload, err := peer.receive()
				if err != nil {
					return
				}
				if kind == kindCredit {
					credit += int(binary.BigEndian.Uint32(payload))
				}
			}
			peer.data(stream, make([]byte, frameBytesMax))
			credit -= frameBytesMax
			atomic.AddInt64(&sent, frameBytesMax)
		}
		peer.event(stream, object{"type": "exited", "code": 0}, true)
		peer.idle()
	})
	ctx := within(t)
	handle, err := startCommand(ctx, client, "cmd", nil, []ExecOption{quiet})
	if err != nil {
		t.Fatal(err)
	}
	for atomic.LoadInt64(&sent) < window {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	if sent := atomic.LoadInt64(&sent); sent != window {
		t.Errorf("%d bytes without a reader", sent)
	}
	received := int64(0)
	for {
		event, err := handle.Recv(ctx)
		if err != nil {
			t.Fatal(err)
		}
		received += int64(len(event.Data))
		if atomic.LoadInt64(&sent)-received > 2*window {
			t.Fatal("more than two windows ahead")
		}
		if event.Kind == ExecEventDone {
			break
		}
	}
	if received != total {
		t.Errorf("%d bytes", received)
	}
}

func TestMoreDataThanCreditEndsTheConnection(t *testing.T) {
	client := withPeer(t, nil, func(peer *peer) {
		stream := peer.opened()
		for count := 0; count < 5; count++ {
			peer.data(stream, make([]byte, frameBytesMax))
		}
		peer.idle()
	})
	call, err := client.call(within(t), object{"op": "exec"})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-call.done:
	case <-within(t).Done():
		t.Error("the connection goes on")
	}
}

func TestADyingPeerEndsAllCallsAtOnceWithTheirOutput(t *testing.T) {
	client := withPeer(t, nil, func(peer *peer) {
		for count := 0; count < 3; count++ {
			stream := peer.opened()
			peer.event(stream, object{"type": "started", "pid": 1}, false)
			peer.data(stream, []byte("partial"))
		}
	})
	results := make(chan error, 3)
	for count := 0; count < 3; count++ {
		go func() {
			options := []ExecOption{quiet, WithExecTimeout(time.Minute)}
			_, err := runCommand(within(t), client, "cmd", nil, options)
			results <- err
		}()
	}
	for count := 0; count < 3; count++ {
		var found *Error
		err := <-results
		if !errors.As(err, &found) || !IsKind(err, ErrSandboxNotRunning) ||
			string(found.Stdout) != "partial" {
			t.Errorf("%v", err)
		}
	}
}

func TestATimeoutKillsAndADeafPeerHoldsNoCaller(t *testing.T) {
	seen := make(chan string, 1)
	client := withPeer(t, nil, func(peer *peer) {
		stream := peer.opened()
		peer.event(stream, object{"type": "started", "pid": 1}, false)
		peer.data(stream, []byte("before"))
		_, _, payload, _ := peer.receive()
		seen <- string(payload)
		peer.idle()
	})
	options := []ExecOption{quiet, WithExecTimeout(50 * time.Millisecond)}
	_, err := runCommand(within(t), client, "cmd", nil, options)
	var found *Error
	if !errors.As(err, &found) || found.Kind != ErrExecTimeout ||
		string(found.Stdout) != "before" || found.Timeout != 50*time.Millisecond {
		t.Errorf("%v", err)
	}
	if payload := <-seen; payload != `{"signal":9,"type":"signal"}` {
		t.Error(payload)
	}
}

func TestACancellationClosesTheCallAndWaitsForItsEndInEachState(t *testing.T) {
	for _, isStarted := range []bool{true, false} {
		var ended int32
		ctx, cancel := context.WithCancel(context.Background())
		client := withPeer(t, nil, func(peer *peer) {
			stream := peer.opened()
			if isStarted {
				peer.event(stream, object{"type": "started", "pid": 1}, false)
			}
			time.AfterFunc(20*time.Millisecond, cancel)
			for {
				_, kind, _, err := peer.receive()
				if err != nil {
					return
				}
				if kind == kindClose {
					break
				}
			}
			time.Sleep(50 * time.Millisecond)
			atomic.StoreInt32(&ended, 1)
			peer.event(stream, object{"type": "exited", "signal": 9}, true)
			peer.idle()
		})
		_, err := runCommand(ctx, client, "cmd", nil, []ExecOption{quiet})
		if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrCancelled) {
			t.Errorf("%v", err)
		}
		if atomic.LoadInt32(&ended) != 1 {
			t.Errorf("the call did not wait, started: %v", isStarted)
		}
	}
}

func TestACommandThatWasNotStartedHasAReason(t *testing.T) {
	client := withPeer(t, nil, func(peer *peer) {
		failed := object{"type": "failed", "kind": "not_found", "message": "no such program"}
		peer.event(peer.opened(), failed, true)
		peer.idle()
	})
	_, err := runCommand(within(t), client, "cmd", nil, []ExecOption{quiet})
	var found *Error
	if !errors.As(err, &found) || found.Kind != ErrExecFailed || found.Failure.Errno != 2 {
		t.Errorf("%v", err)
	}
}

func TestHostileAnswersOfFilesAreErrors(t *testing.T) {
	for _, answer := range []string{
		"ffffffff65", "0000000165", "0000000e69000000020000000548ffffffff00",
		"000000096900000001ffffffff",
	} {
		client := withPeer(t, nil, func(peer *peer) {
			stream := peer.opened()
			peer.event(stream, object{"type": "started", "pid": 1}, false)
			peer.opened()
			peer.opened()
			peer.data(stream, unhex("000000050200000003"))
			peer.opened()
			peer.data(stream, unhex(answer))
			peer.event(stream, object{"type": "exited", "code": 0}, true)
			peer.idle()
		})
		session, err := openSession(within(t), client, "")
		if err == nil {
			_, err = session.stat(within(t), "/x", true)
		}
		if !IsKind(err, ErrProtocol) && !IsKind(err, ErrFilesystem) {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

func TestUnsupportedFieldsAreReadFromAMessage(t *testing.T) {
	found := fieldsOf("unsupported fields: network.tls (TLS (all), x), mounts.0 (why)")
	if len(found) != 2 || found[0] != "network.tls" || found[1] != "mounts.0" {
		t.Error(found)
	}
}
