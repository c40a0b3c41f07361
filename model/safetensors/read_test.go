// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package safetensors

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/model/tensor"
)

func TestMalformedFilesHaveTheirOwnReason(t *testing.T) {
	want := map[string]Reason{
		"data-trailing":            DataTrailing,
		"data-truncated":           OffsetsOutside,
		"dtype-unknown":            DTypeUnknown,
		"duplicate-keys":           DuplicateName,
		"duplicate-keys-identical": DuplicateName,
		"empty":                    EmptyFile,
		"fields-missing":           FieldMissing,
		"header-length-negative":   HeaderTooLong,
		"header-length-over-limit": HeaderTooLong,
		"header-length-too-large":  HeaderTooLong,
		"header-length-zero":       HeaderEmpty,
		"header-nested":            EntryNotObject,
		"header-not-json":          HeaderNotJSON,
		"header-not-object":        HeaderNotObject,
		"header-not-utf8":          HeaderNotUTF8,
		"header-trailing-garbage":  HeaderTrailing,
		"header-truncated":         HeaderTruncated,
		"metadata-not-strings":     MetadataInvalid,
		"offsets-beyond-file":      OffsetsOutside,
		"offsets-gap":              OffsetsGap,
		"offsets-huge":             OffsetsOutside,
		"offsets-negative":         OffsetsNegative,
		"offsets-overlap":          OffsetsOverlap,
		"offsets-reversed":         OffsetsReversed,
		"shape-fraction":           ShapeFraction,
		"shape-negative":           ShapeNegative,
		"short":                    TooShort,
		"size-mismatch":            SizeMismatch,
		"size-overflow":            SizeOverflow,
	}
	paths, _ := filepath.Glob("testdata/bad/*.safetensors")
	if len(paths) != len(want) {
		t.Fatalf("%d files, %d expectations", len(paths), len(want))
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".safetensors")
		t.Run(name, func(t *testing.T) {
			f, err := Open(path)
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
		})
	}
}

func reasonOf(err error) Reason {
	if f, ok := errors.AsType[*FormatError](err); ok {
		return f.Reason
	}
	return ""
}

// file is a safetensors file with the given header text and n data bytes.
func file(header string, n int) []byte {
	out := make([]byte, 8, 8+len(header)+n)
	out[0], out[1], out[2] = byte(len(header)), byte(len(header)>>8), byte(len(header)>>16)
	return append(append(out, header...), make([]byte, n)...)
}

func TestHeaderRules(t *testing.T) {
	for _, c := range []struct {
		header string
		n      int
		want   Reason
	}{
		{`{}`, 0, ""},
		{`{}   `, 1, DataTrailing},
		{`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"note":{"x":[1,[2]]}}}`, 4, ""},
		{`{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}`, 4, ""},
		{`{"a":{"dtype":"F4","shape":[7],"data_offsets":[0,4]}}`, 4, SizeOverflow},
		{`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"dtype":"F32"}}`, 4, DuplicateName},
		{`{"__metadata__":{"k":"v","k":"v"}}`, 0, DuplicateName},
		{`{"__metadata__":[]}`, 0, MetadataInvalid},
		{`{"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}}`, 4, FieldInvalid},
		{`{"a":{"dtype":"F32","shape":4,"data_offsets":[0,4]}}`, 4, FieldInvalid},
		{`{"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}}`, 4, FieldInvalid},
		{`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}`, 4, OffsetsInvalid},
		{`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4]}}`, 4, OffsetsInvalid},
		{`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4.0]}}`, 4, OffsetsInvalid},
		{`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,9223372036854775808]}}`, 4, OffsetsInvalid},
		{`{"a":{"dtype":"F32","shape":[1e0],"data_offsets":[0,4]}}`, 4, ShapeFraction},
		{`{"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}}`, 4, SizeOverflow},
		{`{"a":{"dtype":"F32","shape":[` + strings.Repeat("1,", 64) + `1],"data_offsets":[0,4]}}`, 4, ShapeTooLong},
		{`{"a":null}`, 0, EntryNotObject},
		{`{"a":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}}`, 0, OffsetsOutside},
		{`{"a":{"dtype":"U8","shape":[4],"data_offsets":[9223372036854775803,9223372036854775807]}}`, 4, OffsetsOutside},
		{`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]`, 4, HeaderNotJSON},
		{`{"a":{"dtype":"F32","shape":[1],`, 4, HeaderNotJSON},
		{`{"a":{"dtype":"F32","note":` + strings.Repeat("[", 20000) + `}}`, 4, HeaderNotJSON},
		{`   `, 0, HeaderNotJSON},
	} {
		_, err := Parse(bytes.NewReader(file(c.header, c.n)))
		if got := reasonOf(err); got != c.want || (err == nil) != (c.want == "") {
			t.Errorf("%.80s: got %v, want %q", c.header, err, c.want)
		}
		if err != nil && len(err.Error()) > 700 {
			t.Errorf("%.80s: an error of %d bytes", c.header, len(err.Error()))
		}
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

func TestUnusualFile(t *testing.T) {
	f := open(t, "testdata/unusual.safetensors")
	got := map[string][]float32{}
	var names []string
	for _, e := range f.Tensors() {
		names = append(names, e.Name)
		if !e.DType.Float() {
			continue
		}
		v, _, err := f.Float32s(e.Name)
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name] = v
	}
	want := map[string][]float32{"z": {1.5, -2.25}, "a": {1.5}, "m": {0.125}, "empty": {}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"z", "empty", "a", "odd", "m"}, names); d != "" {
		t.Error(d)
	}
	odd, e, err := f.Read("odd")
	if err != nil || !bytes.Equal(odd, []byte{7, 8, 9}) || e.DType != tensor.U8 {
		t.Errorf("odd: %v %v %v", odd, e, err)
	}
	if d := cmp.Diff(map[string]string{"format": "pt", `q"uote`: "é\n"}, f.Metadata()); d != "" {
		t.Error(d)
	}
}

