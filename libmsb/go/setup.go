package microsandbox

import (
	"context"
	"strings"
)

const sdkVersion = "0.1.0"

// SetupOption is an option of EnsureInstalled.
type SetupOption func()

// WithSkipDownload downloads nothing, as always.
func WithSkipDownload() SetupOption { return func() {} }

// EnsureInstalled checks that the programs are installed. msb comes from its package, not from here.
func EnsureInstalled(_ context.Context, _ ...SetupOption) error {
	_, err := findProgram()
	return err
}

// IsInstalled returns whether the programs are installed.
func IsInstalled() bool { return EnsureInstalled(context.Background()) == nil }

// SDKVersion returns the version of this package.
func SDKVersion() string { return sdkVersion }

// RuntimeVersion returns the version of the programs.
func RuntimeVersion() (string, error) {
	output, err := runHost(context.Background(), "--version")
	words := strings.Fields(string(output))
	if err != nil || len(words) == 0 {
		return "", err
	}
	return words[len(words)-1], nil
}

// AgentClient is the raw agent client of microsandbox, which msb does not serve: its frames and CBOR
// bodies are those of another guest protocol.
type AgentClient struct{}

// ConnectAgentSandbox is not supported.
func ConnectAgentSandbox(context.Context, string) (*AgentClient, error) {
	return nil, unsupported("agent")
}

// ConnectAgentPath is not supported.
func ConnectAgentPath(context.Context, string) (*AgentClient, error) {
	return nil, unsupported("agent")
}
