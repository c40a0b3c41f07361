// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"testing"

	"github.com/distorch/distorch/coordinator/comfy"
)

// FuzzWorker gives what a worker may answer to everything that reads it.
func FuzzWorker(f *testing.F) {
	f.Add([]byte(`{"A":{"input":{"required":{"x":[["a","b"],{"image_upload":true}],"y":["COMBO",{"options":["c",1]}]},"optional":{"z":["INT",{}]}},"output":["MODEL"]}}`))
	f.Add([]byte(`{"prompt_id":"p","node":"n_distorch","nodes":{"n_distorch":{},"n":{"prompt_id":"p"}},"executed":["n","n_distorch"]}`))
	f.Add([]byte(`{"1":{"class_type":"UNETLoader","inputs":{"unet_name":"m","l":["2",0]}},"2":{"class_type":"CheckpointLoaderSimple","inputs":{}}}`))
	f.Add([]byte("\x00\x00\x00\x04\x00\x00\x00\x11{\"prompt_id\":\"p\"}\xff\xd8"))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if classes, err := parseClasses(raw); err == nil {
			for name, c := range union([]map[string]class{classes, classes}) {
				if !json.Valid(c) {
					t.Errorf("%s: %s", name, c)
				}
			}
			listedFiles(classes)
			p := &Pool{cfg: Config{Loader: "A"}, models: []Model{{File: "m"}}}
			p.loaderInputs(&worker{classes: classes}, p.models[0])
			if g, err := parseGraph(raw); err == nil {
				if out, _ := p.replaced(&worker{classes: classes}, g); !json.Valid(out.raw()) {
					t.Errorf("%s", out.raw())
				}
			}
		}
		r := &run{lease: &lease{id: "p", prompt: &comfy.Prompt{ID: "q"}}, started: true}
		r.alias = aliases{added: map[string]string{"n_distorch": "n"}, classes: map[string]string{"n": "C"}}
		if body, ok := r.binary(raw); ok && len(body) < 8 {
			t.Errorf("%q", body)
		}
		if o, ok := asObject(raw); ok {
			for _, kind := range []string{"progress_state", "execution_error", "execution_cached", "executing"} {
				if !json.Valid(r.alias.apply(kind, o).raw()) {
					t.Errorf("%s of %s", kind, raw)
				}
			}
			promptError(o)
		}
		refusal(&statusError{"/prompt", 400, raw})
		if f := annotated(string(raw)); valid(f) == nil && f.Name == "" {
			t.Errorf("%+v", f)
		}
		numbered(string(raw))
		ParseURL(string(raw))
	})
}
