package microsandbox

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Snapshot is the snapshots: copies of the disk of a sandbox at one moment.
var Snapshot snapshots

type snapshots struct{}

type snapshotFields struct {
	Path                string            `json:"artifact_path"`
	Digest              string            `json:"digest"`
	Name                string            `json:"name"`
	SizeBytes           uint64            `json:"size_bytes"`
	ImageRef            string            `json:"image_ref"`
	ImageManifestDigest string            `json:"image_manifest_digest"`
	Format              string            `json:"format"`
	Fstype              string            `json:"fstype"`
	Parent              string            `json:"parent_digest"`
	CreatedAt           string            `json:"created_at"`
	Labels              map[string]string `json:"labels"`
	SourceSandbox       string            `json:"source_sandbox"`
	Verification        string            `json:"verification"`
}

// SnapshotArtifact is a snapshot of the disk of a sandbox.
type SnapshotArtifact struct{ fields snapshotFields }

// SnapshotHandle is an entry of the index of snapshots.
type SnapshotHandle struct{ fields snapshotFields }

// SnapshotCreateOptions are a name or a path, and what else a snapshot has.
type SnapshotCreateOptions struct {
	Name, Path string
	Labels     map[string]string
	// Force replaces a snapshot of that name.
	Force           bool
	RecordIntegrity bool
}

// SnapshotExportOptions are what an archive has besides the snapshot.
type SnapshotExportOptions struct{ WithParents, WithImage, PlainTar bool }

// Path returns the directory of the snapshot.
func (s *SnapshotArtifact) Path() string { return s.fields.Path }

// Digest returns the digest of the manifest.
func (s *SnapshotArtifact) Digest() string { return s.fields.Digest }

// SizeBytes returns the size of the disk.
func (s *SnapshotArtifact) SizeBytes() uint64 { return s.fields.SizeBytes }

// ImageRef returns the reference of the image.
func (s *SnapshotArtifact) ImageRef() string { return s.fields.ImageRef }

// ImageManifestDigest returns the digest of the image.
func (s *SnapshotArtifact) ImageManifestDigest() string { return s.fields.ImageManifestDigest }

// Format returns the format of the disk.
func (s *SnapshotArtifact) Format() string { return s.fields.Format }

// Fstype returns the file system of the disk.
func (s *SnapshotArtifact) Fstype() string { return s.fields.Fstype }

// Parent returns the digest of the parent, if there is one.
func (s *SnapshotArtifact) Parent() string { return s.fields.Parent }

// CreatedAt returns the time of the creation.
func (s *SnapshotArtifact) CreatedAt() time.Time { return timeOf(s.fields.CreatedAt) }

// Labels returns the labels.
func (s *SnapshotArtifact) Labels() map[string]string { return s.fields.Labels }

// SourceSandbox returns the name of the sandbox.
func (s *SnapshotArtifact) SourceSandbox() string { return s.fields.SourceSandbox }

// Verify compares the disk with its recorded digest. It returns whether there is one.
func (s *SnapshotArtifact) Verify(ctx context.Context) (bool, error) {
	found, err := inspectSnapshot(ctx, s.fields.Path, "--verify")
	return err == nil && found.Verification == "verified", err
}

// Digest returns the digest of the manifest.
func (h *SnapshotHandle) Digest() string { return h.fields.Digest }

// Name returns the name, if there is one.
func (h *SnapshotHandle) Name() string { return h.fields.Name }

// ParentDigest returns the digest of the parent, if there is one.
func (h *SnapshotHandle) ParentDigest() string { return h.fields.Parent }

// ImageRef returns the reference of the image.
func (h *SnapshotHandle) ImageRef() string { return h.fields.ImageRef }

// Format returns the format of the disk.
func (h *SnapshotHandle) Format() string { return h.fields.Format }

// SizeBytes returns the size of the disk.
func (h *SnapshotHandle) SizeBytes() uint64 { return h.fields.SizeBytes }

// CreatedAt returns the time of the creation.
func (h *SnapshotHandle) CreatedAt() time.Time { return timeOf(h.fields.CreatedAt) }

// Path returns the directory of the snapshot.
func (h *SnapshotHandle) Path() string { return h.fields.Path }

// Open opens the snapshot.
func (h *SnapshotHandle) Open(ctx context.Context) (*SnapshotArtifact, error) {
	return Snapshot.Open(ctx, h.fields.Path)
}

// Remove removes the snapshot.
func (h *SnapshotHandle) Remove(ctx context.Context, force bool) error {
	return Snapshot.Remove(ctx, h.fields.Path, force)
}

