package microsandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrorKind is the kind of an Error. It is an error itself, for errors.Is.
type ErrorKind string

// Kinds of errors.
const (
	ErrUnknown                ErrorKind = "unknown"
	ErrSandboxNotFound        ErrorKind = "sandbox not found"
	ErrSandboxNotRunning      ErrorKind = "sandbox not running"
	ErrSandboxAlreadyExists   ErrorKind = "sandbox already exists"
	ErrSandboxStillRunning    ErrorKind = "sandbox still running"
	ErrBootStart              ErrorKind = "sandbox did not boot"
	ErrVolumeNotFound         ErrorKind = "volume not found"
	ErrVolumeAlreadyExists    ErrorKind = "volume already exists"
	ErrVolumeInUse            ErrorKind = "volume in use"
	ErrExecTimeout            ErrorKind = "command timed out"
	ErrExecFailed             ErrorKind = "command not started"
	ErrFilesystem             ErrorKind = "filesystem error"
	ErrPathNotFound           ErrorKind = "path not found"
	ErrPathEscape             ErrorKind = "path leaves the volume"
	ErrImageNotFound          ErrorKind = "image not found"
	ErrImageInUse             ErrorKind = "image in use"
	ErrImagePullFailed        ErrorKind = "image pull failed"
	ErrSnapshotNotFound       ErrorKind = "snapshot not found"
	ErrSnapshotAlreadyExists  ErrorKind = "snapshot already exists"
	ErrSnapshotSandboxRunning ErrorKind = "snapshot of a running sandbox"
	ErrSnapshotImageMissing   ErrorKind = "snapshot image missing"
	ErrSnapshotIntegrity      ErrorKind = "snapshot damaged"
	ErrPatchFailed            ErrorKind = "patch failed"
	ErrNetworkPolicy          ErrorKind = "invalid network policy"
	ErrSecretViolation        ErrorKind = "secret violation"
	ErrTLS                    ErrorKind = "TLS error"
	ErrIO                     ErrorKind = "I/O error"
	ErrInvalidConfig          ErrorKind = "invalid configuration"
	ErrInvalidArgument        ErrorKind = "invalid argument"
	ErrInvalidHandle          ErrorKind = "invalid handle"
	ErrBufferTooSmall         ErrorKind = "buffer too small"
	ErrCancelled              ErrorKind = "cancelled"
	ErrLibraryNotLoaded       ErrorKind = "library not loaded"
	ErrProgramNotFound        ErrorKind = "program not found"
	ErrUnsupportedOperation   ErrorKind = "unsupported operation"
	ErrMetricsDisabled        ErrorKind = "metrics disabled"
	ErrMissedLogs             ErrorKind = "missed logs"
	ErrProtocol               ErrorKind = "protocol error"
	ErrInternal               ErrorKind = "internal error"
)

// Error returns the kind in words.
func (k ErrorKind) Error() string { return string(k) }

// ExecFailure is the reason why a command was not started.
type ExecFailure struct {
	// Kind is not_found, permission_denied, not_executable, bad_cwd, bad_args, user_not_found,
	// resource_limit, paused or other.
	Kind string
	// Errno is the error number of the guest's kernel, or 0.
	Errno     int
	ErrnoName string
	Message   string
	// Path is the command.
	Path string
}

// Error is an error of msb.
type Error struct {
	Kind    ErrorKind
	Message string
	// Hint is the next step, if one is known.
	Hint  string
	Cause error
	// Fields are the unsupported operations, arguments or fields of ErrUnsupportedOperation.
	Fields []string
	// Failure is the reason of ErrExecFailed.
	Failure *ExecFailure
	// Stdout and Stderr are the output until ErrExecTimeout, ErrSandboxNotRunning or ErrCancelled.
	Stdout, Stderr []byte
	// Timeout is the time of ErrExecTimeout.
	Timeout time.Duration
}

// Error returns the message and the hint.
func (e *Error) Error() string {
	if e.Hint != "" {
		return e.Message + " (" + e.Hint + ")"
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is returns whether target is the kind of the error.
func (e *Error) Is(target error) bool {
	kind, ok := target.(ErrorKind)
	if !ok {
		return false
	}
	return kind == e.Kind || kind == ErrFilesystem && e.Kind == ErrPathNotFound
}

// IsKind returns whether an error is of a kind.
func IsKind(err error, kind ErrorKind) bool { return errors.Is(err, kind) }

func fail(kind ErrorKind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) *Error { return fail(ErrInvalidArgument, format, args...) }

// cancelled returns the error of a context that has ended.
func cancelled(ctx context.Context) *Error {
	cause := ctx.Err()
	return &Error{Kind: ErrCancelled, Message: "cancelled: " + cause.Error(), Cause: cause}
}

func unsupported(fields ...string) *Error {
	err := fail(ErrUnsupportedOperation, "not supported: %s", strings.Join(fields, ", "))
	err.Fields = fields
	return err
}
