// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distorch/distorch/internal/edits"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// The demo's texts are Tokens words, each Width wide.
const (
	Tokens = 5
	Width  = 64
	pad    = "<pad>"
)

//go:embed words.safetensors
var embedded []byte

// Vocabulary turns prompts into conditioning.
type Vocabulary struct {
	words    []string
	word     []float32 // [words, Width]
	position []float32 // [Tokens, Width]
}

// Conditioning is what the model is given for a text.
type Conditioning struct {
	Context []float32 // [1, Tokens, Width]
	Y       []float32 // [1, Width], the mean of Context's rows
}

// Words is the demo checkpoint's vocabulary, which is part of the binary.
func Words() (*Vocabulary, error) {
	f, err := safetensors.Parse(bytes.NewReader(embedded))
	if err != nil {
		return nil, fmt.Errorf("demo words: %w", err)
	}
	return Read(f)
}

// Read takes a vocabulary from a file with the tensors word [n,64] and
// position [5,64] and the words, in order, under the metadata key "words".
func Read(f *safetensors.File) (*Vocabulary, error) {
	v := &Vocabulary{words: strings.Fields(f.Metadata()["words"])}
	if !slices.Contains(v.words, pad) {
		return nil, errors.New("demo words: metadata words does not hold " + pad)
	}
	for _, c := range []struct {
		name string
		into *[]float32
		want tensor.Shape
	}{
		{"word", &v.word, tensor.Shape{int64(len(v.words)), Width}},
		{"position", &v.position, tensor.Shape{Tokens, Width}},
	} {
		values, shape, err := f.Float32s(c.name)
		if err != nil {
			return nil, fmt.Errorf("demo words: %w", err)
		}
		if !shape.Equal(c.want) {
			return nil, fmt.Errorf("demo words: %s is %v, must be %v", c.name, shape, c.want)
		}
		*c.into = values
	}
	return v, nil
}

// List is all words, in order.
func (v *Vocabulary) List() []string { return slices.Clone(v.words) }

// Encode is the conditioning of a prompt of five words: size, colour, shape,
// "on", background colour.
func (v *Vocabulary) Encode(prompt string) (Conditioning, error) {
	words := strings.Fields(strings.ToLower(prompt))
	prompt = prompt[:min(len(prompt), 100)] // enough to recognise it in an error
	for _, w := range words {
		if !slices.Contains(v.words, w) {
			return Conditioning{}, fmt.Errorf("prompt %q: the demo model does not know %.64q; did you mean %q? It knows: %s", prompt, w, v.nearest(w), strings.Join(v.words, " "))
		}
	}
	if len(words) != Tokens {
		return Conditioning{}, fmt.Errorf("prompt %q: %d words, the demo model takes %d: size, colour, shape, on, background colour, as in \"large red circle on blue\"", prompt, len(words), Tokens)
	}
	return v.encode(words), nil
}

// Unconditional is the conditioning of no text: five times "<pad>".
func (v *Vocabulary) Unconditional() Conditioning {
	return v.encode(slices.Repeat([]string{pad}, Tokens))
}

func (v *Vocabulary) encode(words []string) Conditioning {
	c := Conditioning{Context: make([]float32, Tokens*Width), Y: make([]float32, Width)}
	for i, w := range words {
		row := v.word[slices.Index(v.words, w)*Width:]
		for j := range Width {
			x := row[j] + v.position[i*Width+j]
			c.Context[i*Width+j] = x
			c.Y[j] += x
		}
	}
	for j := range c.Y {
		c.Y[j] /= Tokens
	}
	return c
}

// nearest is the known word with the fewest edits to w; the first of several.
func (v *Vocabulary) nearest(w string) string {
	best, fewest := "", 1<<30
	for _, known := range v.words {
		if known == pad {
			continue
		}
		if d := edits.Distance(w, known); d < fewest {
			best, fewest = known, d
		}
	}
	return best
}
