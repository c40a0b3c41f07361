// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

func reasonOf(err error) Reason {
	if f, ok := errors.AsType[*FormatError](err); ok {
		return f.Reason
	}
	return ""
}

// A sound file that this build does not read is told from a malformed one.
func TestUnsupported(t *testing.T) {
	for name, want := range map[string]bool{"version-1": true, "version-swapped": true, "tensor-type-unknown": false, "header-truncated": false} {
		_, err := Open("testdata/bad/gguf/" + name + ".gguf")
		if err == nil || errors.Is(err, ErrUnsupported) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMalformedFilesHaveTheirOwnReason(t *testing.T) {
	want := map[string]Reason{
		"alignment-odd":               AlignmentInvalid,
		"alignment-zero":              AlignmentInvalid,
		"architecture-not-string":     ArchitectureInvalid,
		"array-length-huge":           CountTooLarge,
		"array-nested":                ArrayNested,
		"array-of-empty-strings-huge": CountTooLarge,
		"data-missing":                OffsetOutside,
		"data-truncated":              OffsetOutside,
		"dimensions-many":             DimensionsTooMany,
		"dimensions-overflow":         SizeOverflow,
		"empty":                       EmptyFile,
		"header-truncated":            HeaderTruncated,
		"key-duplicate":               KeyDuplicate,
		"key-length-huge":             LengthTooLarge,
		"kv-count-huge":               CountTooLarge,
		"magic":                       NotGGUF,
		"name-duplicate":              NameDuplicate,
		"offset-beyond-file":          OffsetOutside,
		"offset-misaligned":           OffsetMisaligned,
		"offset-overflow":             OffsetOutside,
		"offsets-overlap":             OffsetsOverlap,
		"row-not-blocks":              RowNotBlocks,
		"string-length-huge":          LengthTooLarge,
		"tensor-count-huge":           CountTooLarge,
		"tensor-info-truncated":       HeaderTruncated,
		"tensor-type-removed":         TypeRemoved,
		"tensor-type-unknown":         TypeUnknown,
		"value-type-unknown":          ValueTypeUnknown,
		"version-0":                   VersionUnknown,
		"version-1":                   VersionUnknown,
		"version-99":                  VersionUnknown,
		"version-swapped":             BigEndian,
	}
	paths, _ := filepath.Glob("testdata/bad/gguf/*.gguf")
	if len(paths) != len(want) {
		t.Fatalf("%d files, %d expectations", len(paths), len(want))
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".gguf")
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			f, err := Open(path)
			runtime.ReadMemStats(&after)
			if err == nil {
				_ = f.Close()
				t.Fatal("accepted")
			}
			if r := reasonOf(err); r != want[name] {
				t.Errorf("got %v, want %q", err, want[name])
			}
			if !strings.Contains(err.Error(), path) {
				t.Errorf("%q does not name the file", err)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
				t.Errorf("%d bytes allocated for a file of some hundred", took)
			}
		})
	}
}

func open(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestGoldenValues dequantises every tensor of the golden files, made by the
// gguf package of llama.cpp: bit for bit, the sign of a zero aside.
func TestGoldenValues(t *testing.T) {
	for _, name := range []string{"types", "metadata", "five-dimensions", "orig-shape"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join("testdata", "golden", name)
			f := open(t, filepath.Join(dir, "model.gguf"))
			io, err := safetensors.Open(filepath.Join(dir, "io.safetensors"))
			if err != nil {
				t.Fatal(err)
			}
			defer io.Close()
			if len(f.Tensors()) != len(io.Tensors()) {
				t.Errorf("%d tensors, %d expected", len(f.Tensors()), len(io.Tensors()))
			}
			for _, e := range f.Tensors() {
				want, shape, err := io.Float32s(e.Name)
				if err != nil {
					t.Fatal(err)
				}
				if !e.Shape.Equal(shape) {
					t.Errorf("%s: shape %v, want %v", e.Name, e.Shape, shape)
				}
				raw := make([]byte, e.Size)
				got, half := make([]float32, len(want)), make([]uint16, len(want))
				if err := errors.Join(f.ReadAt(raw, e, 0), tensor.ToF32(got, raw, e.DType), tensor.ToBF16(half, raw, e.DType)); err != nil {
					t.Fatal(err)
				}
				for i, w := range want {
					if got[i] != w || half[i] != tensor.BF16FromF32(got[i]) {
						t.Fatalf("%s (%v) element %d: got %g and %#x, want %g", e.Name, e.DType, i, got[i], half[i], w)
					}
				}
			}
		})
	}
}

