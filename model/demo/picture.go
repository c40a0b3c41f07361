// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"
)

// A latent has Channels channels, of which the first twelve hold 2x2 pixels of
// three colours; DefaultSide is its height and width in training.
const (
	Channels    = 16
	DefaultSide = 16
	// Zoom is how much larger than its pixels a picture is shown.
	Zoom = 8
)

// Decode is the picture of a latent [Channels, h, w] in the model's space, of
// 2h by 2w pixels: channel rgb*4 + dy*2 + dx holds the colour of pixel
// (2y+dy, 2x+dx), from -1 to 1.
func Decode(latent []float32, h, w int) (*image.NRGBA, error) {
	const largest = 4096
	if h < 1 || w < 1 || h > largest || w > largest || len(latent) != Channels*h*w {
		return nil, fmt.Errorf("demo picture: %d values are not a latent of %dx%dx%d", len(latent), Channels, h, w)
	}
	img := image.NewNRGBA(image.Rect(0, 0, 2*w, 2*h))
	for y := range 2 * h {
		for x := range 2 * w {
			at := img.PixOffset(x, y)
			for c := range 3 {
				channel := c*4 + y%2*2 + x%2
				img.Pix[at+c] = level(latent[(channel*h+y/2)*w+x/2])
			}
			img.Pix[at+3] = 255
		}
	}
	return img, nil
}

// level maps [-1,1] to 0…255, rounding to even; NaN is 0.
func level(v float32) uint8 {
	x := math.RoundToEven(float64((v + 1) * 127.5))
	if !(x > 0) {
		return 0
	}
	return uint8(min(x, 255))
}

// Enlarge is img with each pixel made factor by factor.
func Enlarge(img *image.NRGBA, factor int) *image.NRGBA {
	b := img.Bounds()
	out := image.NewNRGBA(image.Rect(0, 0, b.Dx()*factor, b.Dy()*factor))
	for y := range out.Rect.Dy() {
		for x := range out.Rect.Dx() {
			copy(out.Pix[out.PixOffset(x, y):][:4], img.Pix[img.PixOffset(b.Min.X+x/factor, b.Min.Y+y/factor):])
		}
	}
	return out
}

// Sheet lays pictures of one size out in rows of columns on white, gap pixels
// apart and half of it from the edge.
func Sheet(pictures []*image.NRGBA, columns, gap int) (*image.NRGBA, error) {
	if len(pictures) == 0 || columns < 1 || gap < 0 {
		return nil, fmt.Errorf("demo sheet: %d pictures in %d columns", len(pictures), columns)
	}
	cell := pictures[0].Bounds().Size()
	rows := (len(pictures) + columns - 1) / columns
	out := image.NewNRGBA(image.Rect(0, 0, columns*(cell.X+gap), rows*(cell.Y+gap)))
	draw.Draw(out, out.Bounds(), image.NewUniform(color.White), image.Point{}, draw.Src)
	for i, p := range pictures {
		if p.Bounds().Size() != cell {
			return nil, fmt.Errorf("demo sheet: picture %d is %v, the first is %v", i+1, p.Bounds().Size(), cell)
		}
		at := image.Pt(i%columns*(cell.X+gap)+gap/2, i/columns*(cell.Y+gap)+gap/2)
		draw.Draw(out, image.Rectangle{Min: at, Max: at.Add(cell)}, p, p.Bounds().Min, draw.Src)
	}
	return out, nil
}

// EncodePNG writes img as PNG.
func EncodePNG(w io.Writer, img image.Image) error {
	return (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(w, img)
}

// SheetPrompts are the nine prompts of the demo's sheet.
func SheetPrompts() []string {
	return []string{
		"large red circle on blue", "small yellow square on purple", "large green triangle on white",
		"large orange ring on black", "small white cross on red", "large purple diamond on yellow",
		"small blue circle on orange", "large black square on green", "small red diamond on white",
	}
}
