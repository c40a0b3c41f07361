// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distorch/distorch/model/checkpoint"
)

const demo = "../../demo/demo.safetensors"

func TestOpenSafetensors(t *testing.T) {
	f, err := checkpoint.Open(demo)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := os.ReadFile(demo)
	if err != nil {
		t.Fatal(err)
	}
	var spans []checkpoint.Span
	at := int64(0)
	for _, x := range f.Tensors() {
		raw := make([]byte, x.Size)
		if err := f.ReadAt(raw, x, 0); err != nil {
			t.Fatal(err)
		}
		if want := all[x.Offset : x.Offset+int64(x.Size)]; !bytes.Equal(raw, want) {
			t.Fatalf("tensor %s differs from the file's bytes", x.Name)
		}
		spans = append(spans, checkpoint.Span{Offset: x.Offset, Size: int64(x.Size), At: at})
		at += int64(x.Size)
	}
	arena := make([]byte, at)
	if err := checkpoint.ReadArena(t.Context(), f, arena, spans, 3); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(arena, all[int64(len(all))-at:]) {
		t.Error("the arena differs from the file's data")
	}
	spans[0].At = at
	if err := checkpoint.ReadArena(t.Context(), f, arena, spans, 3); err == nil || !strings.Contains(err.Error(), "outside the arena") {
		t.Errorf("a span outside the arena: %v", err)
	}
	if err := f.ReadPart(arena, 1, 0); err == nil {
		t.Error("a part that is not there was read")
	}
}

func TestOpenRefuses(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short.safetensors")
	if err := os.WriteFile(short, []byte{1}, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{short, filepath.Join(t.TempDir(), "missing")} {
		if _, err := checkpoint.Open(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
