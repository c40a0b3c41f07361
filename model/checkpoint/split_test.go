// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package checkpoint_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/checkpoint"
	"github.com/distorch/distorch/model/gguf"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// writeGGUF writes a file with one row of 32 Q8_0 elements per name, all of
// code fill; split.* keys where parts is over 1.
func writeGGUF(t *testing.T, path string, part, parts int, fill byte, names ...string) {
	t.Helper()
	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			if s, ok := v.(string); ok {
				_ = binary.Write(&b, binary.LittleEndian, uint64(len(s)))
				b.WriteString(s)
				continue
			}
			_ = binary.Write(&b, binary.LittleEndian, v)
		}
	}
	b.WriteString("GGUF")
	pairs := uint64(1)
	if parts > 1 {
		pairs = 3
	}
	put(uint32(3), uint64(len(names)), pairs, "general.architecture", uint32(8), fmt.Sprintf("part %d", part))
	if parts > 1 {
		put("split.no", uint32(2), uint16(part), "split.count", uint32(2), uint16(parts))
	}
	for i, name := range names {
		put(name, uint32(2), uint64(32), uint64(1), uint32(8), uint64(64*i))
	}
	for b.Len()%32 != 0 {
		b.WriteByte(0)
	}
	for range names {
		put([2]byte{0, 0x3c}) // 1 in f16
		put(bytes.Repeat([]byte{fill}, 32), make([]byte, 30))
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, path string) checkpoint.File {
	t.Helper()
	f, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestOpenGGUF(t *testing.T) {
	path := filepath.Join(t.TempDir(), "model.bin") // the name says nothing
	writeGGUF(t, path, 0, 1, 7, "a", "b")
	f := open(t, path)
	b, ok := f.Lookup("b")
	if !ok || b.DType != tensor.Q8_0 || !b.Shape.Equal(tensor.Shape{1, 32}) || b.Size != 34 || b.Part != 0 {
		t.Errorf("b is %+v, %v", b, ok)
	}
	raw, again := make([]byte, 34), make([]byte, 34)
	if err := errors.Join(f.ReadAt(raw, b, 0), f.ReadPart(again, 0, b.Offset)); err != nil || raw[1] != 0x3c || raw[33] != 7 || !bytes.Equal(raw, again) {
		t.Errorf("bytes %v and %v, %v", raw, again, err)
	}
	if f.ReadAt(raw, b, 1) == nil || f.ReadAt(raw, b, -1) == nil || f.ReadPart(raw, 0, -1) == nil || f.ReadPart(raw, 0, 1<<40) == nil {
		t.Error("bytes outside were read")
	}
	if d := cmp.Diff(map[string]string{"general.architecture": "part 0"}, f.Metadata()); d != "" {
		t.Error(d)
	}
}

func TestSplitGGUF(t *testing.T) {
	dir := t.TempDir()
	at := func(i int) string { return filepath.Join(dir, fmt.Sprintf("m-%05d-of-00003.gguf", i)) }
	writeGGUF(t, at(1), 0, 3, 1, "a")
	writeGGUF(t, at(2), 1, 3, 2, "b", "c")
	writeGGUF(t, at(3), 2, 3, 3, "d")
	f := open(t, at(1))
	var spans []checkpoint.Span
	var names []string
	end := int64(0)
	for _, x := range f.Tensors() {
		names = append(names, fmt.Sprintf("%s in %d", x.Name, x.Part))
		spans = append(spans, checkpoint.Span{Part: x.Part, Offset: x.Offset, Size: int64(x.Size), At: end})
		end += int64(x.Size)
	}
	if d := cmp.Diff([]string{"a in 0", "b in 1", "c in 1", "d in 2"}, names); d != "" {
		t.Error(d)
	}
	arena := make([]byte, end)
	if err := checkpoint.ReadArena(t.Context(), f, arena, spans, 2); err != nil {
		t.Fatal(err)
	}
	for i, want := range []byte{1, 2, 2, 3} {
		if got := arena[34*i+33]; got != want {
			t.Errorf("tensor %d ends with code %d, want %d", i, got, want)
		}
	}
	size := int64(0)
	for _, p := range checkpoint.Parts(at(1)) {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if int64(f.Size()) != size || f.Path() != at(1) || f.Metadata()["general.architecture"] != "part 0" {
		t.Errorf("%d bytes of %d, path %s, metadata %v", f.Size(), size, f.Path(), f.Metadata())
	}
	id, err := f.QuickID()
	if err != nil {
		t.Fatal(err)
	}
	writeGGUF(t, at(3), 2, 3, 4, "d")
	if other, err := open(t, at(1)).QuickID(); err != nil || other == id {
		t.Errorf("the last part does not show in the id %s: %v", other, err)
	}
}

func TestSplitRefusals(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	part := func(name string, i, n int) string { return fmt.Sprintf("%s-%05d-of-%05d.gguf", name, i, n) }
	writeGGUF(t, at(part("hole", 1, 2)), 0, 2, 1, "a")
	writeGGUF(t, at(part("twice", 1, 2)), 0, 2, 1, "a")
	writeGGUF(t, at(part("twice", 2, 2)), 1, 2, 1, "a")
	writeGGUF(t, at(part("order", 1, 2)), 1, 2, 1, "a")
	writeGGUF(t, at("renamed.gguf"), 0, 2, 1, "a")
	for name, message := range map[string]string{
		part("hole", 1, 2):         "part 2 of 2 is missing: put " + at(part("hole", 2, 2)),
		part("hole", 2, 2):         "is part 2 of 2; name the first, hole-00001-of-00002.gguf",
		part("twice", 1, 2):        `tensor "a" is in twice-00001-of-00002.gguf as well`,
		part("order", 1, 2):        "its header says part 2 of 2, its name part 1 of 2",
		"renamed.gguf":             "its header says part 1 of 2, its name part 1 of 1",
		"many-00001-of-09999.gguf": "more than 1024",
	} {
		if _, err := checkpoint.Open(at(name)); err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v, want %q", name, err, message)
		}
	}
	if err := os.WriteFile(at("empty.gguf"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := checkpoint.Open(at("empty.gguf"))
	if f, ok := errors.AsType[*gguf.FormatError](err); !ok || f.Reason != gguf.EmptyFile {
		t.Errorf("an empty file named .gguf: %v", err)
	}
}

func TestSplitSafetensors(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for i := range 2 {
		path := filepath.Join(dir, fmt.Sprintf("diffusion_pytorch_model-%05d-of-00002.safetensors", i+1))
		paths = append(paths, path)
		data := []safetensors.Data{safetensors.FromFloat32s(fmt.Sprint("t", i), tensor.Shape{2}, []float32{float32(i), 5})}
		if err := safetensors.WriteFile(path, data, map[string]string{"format": "pt", "part": fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	f := open(t, paths[0])
	raw := make([]byte, 8)
	x, ok := f.Lookup("t1")
	if err := f.ReadAt(raw, x, 0); !ok || err != nil || x.Part != 1 || raw[3] != 0x3f {
		t.Errorf("t1: %+v, %v, %v", x, raw, err)
	}
	if d := cmp.Diff(map[string]string{"format": "pt", "part": "0"}, f.Metadata()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(paths, checkpoint.Parts(paths[0])); d != "" || checkpoint.Parts(paths[1]) != nil {
		t.Errorf("%s; of the second part: %v", d, checkpoint.Parts(paths[1]))
	}
}
