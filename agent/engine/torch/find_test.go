// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/agent/engine/torch/torchtest"
)

// tree makes files below a new folder.
func tree(t *testing.T, files ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, f := range files {
		path := filepath.Join(root, filepath.FromSlash(f))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestFind(t *testing.T) {
	for name, tc := range map[string]struct {
		files  []string
		search func(root string) torch.Search
		want   []string
	}{
		"the one that is named": {
			nil, func(string) torch.Search { return torch.Search{Python: "/opt/python", ComfyUI: "/comfy"} }, []string{"/opt/python"},
		},
		"the portable build": {
			[]string{"ComfyUI/main.py", "ComfyUI/comfy/x", "python_embeded/python.exe"}, //nolint:misspell // theirs
			func(root string) torch.Search { return torch.Search{ComfyUI: filepath.Join(root, "ComfyUI")} },
			[]string{"python_embeded/python.exe"}, //nolint:misspell // theirs
		},
		"a virtual environment, by a folder of models": {
			[]string{"ComfyUI/main.py", "ComfyUI/comfy/x", "ComfyUI/venv/bin/python", "ComfyUI/models/diffusion_models/a.safetensors"},
			func(root string) torch.Search {
				return torch.Search{Models: []string{filepath.Join(root, "ComfyUI", "models", "diffusion_models")}}
			},
			[]string{"ComfyUI/venv/bin/python"},
		},
		"the folder around, an environment beside": {
			[]string{"ComfyUI/main.py", "ComfyUI/comfy/x", ".venv/bin/python"},
			func(root string) torch.Search { return torch.Search{ComfyUI: root} },
			[]string{".venv/bin/python"},
		},
		"PATH": {
			[]string{"bin/python3"}, func(string) torch.Search { return torch.Search{Models: []string{"/nowhere"}} }, []string{"bin/python3"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, tc.files...)
			t.Setenv("PATH", filepath.Join(root, "bin"))
			var got []string
			for _, c := range torch.Find(tc.search(root)) {
				if rel, err := filepath.Rel(root, c.Python); err == nil && filepath.IsLocal(rel) {
					c.Python = filepath.ToSlash(rel)
				}
				got = append(got, c.Python)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFirst(t *testing.T) {
	python := torchtest.Python(t)
	info, err := torch.First(t.Context(), torch.Search{Python: python})
	if err != nil || info.Python != python || info.Version == "" || len(info.Devices) == 0 || info.Devices[0].ID != cpu {
		t.Errorf("%+v, %v", info, err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := torch.First(t.Context(), torch.Search{}); !errors.Is(err, torch.ErrAbsent) {
		t.Errorf("no Python at all: %v", err)
	}
}
