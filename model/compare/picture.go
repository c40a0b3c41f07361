// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"

	"github.com/distorch/distorch/model/source"
	"github.com/distorch/distorch/model/tensor"
)

// maxPixels bounds a picture: 8192x8192, which take 512 MiB at most.
const maxPixels = 1 << 26

// Picture is a decoded PNG or JPEG.
type Picture struct {
	image image.Image
	form  form
}

// form is how a picture's values are stored.
type form struct {
	channels int  // 1 grey, 3 colours, 4 with alpha
	deep     bool // 16 bit
}

func (f form) String() string {
	name := map[int]string{1: "grey", 3: "RGB", 4: "RGB with alpha"}[f.channels]
	if f.deep {
		return name + ", 16 bit"
	}
	return name + ", 8 bit"
}

func (f form) dtype() tensor.DType {
	if f.deep {
		return tensor.U16
	}
	return tensor.U8
}

// decode reads a picture of at most so many pixels.
func decode(src source.Source, kind Kind, most int64) (*Picture, error) {
	config, picture := png.DecodeConfig, png.Decode
	if kind == JPEG {
		config, picture = jpeg.DecodeConfig, jpeg.Decode
	}
	c, err := config(io.NewSectionReader(src, 0, src.Size()))
	if err != nil {
		return nil, fmt.Errorf("not a valid %s picture: %w", kind, err)
	}
	if n := int64(c.Width) * int64(c.Height); c.Width < 1 || c.Height < 1 || n/int64(c.Height) != int64(c.Width) || n > most {
		return nil, fmt.Errorf("%s picture of %dx%d pixels; 1 to %d pixels are taken", kind, c.Width, c.Height, most)
	}
	img, err := picture(io.NewSectionReader(src, 0, src.Size()))
	if err != nil {
		return nil, fmt.Errorf("not a valid %s picture: %w", kind, err)
	}
	return &Picture{img, formOf(img)}, nil
}

func formOf(img image.Image) form {
	switch img := img.(type) {
	case *image.Gray:
		return form{channels: 1}
	case *image.Gray16:
		return form{channels: 1, deep: true}
	case *image.NRGBA64:
		return form{channels: colours(img.Opaque()), deep: true}
	case *image.RGBA64:
		return form{channels: colours(img.Opaque()), deep: true}
	case interface{ Opaque() bool }:
		return form{channels: colours(img.Opaque())}
	}
	return form{channels: 4}
}

func colours(opaque bool) int {
	if opaque {
		return 3
	}
	return 4
}

// wider is a form that holds the values of both.
func wider(a, b form) form {
	return form{max(a.channels, b.channels), a.deep || b.deep}
}

// tensor is the picture in a form, [channels, height, width]: colours are not
// multiplied by alpha, and eight bits become sixteen by a factor of 257.
func (p *Picture) tensor(f form) Tensor {
	b := p.image.Bounds()
	width, height := b.Dx(), b.Dy()
	size := f.dtype().Size()
	raw := make([]byte, f.channels*width*height*size)
	for y := range height {
		for x := range width {
			c := nrgba64(p.image.At(b.Min.X+x, b.Min.Y+y))
			for i, v := range []uint16{c.R, c.G, c.B, c.A}[:f.channels] {
				at := ((i*height+y)*width + x) * size
				if f.deep {
					binary.LittleEndian.PutUint16(raw[at:], v)
				} else {
					raw[at] = byte(v >> 8)
				}
			}
		}
	}
	return Tensor{
		Name: "picture", DType: f.dtype(), Shape: tensor.Shape{int64(f.channels), int64(height), int64(width)}, Planes: true,
		Peak: float64(uint64(1)<<(8*size) - 1), Read: memory(raw),
	}
}

// nrgba64 is exact for every form that PNG and JPEG have: none of them stores
// colours that are multiplied by alpha.
func nrgba64(c color.Color) color.NRGBA64 {
	switch c := c.(type) {
	case color.NRGBA64:
		return c
	case color.NRGBA:
		return color.NRGBA64{R: 257 * uint16(c.R), G: 257 * uint16(c.G), B: 257 * uint16(c.B), A: 257 * uint16(c.A)}
	}
	r, g, b, a := c.RGBA()
	return color.NRGBA64{R: uint16(r), G: uint16(g), B: uint16(b), A: uint16(a)}
}

func memory(raw []byte) func(dst []byte, offset int64) error {
	return func(dst []byte, offset int64) error {
		if n := copy(dst, raw[min(offset, int64(len(raw))):]); n < len(dst) {
			return io.ErrUnexpectedEOF
		}
		return nil
	}
}
