// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"bytes"
	"encoding/json"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
)

// emptyPicture is a picture; kind 6 has an alpha channel.
func emptyPicture(format string, width, height, kind int) []byte {
	var b bytes.Buffer
	var err error
	img := image.NewNRGBA(image.Rect(0, 0, width, height))
	if kind != 6 {
		for i := range img.Pix {
			img.Pix[i] = 0xff
		}
	}
	img.Set(0, 0, color.NRGBA{1, 2, 3, img.Pix[3]})
	if format == "png" {
		err = png.Encode(&b, img)
	} else {
		err = jpeg.Encode(&b, img, nil)
	}
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}

// describe is a picture as the recordings describe it.
func describe(b []byte) any {
	switch {
	case bytes.HasPrefix(b, []byte("\xff\xd8")):
		return map[string]any{"image": "jpeg"}
	case bytes.HasPrefix(b, []byte("RIFF")):
		return map[string]any{"image": "webp"}
	case !bytes.HasPrefix(b, []byte("\x89PNG")):
		return string(b)
	case len(b) < 26:
		return map[string]any{"image": "png"}
	}
	number := func(n int) json.Number { return json.Number(string(encode(n))) }
	texts := []any{}
	for at := 8; at+8 <= len(b); {
		n := int(b[at])<<24 | int(b[at+1])<<16 | int(b[at+2])<<8 | int(b[at+3])
		if string(b[at+4:at+8]) == "tEXt" {
			key, _, _ := bytes.Cut(b[at+8:at+8+n], []byte{0})
			texts = append(texts, []any{"tEXt", string(key)})
		}
		at += n + 12
	}
	return map[string]any{
		"image": "png", "width": number(int(b[18])<<8 | int(b[19])), "height": number(int(b[22])<<8 | int(b[23])),
		"bit_depth": number(int(b[24])), "colour_type": number(int(b[25])), "text_chunks": texts,
	}
}
