// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package sampling

// LatentFormat maps a VAE's latents to the model's space and back:
// model = (vae - Shift) * Scale.
type LatentFormat struct{ Scale, Shift float32 }

// FluxLatents is FLUX.1's.
func FluxLatents() LatentFormat { return LatentFormat{Scale: 0.3611, Shift: 0.1159} }

// In maps z to the model's space, in place. An all-zero latent, which means
// "none", stays zero.
func (f LatentFormat) In(z []float32) {
	if allZero(z) {
		return
	}
	for i, v := range z {
		z[i] = (v - f.Shift) * f.Scale
	}
}

// Out maps x back to what a VAE reads and ComfyUI shows, in place.
func (f LatentFormat) Out(x []float32) {
	for i, v := range x {
		x[i] = v/f.Scale + f.Shift
	}
}

// FluxMaskChannels makes the last 64 input channels of FLUX.1 Fill, [n,64,h,w],
// of pixel masks [n,1,8h,8w]: channel 8·(y mod 8)+(x mod 8) holds pixel (y,x) of
// each cell (ComfyUI comfy/model_base.py Flux.concat_cond).
func FluxMaskChannels(mask []float32, n, h, w int) []float32 {
	const cell = 8
	out := make([]float32, len(mask))
	for i := range n {
		for c := range cell * cell {
			for y := range h {
				for x := range w {
					out[((i*cell*cell+c)*h+y)*w+x] = mask[(i*cell*h+y*cell+c/cell)*cell*w+x*cell+c%cell]
				}
			}
		}
	}
	return out
}

func allZero(z []float32) bool {
	for _, v := range z {
		if v != 0 {
			return false
		}
	}
	return true
}

// Start is x before the first step: sigma*noise + (1-sigma)*latent, where
// latent is in the model's space or nil for none.
func Start(noise, latent []float32, sigma float32) []float32 {
	x := make([]float32, len(noise))
	for i, n := range noise {
		x[i] = sigma * n
		if latent != nil {
			x[i] = float32(sigma*n) + float32((1-sigma)*latent[i])
		}
	}
	return x
}

// Finish undoes Start's weight of the latent after the last step, in place:
// x / (1 - last noise level).
func Finish(x []float32, last float32) {
	if last == 0 {
		return
	}
	for i, v := range x {
		x[i] = v / (1 - last)
	}
}