// Create creates a snapshot of a sandbox. The guest of a running sandbox is frozen for the copy.
func (s snapshots) Create(
	ctx context.Context, source string, options SnapshotCreateOptions,
) (*SnapshotArtifact, error) {
	if (options.Name == "") == (options.Path == "") {
		return nil, invalid("give exactly one of Name and Path")
	}
	place := options.Name
	if options.Path != "" {
		// A path has a slash, which tells it from a name.
		place = absolute(options.Path)
	}
	args := []string{"snapshot", "create", "--quiet", "--from=" + source}
	for name, value := range options.Labels {
		args = append(args, "--label="+name+"="+value)
	}
	if options.Force {
		args = append(args, "--force")
	}
	if options.RecordIntegrity {
		args = append(args, "--integrity")
	}
	if _, err := runHost(ctx, append(args, "--", place)...); err != nil {
		return nil, err
	}
	return s.Open(ctx, place)
}

func runHost(ctx context.Context, args ...string) ([]byte, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	return host.run(ctx, args...)
}

func inspectSnapshot(ctx context.Context, name string, options ...string) (snapshotFields, error) {
	var found snapshotFields
	args := append([]string{"snapshot", "inspect", "--format=json"}, options...)
	output, err := runHost(ctx, append(args, "--", name)...)
	if err == nil {
		err = parse(args, output, &found)
	}
	return found, err
}

// Open opens a snapshot by its name, its digest, or a path that contains a slash.
func (snapshots) Open(ctx context.Context, name string) (*SnapshotArtifact, error) {
	found, err := inspectSnapshot(ctx, name)
	if err != nil {
		return nil, err
	}
	return &SnapshotArtifact{found}, nil
}

// Get returns an entry of the index.
func (snapshots) Get(ctx context.Context, name string) (*SnapshotHandle, error) {
	found, err := inspectSnapshot(ctx, name)
	if err != nil {
		return nil, err
	}
	return &SnapshotHandle{found}, nil
}

// List returns the index, the newest snapshot first.
func (snapshots) List(ctx context.Context) ([]*SnapshotHandle, error) {
	args := []string{"snapshot", "list", "--format=json"}
	output, err := runHost(ctx, args...)
	if err != nil {
		return nil, err
	}
	var rows []snapshotFields
	if err := parse(args, output, &rows); err != nil {
		return nil, err
	}
	var handles []*SnapshotHandle
	for _, row := range rows {
		handles = append(handles, &SnapshotHandle{row})
	}
	return handles, nil
}

// ListDir returns the snapshots in a directory, sorted by name. They need not be in the index.
func (s snapshots) ListDir(ctx context.Context, directory string) ([]*SnapshotArtifact, error) {
	entries, err := os.ReadDir(directory)
	if err != nil {
		return nil, &Error{Kind: ErrIO, Message: err.Error(), Cause: err}
	}
	var found []*SnapshotArtifact
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		snapshot, err := s.Open(ctx, filepath.Join(absolute(directory), entry.Name()))
		if IsKind(err, ErrSnapshotNotFound) {
			// Another directory, or a snapshot that was removed meanwhile.
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, snapshot)
	}
	return found, nil
}

// Remove removes a snapshot; with force also the parent of others, or a damaged one.
func (snapshots) Remove(ctx context.Context, name string, force bool) error {
	args := []string{"snapshot", "remove", "--quiet"}
	if force {
		args = append(args, "--force")
	}
	_, err := runHost(ctx, append(args, "--", name)...)
	return err
}

// Reindex adds the snapshots in a directory to the index. It returns their number.
func (snapshots) Reindex(ctx context.Context, directory string) (int, error) {
	output, err := runHost(ctx, "snapshot", "reindex", "--", absolute(directory))
	if err != nil {
		return 0, err
	}
	words := strings.Fields(string(output))
	if len(words) > 1 {
		if count, err := strconv.Atoi(words[1]); err == nil {
			return count, nil
		}
	}
	return 0, fail(ErrProtocol, "'msb snapshot reindex' printed no number")
}

// Export writes a snapshot as an archive, which appears when it is complete.
func (snapshots) Export(
	ctx context.Context, name, out string, options SnapshotExportOptions,
) error {
	args := []string{"snapshot", "export"}
	for _, option := range []struct {
		word  string
		given bool
	}{
		{"--with-parents", options.WithParents}, {"--with-image", options.WithImage},
		{"--plain-tar", options.PlainTar},
	} {
		if option.given {
			args = append(args, option.word)
		}
	}
	_, err := runHost(ctx, append(args, "--", name, absolute(out))...)
	return err
}

// Import reads the snapshots of an archive. It returns the last one, which has the others as parents.
// dest may be empty.
func (s snapshots) Import(ctx context.Context, archive, dest string) (*SnapshotHandle, error) {
	args := []string{"snapshot", "import", "--", absolute(archive)}
	if dest != "" {
		args = append(args, absolute(dest))
	}
	output, err := runHost(ctx, args...)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	return s.Get(ctx, lines[len(lines)-1])
}
