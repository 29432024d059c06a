package microsandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"sort"
	"time"
)

// Image is the images in the store.
var Image images

type images struct{}

// ImageHandle is an image in the store.
type ImageHandle struct {
	fields    imageFields
	reference string
}

type imageFields struct {
	Reference    string `json:"reference"`
	Digest       string `json:"digest"`
	SizeBytes    int64  `json:"size_bytes"`
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	LayerCount   int    `json:"layer_count"`
	CreatedAt    string `json:"created_at"`
	LastUsedAt   string `json:"last_used_at"`

	Config *ImageConfig `json:"config"`
	Layers []ImageLayer `json:"layers"`
}

// ImageConfig is the configuration of an image.
type ImageConfig struct {
	Digest     string         `json:"digest"`
	Env        []string       `json:"env"`
	Cmd        []string       `json:"cmd"`
	Entrypoint []string       `json:"entrypoint"`
	WorkingDir string         `json:"working_dir"`
	User       string         `json:"user"`
	Labels     map[string]any `json:"labels"`
	StopSignal string         `json:"stop_signal"`
}

// ImageLayer is a layer of an image.
type ImageLayer struct {
	DiffID              string `json:"diff_id"`
	BlobDigest          string `json:"blob_digest"`
	MediaType           string `json:"media_type"`
	CompressedSizeBytes *int64 `json:"compressed_size_bytes"`
	ErofsSizeBytes      *int64 `json:"erofs_size_bytes"`
	Position            int    `json:"position"`
}

// ImageDetail is an image with its configuration and layers.
type ImageDetail struct {
	*ImageHandle
	Config *ImageConfig
	Layers []ImageLayer
}

// ImagePruneReport is the numbers of removed files, and the disk space that was freed.
type ImagePruneReport struct {
	ImageRefsRemoved int      `json:"image_refs_removed"`
	ManifestsRemoved int      `json:"manifests_removed"`
	LayersRemoved    int      `json:"layers_removed"`
	FsmetaRemoved    int      `json:"fsmeta_removed"`
	VMDKRemoved      int      `json:"vmdk_removed"`
	BytesReclaimed   *int64   `json:"bytes_reclaimed"`
	References       []string `json:"references"`
}

// LoadedImage is an image that was loaded.
type LoadedImage struct {
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
	ImageID   string `json:"image_id"`
	Layers    int    `json:"layers"`
	SizeBytes int64  `json:"size_bytes"`
}

// Reference returns the reference as it was given; the full form in a list.
func (h *ImageHandle) Reference() string { return h.reference }

// SizeBytes returns the size of the layers.
func (h *ImageHandle) SizeBytes() int64 { return h.fields.SizeBytes }

// ManifestDigest returns the digest of the manifest.
func (h *ImageHandle) ManifestDigest() string { return h.fields.Digest }

// Architecture returns the architecture.
func (h *ImageHandle) Architecture() string { return h.fields.Architecture }

// OS returns the operating system.
func (h *ImageHandle) OS() string { return h.fields.OS }

// LayerCount returns the number of layers.
func (h *ImageHandle) LayerCount() int { return h.fields.LayerCount }

// CreatedAt returns the time at which the image was stored.
func (h *ImageHandle) CreatedAt() time.Time { return timeOf(h.fields.CreatedAt) }

// LastUsedAt returns the time of the last creation of a sandbox from it; zero if it is not known.
func (h *ImageHandle) LastUsedAt() time.Time { return timeOf(h.fields.LastUsedAt) }

// Inspect returns the configuration and the layers.
func (h *ImageHandle) Inspect(ctx context.Context) (*ImageDetail, error) {
	return Image.Inspect(ctx, h.reference)
}

// Remove removes the image.
func (h *ImageHandle) Remove(ctx context.Context, force bool) error {
	return Image.Remove(ctx, h.reference, force)
}

// Get returns an image.
func (i images) Get(ctx context.Context, reference string) (*ImageHandle, error) {
	detail, err := i.Inspect(ctx, reference)
	if err != nil {
		return nil, err
	}
	return detail.ImageHandle, nil
}

// Inspect returns an image with its configuration and layers.
func (images) Inspect(ctx context.Context, reference string) (*ImageDetail, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	var found imageFields
	err = host.json(ctx, &found, "image", "inspect", "--format=json", "--", reference)
	if err != nil {
		return nil, err
	}
	return &ImageDetail{&ImageHandle{found, reference}, found.Config, found.Layers}, nil
}

// List returns all images, the newest first.
func (images) List(ctx context.Context) ([]*ImageHandle, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	var rows []imageFields
	if err := host.json(ctx, &rows, "image", "list", "--format=json"); err != nil {
		return nil, err
	}
	handles := make([]*ImageHandle, 0, len(rows))
	for _, row := range rows {
		handles = append(handles, &ImageHandle{row, row.Reference})
	}
	sort.SliceStable(handles, func(one, other int) bool {
		return handles[one].CreatedAt().After(handles[other].CreatedAt())
	})
	return handles, nil
}

// Remove removes an image. force removes it although sandboxes use it.
func (images) Remove(ctx context.Context, reference string, force bool) error {
	host, err := currentHost()
	if err != nil {
		return err
	}
	args := []string{"image", "remove", "--quiet"}
	if force {
		args = append(args, "--force")
	}
	_, err = host.run(ctx, append(args, "--", reference)...)
	return err
}

// Prune removes images that no sandbox uses, and files that no image needs.
func (images) Prune(ctx context.Context) (*ImagePruneReport, error) {
	return prune(ctx, "image", "prune", "--yes", "--format=json")
}

// GCLayers removes files that no image needs. It returns the number of removed layers.
func (images) GCLayers(ctx context.Context) (int, error) {
	report, err := prune(ctx, "image", "prune", "--yes", "--dangling", "--format=json")
	if err != nil {
		return 0, err
	}
	return report.LayersRemoved, nil
}

func prune(ctx context.Context, args ...string) (*ImagePruneReport, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	report := &ImagePruneReport{}
	return report, host.json(ctx, report, args...)
}

// Load loads the images of an archive of docker, podman, skopeo or buildah. tag may be empty.
func (images) Load(ctx context.Context, path, tag string) ([]LoadedImage, error) {
	host, err := currentHost()
	if err != nil {
		return nil, err
	}
	args := []string{"image", "load", "--format=json", "--input=" + absolute(path)}
	if tag != "" {
		args = append(args, "--tag="+tag)
	}
	output, err := host.run(ctx, args...)
	if err != nil {
		return nil, err
	}
	var loaded []LoadedImage
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var document json.RawMessage
		if err := decoder.Decode(&document); err == io.EOF {
			return loaded, nil
		} else if err != nil {
			return nil, fail(ErrProtocol, "'msb image load' printed no JSON")
		}
		var several []LoadedImage
		if json.Unmarshal(document, &several) != nil {
			several = make([]LoadedImage, 1)
			if err := json.Unmarshal(document, &several[0]); err != nil {
				return nil, fail(ErrProtocol, "'msb image load' printed no image")
			}
		}
		loaded = append(loaded, several...)
	}
}

// Save saves images as an archive that docker and Load read.
func (images) Save(ctx context.Context, path string, references ...string) error {
	if len(references) == 0 {
		return invalid("give at least one image")
	}
	host, err := currentHost()
	if err != nil {
		return err
	}
	args := []string{"image", "save", "--quiet", "--output=" + absolute(path), "--"}
	_, err = host.run(ctx, append(args, references...)...)
	return err
}
