package microsandbox

import (
	"context"
	"encoding/base64"
	"io"
	"strings"
	"time"
)

// LogSource is the source of a log entry: stdout, stderr, output, system, kernel, or all for a reader.
type LogSource string

// LogOptions select entries of a log. Zero values select everything.
type LogOptions struct {
	// Tail is the number of last entries; 0 is all.
	Tail         int
	Since, Until time.Time
	Sources      []LogSource
	job          string
}

// LogStreamOptions select entries of a log, and whether to wait for more.
type LogStreamOptions struct {
	Since, Until time.Time
	Sources      []LogSource
	// FromCursor is the position after which the stream starts. It excludes Since.
	FromCursor string
	Follow     bool
	job        string
}

// LogEntry is an entry of a log. The entries of one source, joined, are its output byte for byte.
type LogEntry struct {
	// Timestamp is zero for the kernel and the supervisor process.
	Timestamp time.Time
	Source    LogSource
	// SessionID is the identifier of the job or command; empty for the main command.
	SessionID string
	// Cursor is the position after the entry.
	Cursor string
	Data   []byte
}

// Text returns the data as text.
func (e LogEntry) Text() string { return string(e.Data) }

// LogStream is a stream of log entries.
type LogStream struct{ reader *lineReader }

func openLogs(
	ctx context.Context, host *host, name string, options LogStreamOptions,
) (*LogStream, error) {
	if !options.Since.IsZero() && options.FromCursor != "" {
		return nil, invalid("give one of Since and FromCursor")
	}
	args := []string{"logs", "--format=json", "--cursors"}
	if len(options.Sources) > 0 {
		var words []string
		for _, source := range options.Sources {
			words = append(words, string(source))
		}
		args = append(args, "--source="+strings.Join(words, ","))
	}
	for _, bound := range []struct {
		name string
		time time.Time
	}{{"since", options.Since}, {"until", options.Until}} {
		if !bound.time.IsZero() {
			text := bound.time.UTC().Format("2006-01-02T15:04:05.000000Z")
			args = append(args, "--"+bound.name+"="+text)
		}
	}
	if options.FromCursor != "" {
		args = append(args, "--after-cursor="+options.FromCursor)
	}
	if options.job != "" {
		args = append(args, "--job="+options.job)
	}
	if options.Follow {
		args = append(args, "--follow")
	}
	reader, err := host.lines(ctx, append(args, "--", name)...)
	if err != nil {
		return nil, err
	}
	return &LogStream{reader}, nil
}

// Recv returns the next entry; io.EOF at the end.
func (s *LogStream) Recv(context.Context) (*LogEntry, error) {
	var line struct {
		T, S, D, ID, E, Cursor string
	}
	err := s.reader.next(&line)
	if found, ok := err.(*Error); ok {
		if strings.Contains(found.Error(), "rotated") || strings.Contains(found.Hint, "after-cursor") {
			found.Kind = ErrMissedLogs
		}
	}
	if err != nil {
		return nil, err
	}
	entry := &LogEntry{
		Timestamp: timeOf(line.T), Source: LogSource(line.S), SessionID: line.ID,
		Cursor: line.Cursor, Data: []byte(line.D),
	}
	if line.E == "b64" {
		if entry.Data, err = base64.StdEncoding.DecodeString(line.D); err != nil {
			return nil, fail(ErrProtocol, "an entry of the log is no base64: %v", err)
		}
	}
	return entry, nil
}

// Close ends the stream.
func (s *LogStream) Close() error {
	s.reader.close()
	return nil
}

func readLogs(
	ctx context.Context, host *host, name string, options LogOptions,
) ([]LogEntry, error) {
	stream, err := openLogs(ctx, host, name, LogStreamOptions{
		Since: options.Since, Until: options.Until, Sources: options.Sources, job: options.job,
	})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var entries []LogEntry
	for {
		entry, err := stream.Recv(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, *entry)
		if extra := len(entries) - options.Tail; options.Tail > 0 && extra > options.Tail+1000 {
			entries = append([]LogEntry{}, entries[extra:]...)
		}
	}
	if extra := len(entries) - options.Tail; options.Tail > 0 && extra > 0 {
		entries = entries[extra:]
	}
	return entries, nil
}