func TestEveryDType(t *testing.T) {
	f, ref := open(t, "testdata/dtypes.safetensors"), open(t, "testdata/dtypes-as-f32.safetensors")
	for _, e := range ref.Tensors() {
		want, _, err := ref.Float32s(e.Name)
		if err != nil {
			t.Fatal(err)
		}
		got, shape, err := f.Float32s(e.Name)
		if err != nil || !shape.Equal(e.Shape) {
			t.Fatalf("%s: %v, %v", e.Name, shape, err)
		}
		raw, _, _ := f.Read(e.Name)
		d, _ := f.Lookup(e.Name)
		half := make([]uint16, len(got))
		if err := tensor.ToBF16(half, raw, d.DType); err != nil {
			t.Fatal(err)
		}
		for i := range want {
			if math.Float32bits(got[i]) != math.Float32bits(want[i]) && want[i] == want[i] || (got[i] == got[i]) != (want[i] == want[i]) {
				t.Errorf("%s[%d]: got %g, want %g", e.Name, i, got[i], want[i])
			}
			if w := tensor.BF16FromF32(want[i]); half[i] != w && want[i] == want[i] {
				t.Errorf("%s[%d]: bf16 %#x, want %#x", e.Name, i, half[i], w)
			}
		}
	}
	scalar, _ := f.Lookup("scalar")
	if len(scalar.Shape) != 0 || scalar.Size != 4 {
		t.Errorf("scalar: %+v", scalar)
	}
	if _, _, err := f.Float32s("int8"); err == nil {
		t.Error("integers expanded to floats")
	}
	if _, _, err := f.Read("absent"); err == nil || !strings.Contains(err.Error(), `"absent"`) {
		t.Errorf("absent tensor: %v", err)
	}
}

func TestReadAtStaysInsideItsTensor(t *testing.T) {
	f := open(t, "testdata/dtypes.safetensors")
	e, _ := f.Lookup("f8_e4m3")
	part := make([]byte, 16)
	if err := f.ReadAt(part, e, 240); err != nil || part[15] != 255 {
		t.Errorf("last 16 bytes: %v, %v", part, err)
	}
	for _, at := range []int64{241, 257, -1, math.MaxInt64} {
		if err := f.ReadAt(part, e, at); err == nil {
			t.Errorf("offset %d accepted", at)
		}
	}
}

func TestFileTruncatedWhileOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.safetensors")
	if err := WriteFile(path, []Data{FromFloat32s("a", tensor.Shape{1000}, make([]float32, 1000))}, nil); err != nil {
		t.Fatal(err)
	}
	f := open(t, path)
	if err := os.Truncate(path, 500); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Read("a"); reasonOf(err) != ChangedOnDisk {
		t.Errorf("got %v", err)
	}
	if _, err := f.QuickID(); reasonOf(err) != ChangedOnDisk {
		t.Errorf("id: got %v", err)
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("a directory opened")
	}
}

func TestQuickIDSeesWhatItCovers(t *testing.T) {
	base := []Data{
		FromFloat32s("a", tensor.Shape{20000}, make([]float32, 20000)),
		FromFloat32s("b", tensor.Shape{3}, []float32{1, 2, 3}),
	}
	id := func(tensors []Data, metadata map[string]string) string {
		var b bytes.Buffer
		if err := Encode(&b, tensors, metadata); err != nil {
			t.Fatal(err)
		}
		f, err := Parse(bytes.NewReader(b.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		s, err := f.QuickID()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := id(base, nil)
	if len(first) != 64 || first != id(base, nil) {
		t.Errorf("id %q is not stable", first)
	}
	changed := slices.Clone(base)
	changed[1] = FromFloat32s("b", tensor.Shape{3}, []float32{1, 2, 4})
	if id(changed, nil) == first {
		t.Error("a tensor's first bytes do not show")
	}
	if id(base, map[string]string{"k": "v"}) == first {
		t.Error("metadata does not show")
	}
}

// sparse is a header followed by zeros that take no memory.
type sparse struct {
	header []byte
	size   int64
}

func (s sparse) Size() int64 { return s.size }

func (s sparse) ReadAt(p []byte, at int64) (int, error) {
	clear(p)
	if at < int64(len(s.header)) {
		copy(p, s.header[at:])
	}
	return len(p), nil
}

func BenchmarkHeader10000(b *testing.B) {
	entries := make([]Entry, 10_000)
	for i := range entries {
		entries[i] = Entry{fmt.Sprintf("model.diffusion_model.double_blocks.%d.img_attn.norm.query_norm.scale", i), tensor.BF16, tensor.Shape{9216, 3072}}
	}
	raw, size, err := Header(entries, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		f, err := Parse(sparse{raw, int64(size)})
		if err != nil || len(f.Tensors()) != len(entries) {
			b.Fatal(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	paths, _ := filepath.Glob("testdata/*.safetensors")
	bad, _ := filepath.Glob("testdata/bad/*.safetensors")
	for _, p := range append(paths, bad...) {
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
			if e.Offset != end {
				t.Fatalf("%q begins at %d, not at %d", e.Name, e.Offset, end)
			}
			end += int64(e.Size)
			if _, _, err := s.Read(e.Name); err != nil {
				t.Fatal(err)
			}
		}
		if end != int64(len(raw)) {
			t.Fatalf("tensors end at %d of %d", end, len(raw))
		}
	})
}
