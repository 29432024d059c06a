package microsandbox

import (
	"context"
	"io"
	"time"
)

// Metrics is a sample of the resource usage of a sandbox. Unknown values are 0, and in Unknown.
type Metrics struct {
	CPUPercent       float64
	MemoryBytes      uint64
	MemoryLimitBytes uint64
	DiskReadBytes    uint64
	DiskWriteBytes   uint64
	NetRxBytes       uint64
	NetTxBytes       uint64
	Uptime           time.Duration
	Timestamp        time.Time
	Unknown          []string
}

func metricsOf(sample object) *Metrics {
	metrics := &Metrics{Timestamp: timeOf(sample.text("timestamp"))}
	for _, count := range []struct {
		name string
		into *uint64
	}{
		{"memory_bytes", &metrics.MemoryBytes}, {"memory_limit_bytes", &metrics.MemoryLimitBytes},
		{"disk_read_bytes", &metrics.DiskReadBytes}, {"disk_write_bytes", &metrics.DiskWriteBytes},
		{"net_rx_bytes", &metrics.NetRxBytes}, {"net_tx_bytes", &metrics.NetTxBytes},
	} {
		if sample[count.name] == nil {
			metrics.Unknown = append(metrics.Unknown, count.name)
		}
		*count.into = uint64(sample.int(count.name))
	}
	percent, ok := sample["cpu_percent"].(float64)
	if !ok {
		metrics.Unknown = append(metrics.Unknown, "cpu_percent")
	}
	metrics.CPUPercent = percent
	seconds, _ := sample["uptime_secs"].(float64)
	metrics.Uptime = time.Duration(seconds * float64(time.Second))
	return metrics
}

func readMetrics(ctx context.Context, host *host, name string) (*Metrics, error) {
	var sample object
	err := host.json(ctx, &sample, "metrics", "show", "--format=json", "--", name)
	if err != nil {
		return nil, err
	}
	return metricsOf(sample), nil
}

// AllSandboxMetrics returns the last sample of each running sandbox, by its name.
func AllSandboxMetrics(ctx context.Context) (map[string]*Metrics, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	reader, err := host.lines(ctx, "metrics", "jsonl", "--count=1")
	if err != nil {
		return nil, err
	}
	defer reader.close()
	found := map[string]*Metrics{}
	for {
		var line object
		err := reader.next(&line)
		if err == io.EOF {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		if line.text("type") == "sample" {
			found[line.text("name")] = metricsOf(line)
		}
	}
}

// MetricsStream is samples of a sandbox at an interval.
type MetricsStream struct{ reader *lineReader }

func openMetrics(
	ctx context.Context, host *host, name string, interval time.Duration,
) (*MetricsStream, error) {
	if interval <= 0 {
		return nil, invalid("the interval is not positive")
	}
	// The first call reports a sandbox without samples by its error.
	if _, err := readMetrics(ctx, host, name); err != nil {
		return nil, err
	}
	every := "--interval=" + duration(interval)
	reader, err := host.lines(ctx, "metrics", "show", "--watch", every, "--format=json", "--", name)
	if err != nil {
		return nil, err
	}
	return &MetricsStream{reader}, nil
}

// Recv returns the next sample; io.EOF at the end of the sandbox.
func (s *MetricsStream) Recv(context.Context) (*Metrics, error) {
	for {
		var line object
		if err := s.reader.next(&line); err != nil {
			return nil, err
		}
		switch line.text("type") {
		case "exit":
			s.reader.close()
			return nil, io.EOF
		case "", "sample":
			return metricsOf(line), nil
		}
	}
}

// Close ends the stream.
func (s *MetricsStream) Close() error {
	s.reader.close()
	return nil
}
