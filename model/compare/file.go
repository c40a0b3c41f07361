// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/source"
)

// Kind is what a file is, told by its first bytes.
type Kind string

// The kinds.
const (
	Safetensors Kind = "safetensors"
	PNG         Kind = "PNG"
	JPEG        Kind = "JPEG"
)

// File is one side: a file of tensors, or a picture.
type File struct {
	Kind    Kind
	Tensors *safetensors.File // of Safetensors
	Picture *Picture
}

// Names of the tensors of a file of a latent: in the model's space, as `distorch
// run --save-latent` writes it, and in the VAE's, as ComfyUI's SaveLatent does.
const (
	latentName    = "latent"
	vaeLatentName = "latent_tensor"
)

// kindOf tells a file by its first bytes; everything that is known to be
// something else is an error.
func kindOf(src source.Source) (Kind, error) {
	first := make([]byte, min(src.Size(), 8))
	if n, err := src.ReadAt(first, 0); n < len(first) {
		return "", err
	}
	for magic, kind := range map[string]Kind{"\x89PNG\r\n\x1a\n": PNG, "\xff\xd8\xff": JPEG} {
		if bytes.HasPrefix(first, []byte(magic)) {
			return kind, nil
		}
	}
	for magic, name := range map[string]string{"GGUF": "a GGUF file", "PK\x03\x04": "a zip file, as PyTorch's own checkpoints are", "RIFF": "a RIFF file, as WebP pictures are", "GIF8": "a GIF picture"} {
		if bytes.HasPrefix(first, []byte(magic)) {
			return "", fmt.Errorf("%s; safetensors, PNG and JPEG are taken", name)
		}
	}
	return Safetensors, nil
}

// Open tells what src is and reads its header, or the whole of a picture. src
// must stay as it is while the File is used.
func Open(src source.Source) (*File, error) { return open(src, maxPixels) }

func open(src source.Source, pixels int64) (*File, error) {
	kind, err := kindOf(src)
	if err != nil {
		return nil, err
	}
	if kind == Safetensors {
		f, err := safetensors.Parse(src)
		if err != nil {
			if broken, ok := errors.AsType[*safetensors.FormatError](err); ok && (broken.Reason == safetensors.HeaderTooLong || broken.Reason == safetensors.HeaderNotUTF8 || broken.Reason == safetensors.TooShort || broken.Reason == safetensors.HeaderTruncated) {
				err = fmt.Errorf("neither PNG nor JPEG, and %w", err)
			}
			return nil, err
		}
		return &File{Kind: kind, Tensors: f}, nil
	}
	p, err := decode(src, kind, pixels)
	if err != nil {
		return nil, err
	}
	return &File{Kind: kind, Picture: p}, nil
}

// Pair is a tensor of both files, or the pictures.
type Pair struct{ A, B Tensor }

// Matched says what of two files is compared with what.
type Matched struct {
	Pairs        []Pair // in the order of names, numbers in them by their value
	OnlyA, OnlyB []string
	Notes        []string
}

// Match pairs the tensors of two files by name: all of them, or those named. Of
// two files of latents it takes the tensor latent where both have it, and
// latent_tensor otherwise. Empty tensors that both have are left out.
func Match(a, b *File, only []string) (Matched, error) {
	switch {
	case (a.Picture == nil) != (b.Picture == nil):
		return Matched{}, fmt.Errorf("side A is %s and B %s; a picture is compared with a picture, tensors with tensors", a.Kind, b.Kind)
	case a.Picture != nil && len(only) > 0:
		return Matched{}, errors.New("a picture has no tensors to name")
	case a.Picture != nil:
		return matchPictures(a, b), nil
	}
	namesA, namesB := names(a.Tensors), names(b.Tensors)
	var m Matched
	both, onlyA, onlyB := Names(namesA, namesB)
	switch {
	case len(only) > 0:
		for _, name := range only {
			if err := missing(name, namesA, namesB); err != nil {
				return m, err
			}
		}
		both = only
	case slices.Contains(both, vaeLatentName) && slices.Contains(both, latentName):
		both = []string{latentName}
	case slices.Contains(both, vaeLatentName):
		both = []string{vaeLatentName}
	default:
		m.OnlyA, m.OnlyB = onlyA, onlyB
	}
	for _, name := range both {
		p := Pair{tensorOf(a.Tensors, name), tensorOf(b.Tensors, name)}
		if len(only) == 0 && emptyShape(p.A.Shape) && p.A.Shape.Equal(p.B.Shape) {
			continue
		}
		if p.A.DType != p.B.DType {
			m.Notes = append(m.Notes, fmt.Sprintf("%s is %v in A and %v in B; their values are compared", name, p.A.DType, p.B.DType))
		}
		m.Pairs = append(m.Pairs, p)
	}
	if len(m.Pairs) == 0 {
		return m, errors.New("the files have no tensor of the same name")
	}
	return m, nil
}

func matchPictures(a, b *File) (m Matched) {
	f := wider(a.Picture.form, b.Picture.form)
	if a.Picture.form != b.Picture.form {
		m.Notes = []string{fmt.Sprintf("A is %v and B %v; both are compared as %v", a.Picture.form, b.Picture.form, f)}
	}
	m.Pairs = []Pair{{a.Picture.tensor(f), b.Picture.tensor(f)}}
	return m
}

func names(f *safetensors.File) []string {
	var out []string
	for _, t := range f.Tensors() {
		out = append(out, t.Name)
	}
	return out
}

func missing(name string, a, b []string) error {
	inA, inB := slices.Contains(a, name), slices.Contains(b, name)
	switch {
	case !inA && !inB:
		return fmt.Errorf("neither file has a tensor %q; A has %s", name, some(a))
	case !inA:
		return fmt.Errorf("side A has no tensor %q; it has %s", name, some(a))
	case !inB:
		return fmt.Errorf("side B has no tensor %q; it has %s", name, some(b))
	}
	return nil
}

func tensorOf(f *safetensors.File, name string) Tensor {
	t, _ := f.Lookup(name)
	return Tensor{
		Name: name, DType: t.DType, Shape: t.Shape, Planes: len(t.Shape) == 4 || len(t.Shape) == 5,
		Read: func(dst []byte, offset int64) error { return f.ReadAt(dst, t, offset) },
	}
}
