// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"github.com/distorch/distorch/cmd/internal/picture"
	"github.com/distorch/distorch/model/demo"
	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/sampling"
	"github.com/distorch/distorch/model/tensor"
)

// runFiles are the files that a run will write. A nil one is not wanted.
type runFiles struct{ picture, latent *outFile }

// headerRoom is more than what a PNG or a latent file has beside its values.
const headerRoom = 64 << 10

// reserve takes the files' room before any step is made.
func (f *runFlags) reserve(r picture.Request) (files runFiles, err error) {
	shape := r.Model.LatentShape(r.Width, r.Height)
	elements, err := shape.Elements()
	if err != nil {
		return files, err
	}
	if f.out != "" {
		dots := int(shape[2]) * int(shape[3]) * 4 * demo.Zoom * demo.Zoom
		if files.picture, err = reserve(f.out, 4*dots+headerRoom, 0o666); err != nil {
			return files, err
		}
	}
	if f.saveLatent != "" {
		if files.latent, err = reserve(f.saveLatent, 8*int(elements)+headerRoom, 0o666); err != nil {
			files.abort()
			return files, err
		}
	}
	return files, nil
}

func (f *runFiles) abort() {
	f.picture.abort()
	f.latent.abort()
}

func (f *runFiles) commit(r picture.Request, result *picture.Result) error {
	if f.picture != nil {
		raw, err := encodePicture(result)
		if err == nil {
			err = f.picture.commit(raw)
		}
		if err != nil {
			return err
		}
	}
	if f.latent == nil {
		return nil
	}
	raw, err := encodeLatent(r, result.Latent, map[string]string{"digest": result.Digest, "numerics": result.Plan.GetNumerics()})
	if err != nil {
		return err
	}
	return f.latent.commit(raw)
}

func encodePicture(r *picture.Result) ([]byte, error) {
	img, err := demo.Decode(r.Latent, int(r.Shape[2]), int(r.Shape[3]))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = demo.EncodePNG(&b, demo.Enlarge(img, demo.Zoom))
	return b.Bytes(), err
}

// encodeLatent is the file of a latent of the model's space, with its facts
// beside those of the request.
func encodeLatent(r picture.Request, latent []float32, facts map[string]string) ([]byte, error) {
	outside := append([]float32{}, latent...)
	sampling.FluxLatents().Out(outside)
	shape := r.Model.LatentShape(r.Width, r.Height)
	metadata := map[string]string{
		"model": r.Model.Name, "seed": fmt.Sprint(r.Seed), "steps": fmt.Sprint(r.Steps), "cfg": fmt.Sprint(r.CFG),
		"guidance": fmt.Sprint(r.Guidance), "scheduler": string(r.Scheduler),
	}
	maps.Copy(metadata, facts)
	var b bytes.Buffer
	err := safetensors.Encode(&b, []safetensors.Data{
		safetensors.FromFloat32s("latent", shape, latent),
		safetensors.FromFloat32s("latent_tensor", shape, outside),
		safetensors.FromFloat32s("latent_format_version_0", tensor.Shape{0}, nil),
	}, metadata)
	return b.Bytes(), err
}

// stepFiles makes the folder of --save-steps and answers with what writes the
// latent after a step to it, nil without the flag. The folder must not hold
// anything yet: files of another run would be taken for this one's.
func (f *runFlags) stepFiles(r picture.Request) (func(step int, latent []float32) error, error) {
	if f.saveSteps == "" {
		return nil, nil
	}
	if err := os.MkdirAll(f.saveSteps, 0o777); err != nil {
		return nil, fmt.Errorf("--save-steps: %w", err)
	}
	there, err := os.ReadDir(f.saveSteps)
	if err != nil {
		return nil, fmt.Errorf("--save-steps: %w", err)
	}
	if len(there) > 0 {
		return nil, usage(fmt.Errorf("--save-steps %s: the folder is not empty; name one that is, or that does not exist", f.saveSteps))
	}
	return func(step int, latent []float32) error {
		raw, err := encodeLatent(r, latent, map[string]string{"step": fmt.Sprint(step)})
		if err != nil {
			return err
		}
		out, err := reserve(filepath.Join(f.saveSteps, fmt.Sprintf("step-%05d.latent", step)), len(raw), 0o666)
		if err != nil {
			return fmt.Errorf("--save-steps: %w", err)
		}
		return out.commit(raw)
	}, nil
}
