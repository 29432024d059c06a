package microsandbox

import (
	"encoding/binary"
	"encoding/json"
	"strings"
	"time"
)

// Limits and kinds of the wire protocol msb-wire(5).
const (
	wireVersion     = 1
	frameBytesMax   = 65536
	dataBytes       = 65524
	messageBytesMax = 4 << 20
	window          = 262144
	creditBytes     = 131048
	incompleteMax   = 64
	helloTime       = 10 * time.Second
	addressBytesMax = 107
	headerBytes     = 12

	kindHello   = 1
	kindOpen    = 2
	kindData    = 3
	kindCredit  = 4
	kindControl = 5
	kindEvent   = 6
	kindClose   = 7

	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2

	flagMore = 1
	flagEnd  = 2
)

// frame returns a frame.
func frame(stream uint32, kind byte, payload []byte, channel byte, flags uint16) []byte {
	bytes := make([]byte, headerBytes, headerBytes+len(payload))
	binary.BigEndian.PutUint32(bytes, uint32(len(payload)))
	binary.BigEndian.PutUint32(bytes[4:], stream)
	bytes[8], bytes[9] = kind, channel
	binary.BigEndian.PutUint16(bytes[10:], flags)
	return append(bytes, payload...)
}

// message returns the frames of a JSON message.
func message(stream uint32, kind byte, value any) ([]byte, error) {
	payload, err := json.Marshal(value)
	if err != nil {
		return nil, invalid("the request is no JSON: %v", err)
	}
	if len(payload) > messageBytesMax {
		return nil, invalid("the request has %d bytes; %d are allowed", len(payload), messageBytesMax)
	}
	var frames []byte
	for {
		piece, flags := payload, uint16(0)
		if len(piece) > frameBytesMax {
			piece, flags = payload[:frameBytesMax], flagMore
		}
		payload = payload[len(piece):]
		frames = append(frames, frame(stream, kind, piece, 0, flags)...)
		if flags == 0 {
			return frames, nil
		}
	}
}

// unixTexts checks Unix strings of a request.
func unixTexts(values ...string) error {
	for _, value := range values {
		if strings.ContainsRune(value, 0) {
			return invalid("%q contains a NUL", value)
		}
	}
	return nil
}
