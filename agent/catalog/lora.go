// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/graph/wire"
	"github.com/distorch/distorch/model/lora"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

func looksLikeLoRA(f checkpoint.File) bool {
	if listsPatches(f) {
		return true
	}
	var names []string
	for _, t := range f.Tensors() {
		names = append(names, t.Name)
	}
	return lora.Looks(names)
}

// listsPatches says whether a file is as clients send LoRAs: its id is the
// SHA-256 by which they name it.
func listsPatches(f checkpoint.File) bool {
	_, ok := f.Metadata()[lora.PatchesKey]
	return ok
}

func describeLoRA(f checkpoint.File) (*pb.ModelRecord, error) {
	identify := f.QuickID
	if listsPatches(f) {
		identify = func() (string, error) { return digest(f.Path()) }
	}
	id, err := identify()
	if err != nil {
		return nil, err
	}
	r, err := wire.LoRARecord(id, filepath.Base(f.Path()), f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path(), err)
	}
	return r, nil
}

// digest is a file's SHA-256 in hexadecimal digits.
func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // was only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
