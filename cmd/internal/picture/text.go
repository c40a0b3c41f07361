// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package picture

import (
	"fmt"

	"github.com/distorch/distorch/model/demo"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
)

// Text is the conditioning of one branch.
type Text struct {
	Context      []float32
	ContextShape tensor.Shape // [1, tokens, width]
	Y            []float32
	YShape       tensor.Shape // [1, width]
	Mask         []float32    // added to the scores of attention; nil for none
	MaskShape    tensor.Shape // [1, tokens, tokens] over text, picture and references
}

// Tokens is the number of text tokens.
func (t Text) Tokens() int64 { return t.ContextShape[1] }

// Prompt is the text of a prompt of the demo, and that of no prompt.
func Prompt(prompt string) (positive, negative Text, err error) {
	words, err := demo.Words()
	if err != nil {
		return Text{}, Text{}, err
	}
	c, err := words.Encode(prompt)
	if err != nil {
		return Text{}, Text{}, err
	}
	return demoText(c), demoText(words.Unconditional()), nil
}

func demoText(c demo.Conditioning) Text {
	return Text{
		Context: c.Context, ContextShape: tensor.Shape{1, demo.Tokens, demo.Width},
		Y: c.Y, YShape: tensor.Shape{1, demo.Width},
	}
}

// maxText bounds a text tensor: 8192 tokens of 4096.
const maxText = 128 * tensor.MiB

// maxMask bounds an attention mask: 8192 tokens.
const maxMask = 256 * tensor.MiB

// Conditioning reads context and y from a safetensors file, and
// negative.context and negative.y where it has them: negative is nil otherwise.
// Either may have an attention_mask beside it.
func Conditioning(path string) (positive Text, negative *Text, err error) {
	f, err := safetensors.Open(path)
	if err != nil {
		return Text{}, nil, err
	}
	defer f.Close()
	if positive, err = readText(f, ""); err != nil {
		return Text{}, nil, fmt.Errorf("conditioning %s: %w", path, err)
	}
	_, hasContext := f.Lookup("negative.context")
	_, hasY := f.Lookup("negative.y")
	if !hasContext && !hasY {
		return positive, nil, nil
	}
	n, err := readText(f, "negative.")
	if err != nil {
		return Text{}, nil, fmt.Errorf("conditioning %s: %w", path, err)
	}
	if n.Tokens() != positive.Tokens() {
		return Text{}, nil, fmt.Errorf("conditioning %s: negative.context has %d tokens and context %d; pad them to the same number", path, n.Tokens(), positive.Tokens())
	}
	return positive, &n, nil
}

const maskName = "attention_mask"

func readText(f *safetensors.File, prefix string) (t Text, err error) {
	for _, c := range []struct {
		name   string
		rank   int
		most   tensor.Bytes
		values *[]float32
		shape  *tensor.Shape
	}{
		{prefix + "context", 3, maxText, &t.Context, &t.ContextShape},
		{prefix + "y", 2, maxText, &t.Y, &t.YShape},
		{prefix + maskName, 3, maxMask, &t.Mask, &t.MaskShape},
	} {
		entry, ok := f.Lookup(c.name)
		switch {
		case !ok && c.name == prefix+maskName:
			continue
		case !ok:
			return t, fmt.Errorf("tensor %s is missing; the file holds context [1,tokens,width] and y [1,width], and may hold negative.context and negative.y", c.name)
		case len(entry.Shape) != c.rank || entry.Shape[0] != 1 || entry.Size == 0:
			return t, fmt.Errorf("tensor %s is %v: want %d dimensions, the first of them 1", c.name, entry.Shape, c.rank)
		case entry.Size > c.most:
			return t, fmt.Errorf("tensor %s has %v, at most %v are taken", c.name, entry.Size, c.most)
		}
		if *c.values, *c.shape, err = f.Float32s(c.name); err != nil {
			return t, err
		}
	}
	return t, nil
}
