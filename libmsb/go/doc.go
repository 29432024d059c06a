// Package microsandbox is the SDK of msb for Go: sandboxes in microVMs.
//
//	sandbox, err := microsandbox.CreateSandbox(ctx, "hello", microsandbox.WithImage("python:3.12-slim"))
//	if err != nil {
//		return err
//	}
//	defer sandbox.Discard(ctx)
//	output, err := sandbox.Exec(ctx, "python3", []string{"-c", "print(6 * 7)"})
//
// The package needs the programs of msb on PATH, or MSB_PATH, and only the standard library. A context
// that ends kills the command in the guest, or ends the program on the host; the error is ErrCancelled
// and wraps that of the context.
package microsandbox