func TestVersion2IsReadAlike(t *testing.T) {
	raw, err := os.ReadFile("testdata/golden/types/model.gguf")
	if err != nil {
		t.Fatal(err)
	}
	raw[4] = 2
	old, err := Parse(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, "testdata/golden/types/model.gguf")
	if d := cmp.Diff(f.Tensors(), old.Tensors()); d != "" || old.Version() != 2 || f.Version() != 3 {
		t.Errorf("versions %d and %d\n%s", old.Version(), f.Version(), d)
	}
}

func TestEveryMetadataType(t *testing.T) {
	f := open(t, "testdata/golden/metadata/model.gguf")
	want := map[string]any{
		"general.architecture": "flux", "general.alignment": uint32(64),
		"test.u8": uint8(255), "test.i8": int8(-128), "test.u16": uint16(65535), "test.i16": int16(-32768),
		"test.u32": uint32(math.MaxUint32), "test.i32": int32(math.MinInt32), "test.u64": uint64(math.MaxUint64), "test.i64": int64(math.MinInt64),
		"test.f32": float32(1.5), "test.f64": 1e300, "test.bool": true, "test.string": "grün ✓",
		"test.ints": []int32{1, -2, 3}, "test.floats": []float32{0.5, -1.25}, "test.strings": []string{"a", "", "ü"}, "test.bools": []bool{true, false},
	}
	if d := cmp.Diff(want, f.Values()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]string{"general.architecture": "flux", "test.string": "grün ✓"}, f.Metadata()); d != "" {
		t.Error(d)
	}
}

// builder writes headers for tests.
type builder struct{ bytes.Buffer }

func (b *builder) put(values ...any) *builder {
	for _, v := range values {
		if s, ok := v.(string); ok {
			b.put(uint64(len(s)))
			b.WriteString(s)
			continue
		}
		_ = binary.Write(b, binary.LittleEndian, v)
	}
	return b
}

func start(tensors, pairs uint64) *builder {
	b := &builder{}
	b.WriteString("GGUF")
	return b.put(uint32(3), tensors, pairs)
}

