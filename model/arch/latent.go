// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package arch

// Latent is what a model's x is in: its channels, and how a VAE's latents z
// become it, x = (z - Shift)·Scale (ComfyUI comfy/latent_formats.py).
type Latent struct {
	Channels int64   `json:"channels"`
	Scale    float64 `json:"scale"`
	Shift    float64 `json:"shift"`
}

// LatentOf is the latent of an architecture with hyper-parameters as
// HyperParameters writes them.
func LatentOf(arch string, values map[string]string) (Latent, error) {
	p, err := ParamsOf(arch, values)
	if err != nil {
		return Latent{}, err
	}
	f, ok := p.(Flux)
	if !ok {
		return Latent{}, unsupported("latent", "of %s", quote(arch))
	}
	return Latent{Channels: f.Channels, Scale: 0.3611, Shift: 0.1159}, nil
}