func TestHeaderRules(t *testing.T) {
	f32 := func(name string, at uint64) []any {
		return []any{name, uint32(1), uint64(2), uint32(0), at}
	}
	data := make([]byte, 256)
	for name, c := range map[string]struct {
		b    *builder
		want Reason
	}{
		"nothing in it":          {start(0, 0), ""},
		"scalar":                 {start(1, 0).put("s", uint32(0), uint32(0), uint64(0), data), ""},
		"gap between tensors":    {start(2, 0).put(f32("a", 0)...).put(f32("b", 96)...).put(data), ""},
		"arrays in an array":     {start(0, 1).put("k", uint32(9), uint32(9), uint64(1), uint32(0), uint64(2), uint8(1), uint8(2)), ""},
		"empty array":            {start(0, 1).put("k", uint32(9), uint32(8), uint64(0)), ""},
		"bool of 2":              {start(0, 1).put("k", uint32(7), uint8(2)), BoolInvalid},
		"array of unknown type":  {start(0, 1).put("k", uint32(9), uint32(13), uint64(0)), ValueTypeUnknown},
		"key not UTF-8":          {start(0, 1).put("\xff", uint32(0), uint8(0)), NotUTF8},
		"alignment as text":      {start(0, 1).put("general.alignment", uint32(8), "32"), AlignmentInvalid},
		"alignment huge":         {start(0, 1).put("general.alignment", uint32(10), uint64(1<<40)), AlignmentInvalid},
		"nine dimensions":        {start(1, 0).put("a", uint32(9), [9]uint64{1, 1, 1, 1, 1, 1, 1, 1, 1}, uint32(0), uint64(0), data), DimensionsTooMany},
		"dimension over 63 bits": {start(1, 0).put("a", uint32(1), uint64(1<<63), uint32(0), uint64(0), data), SizeOverflow},
		"type that is not read":  {start(1, 0).put("a", uint32(1), uint64(256), uint32(16), uint64(0), data), TypeUnsupported},
		"scalar in blocks":       {start(1, 0).put("a", uint32(0), uint32(8), uint64(0), data), RowNotBlocks},
		"offset over 63 bits":    {start(1, 0).put(f32("a", 1<<63)...).put(data), OffsetOutside},
		"split without number":   {start(0, 1).put("split.count", uint32(2), uint16(2)), SplitInvalid},
		"split beyond count":     {start(0, 2).put("split.count", uint32(2), uint16(2), "split.no", uint32(2), uint16(2)), SplitInvalid},
		"orig_shape of another size": {
			start(1, 1).put("comfy.gguf.orig_shape.a", uint32(9), uint32(5), uint64(1), int32(3)).put(f32("a", 0)...).put(data), OrigShapeInvalid,
		},
		"orig_shape negative": {
			start(1, 1).put("comfy.gguf.orig_shape.a", uint32(9), uint32(5), uint64(2), int32(-1), int32(-2)).put(f32("a", 0)...).put(data), OrigShapeInvalid,
		},
		"orig_shape as text": {
			start(1, 1).put("comfy.gguf.orig_shape.a", uint32(8), "2").put(f32("a", 0)...).put(data), OrigShapeInvalid,
		},
		"orig_shape": {
			start(1, 1).put("comfy.gguf.orig_shape.a", uint32(9), uint32(5), uint64(2), int32(1), int32(2)).put(f32("a", 0)...).put(data), "",
		},
	} {
		_, err := Parse(bytes.NewReader(c.b.Bytes()))
		if got := reasonOf(err); got != c.want || (err == nil) != (c.want == "") {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// large is a header in front of zeros that take no memory.
type large struct {
	header []byte
	size   int64
}

func (s large) Size() int64 { return s.size }

func (s large) ReadAt(p []byte, at int64) (int, error) {
	clear(p)
	if at < int64(len(s.header)) {
		copy(p, s.header[at:])
	}
	return len(p), nil
}

func TestHeaderIsBoundedInLargeFiles(t *testing.T) {
	for name, b := range map[string]*builder{
		"text":    start(0, 1).put("k", uint32(8), uint64(200<<20)),
		"array":   start(0, 1).put("k", uint32(9), uint32(0), uint64(200<<20)),
		"tensors": start(1<<30, 0),
	} {
		if _, err := Parse(large{b.Bytes(), 1 << 40}); reasonOf(err) != HeaderTooLong {
			t.Errorf("%s: got %v", name, err)
		}
	}
	b := start(1, 0).put("t", uint32(2), uint64(3072), uint64(1<<20), uint32(12), uint64(0))
	f, err := Parse(large{b.Bytes(), 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	if e, _ := f.Lookup("t"); e.Size != 3072/256*144<<20 || !e.Shape.Equal(tensor.Shape{1 << 20, 3072}) {
		t.Errorf("got %+v", e)
	}
}

func TestReadAtStaysInsideItsTensor(t *testing.T) {
	f := open(t, "testdata/golden/types/model.gguf")
	e := f.Tensors()[2]
	part := make([]byte, 16)
	if err := f.ReadAt(part, e, int64(e.Size)-16); err != nil {
		t.Error(err)
	}
	for _, at := range []int64{int64(e.Size) - 15, -1, math.MaxInt64} {
		if err := f.ReadAt(part, e, at); err == nil {
			t.Errorf("offset %d accepted", at)
		}
	}
}

func TestFileTruncatedWhileOpen(t *testing.T) {
	raw, err := os.ReadFile("testdata/golden/types/model.gguf")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "m.gguf")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	f := open(t, path)
	first, err := f.QuickID()
	if err != nil || len(first) != 64 {
		t.Fatalf("id %q, %v", first, err)
	}
	if err := os.Truncate(path, 4000); err != nil {
		t.Fatal(err)
	}
	e := f.Tensors()[len(f.Tensors())-1]
	if err := f.ReadAt(make([]byte, 16), e, 0); reasonOf(err) != ChangedOnDisk {
		t.Errorf("got %v", err)
	}
	if _, err := f.QuickID(); reasonOf(err) != ChangedOnDisk {
		t.Errorf("id: got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	paths, _ := filepath.Glob("testdata/bad/gguf/*.gguf")
	for _, p := range append(paths, "testdata/golden/metadata/model.gguf") {
		raw, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Parse(bytes.NewReader(raw))
		if err != nil {
			if reasonOf(err) == "" {
				t.Fatalf("an error without a reason: %v", err)
			}
			return
		}
		end := s.header.data
		for _, e := range s.Tensors() {
			if e.Offset < end {
				t.Fatalf("%q begins at %d, before %d", e.Name, e.Offset, end)
			}
			end = e.Offset + int64(e.Size)
			if end > int64(len(raw)) {
				t.Fatalf("%q ends at %d of %d", e.Name, end, len(raw))
			}
			if err := s.ReadAt(make([]byte, e.Size), e, 0); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.QuickID(); err != nil {
			t.Fatal(err)
		}
	})
}
