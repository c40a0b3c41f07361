// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/distorch/distorch/coordinator/comfy"
	"github.com/distorch/distorch/internal/comfyworker"
)

func uploaded(t *testing.T, p *Pool, f file, overwrite bool, content string) file {
	t.Helper()
	got, err := p.Upload(t.Context(), &comfy.Upload{FileRef: f, Overwrite: overwrite, Content: strings.NewReader(content), Size: int64(len(content))})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

const withImage = `{
 "1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
 "2": {"class_type": "LoadImage", "inputs": {"image": "sub/dog.png [input]"}},
 "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "c", "more": ["2", 0]}}
}`

func TestInputFiles(t *testing.T) {
	w := scripted(t, comfyworker.Config{})
	w.Put("input", "", "cat.png", []byte("another cat"))
	p := started(t, Config{}, w)
	cat := uploaded(t, p, file{Type: "input", Name: "cat.png"}, false, "cat")
	uploaded(t, p, file{Type: "input", Subfolder: "sub", Name: "dog.png"}, false, "dog")
	if !p.HasFile(cat) || p.HasFile(file{Type: "input", Name: "cow.png"}) || !p.HasFile(file{Type: "input", Name: "example.png"}) {
		t.Error("HasFile is wrong")
	}
	for seed := range 2 { // the second time nothing is given again
		if _, _, err := ran(t, p, prompted(t, "p", strings.ReplaceAll(withImage, `"c"`, fmt.Sprintf("%q", "c"+strings.Repeat("x", seed))))); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.Uploads(); n != 2 {
		t.Errorf("%d uploads to the worker, want 2", n)
	}
	sent := string(w.Prompts()[0])
	if !strings.Contains(sent, `"cat (1).png"`) || !strings.Contains(sent, `"sub/dog.png [input]"`) {
		t.Errorf("the worker has a cat of its own; it was sent %s", sent)
	}
	if status, body := viewed(t, p, comfy.View{File: cat}); status != 200 || body != "cat" {
		t.Errorf("cat: %d %q", status, body)
	}
	status, body := viewed(t, p, comfy.View{File: cat, Query: url.Values{"preview": {"webp;90"}}})
	if status != 200 || body != "RIFF0000WEBPcat" {
		t.Errorf("preview by a worker: %d %q", status, body)
	}
	// A worker that lost its files gets them again.
	w.Forget()
	if _, _, err := ran(t, p, prompted(t, "p", strings.ReplaceAll(withImage, `"c"`, `"new"`))); err != nil {
		t.Error(err)
	}
}

func TestUpload(t *testing.T) {
	p := started(t, Config{}, scripted(t, comfyworker.Config{}))
	f := file{Type: "input", Name: "a.png"}
	var got []string
	for _, u := range []struct {
		content   string
		overwrite bool
	}{{"one", false}, {"one", false}, {"two", false}, {"two", false}, {"three", false}, {"four", true}, {"two", false}} {
		got = append(got, uploaded(t, p, f, u.overwrite, u.content).Name)
	}
	if d := cmp.Diff([]string{"a.png", "a.png", "a (1).png", "a (1).png", "a (2).png", "a.png", "a (1).png"}, got); d != "" {
		t.Error(d)
	}
	mask, err := p.Upload(t.Context(), &comfy.Upload{FileRef: file{Type: "input", Name: "m.png"}, Original: &f, Content: strings.NewReader("alpha"), Size: 5})
	if err != nil {
		t.Fatal(err)
	}
	if _, body := viewed(t, p, comfy.View{File: mask}); body != "four+mask" {
		t.Errorf("mask on its picture: %q", body)
	}
	if _, err := p.Upload(t.Context(), &comfy.Upload{FileRef: file{Type: "input", Name: "n.png"}, Original: &file{Type: "input", Name: "none.png"}, Content: strings.NewReader("alpha")}); err != nil {
		t.Errorf("mask on nothing: %v", err)
	}
}

// TestUploadsOfOneName: uploads that come at once do not take each other's name.
func TestUploadsOfOneName(t *testing.T) {
	s, err := openShelf(t.TempDir(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	const clients = 16
	var names [clients]file
	var g errgroup.Group
	meet := make(chan struct{})
	for i := range clients {
		g.Go(func() (err error) {
			<-meet
			names[i], err = s.keep(file{Type: kindInput, Name: "cat.png"}, false, strings.NewReader(fmt.Sprint("cat ", i)))
			return err
		})
	}
	close(meet)
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		got, err := os.ReadFile(s.path(name))
		if want := fmt.Sprint("cat ", i); err != nil || string(got) != want {
			t.Errorf("%s has %q (%v), want %q", name.Name, got, err, want)
		}
	}
	if len(s.taken) != 0 {
		t.Errorf("%d names are still claimed", len(s.taken))
	}
}

func TestBadNames(t *testing.T) {
	p := started(t, Config{}, scripted(t, comfyworker.Config{}))
	for _, f := range []file{
		{Type: "input", Name: "../x"}, {Type: "input", Name: ".."}, {Type: "input", Name: ""}, {Type: "input", Subfolder: "../..", Name: "x"},
		{Type: "input", Subfolder: "/etc", Name: "passwd"}, {Type: "input", Subfolder: "a//b", Name: "x"}, {Type: "other", Name: "x"}, {Type: "", Name: "x"},
		{Type: "input", Name: "a\x00b"}, {Type: "input", Name: `a\b`}, {Type: "input", Name: "c:x"}, {Type: "input", Name: strings.Repeat("x", 241)},
		{Type: "input", Subfolder: strings.Repeat("a/", 20) + "a", Name: "x"}, {Type: "input", Name: "x" + partial},
	} {
		if _, err := p.Upload(t.Context(), &comfy.Upload{FileRef: f, Content: strings.NewReader("x")}); !errors.Is(err, comfy.ErrBadFile) {
			t.Errorf("upload %+v: %v", f, err)
		}
		if _, err := p.View(t.Context(), comfy.View{File: f}); !errors.Is(err, comfy.ErrBadFile) {
			t.Errorf("view %+v: %v", f, err)
		}
	}
}

func TestShelfIsBounded(t *testing.T) {
	dir := t.TempDir()
	s, err := openShelf(dir, 10)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, n int) error {
		return s.put(file{Type: kindOutput, Name: name}, strings.NewReader(strings.Repeat("x", n)))
	}
	if err := put("large", 11); !errors.Is(err, errTooLarge) {
		t.Errorf("a file larger than the shelf: %v", err)
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := put(name, 3); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.open(file{Type: kindOutput, Name: "a"}) // now b is the oldest
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := put("d", 4); err != nil {
		t.Fatal(err)
	}
	left := func() (out []string) {
		entries, err := os.ReadDir(filepath.Join(dir, kindOutput))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return out
	}
	if d := cmp.Diff([]string{"a", "c", "d"}, left()); d != "" {
		t.Error(d)
	}
	// The next process finds them, drops what is temporary or was cut off, and goes on counting.
	for name, content := range map[string]string{"output/a_00041_.png": "x", "temp/t.png": "x", "output/y" + partial: "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = openShelf(dir, 100); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"a", "a_00041_.png", "c", "d"}, left()); d != "" {
		t.Error(d)
	}
	if f, err := s.claim(file{Type: kindOutput, Name: "a_00001_.png"}); err != nil || f.Name != "a_00042_.png" {
		t.Errorf("%v %v", f, err)
	}
	if s.has(file{Type: kindTemp, Name: "t.png"}) {
		t.Error("a temporary file outlived its process")
	}
}

// TestClaimedNamesDiffer: whatever workers call their files, two have never one name.
func TestClaimedNamesDiffer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &shelf{files: map[file]*kept{}, taken: map[file]bool{}, counters: map[string]int{}}
		seen := map[file]bool{}
		for _, name := range rapid.SliceOfN(rapid.SampledFrom([]string{"a_00001_.png", "a_00002_.png", "a_00003_.png", "b.png", "b (1).png", "c", "a_00001.mp4", "a_99999_.png"}), 1, 60).Draw(t, "names") {
			f, err := s.claim(file{Type: kindOutput, Name: name})
			if err != nil {
				t.Fatal(err)
			}
			if seen[f] {
				t.Fatalf("%v is given out twice", f)
			}
			seen[f] = true
			if valid(f) != nil {
				t.Fatalf("%v is no valid name", f)
			}
		}
	})
}

func TestGetIsAUnion(t *testing.T) {
	other := usual()
	other["UNETLoader.unet_name"] = []string{"wan.safetensors", "flux.safetensors"}
	a, b := scripted(t, comfyworker.Config{}), scripted(t, comfyworker.Config{Files: other})
	p := started(t, Config{}, a, b)
	for path, want := range map[string]string{
		"/models/diffusion_models": `["flux.safetensors","wan.safetensors"]`, "/models": `["checkpoints","diffusion_models","vae"]`, "/models/none": "", "/embeddings": "[]",
	} {
		resp, err := p.Get(t.Context(), path, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want == "" && resp.StatusCode != http.StatusNotFound || want != "" && string(bytes.TrimSpace(body)) != want {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if err := p.Free(t.Context(), []byte(`{"unload_models":true}`)); err != nil || a.Freed() != 1 || b.Freed() != 1 {
		t.Errorf("free: %v, %d and %d calls", err, a.Freed(), b.Freed())
	}
	s := p.Stats()
	if len(s.Devices) != 2 || s.Devices[1].Name != "b: cuda:0 scripted" || s.System.RAMTotal != 128<<30 || s.System.ComfyUIVersion != "0.3.64" {
		t.Errorf("%+v", s)
	}
}

func TestParseURL(t *testing.T) {
	for text, want := range map[string]string{
		"http://10.0.0.7:8188": "http://10.0.0.7:8188", "http://GPU1:8188/": "http://gpu1:8188", " https://a.b/comfy/ ": "https://a.b/comfy", "http://[::1]:8188": "http://[::1]:8188",
		"": "", "10.0.0.7:8188": "", "ftp://x": "", "http://": "", "http://u:p@x": "", "http://x?y": "", "http://x#y": "", "http://x:0": "", "http://x:99999": "", "http://x\x00": "",
		"http://" + strings.Repeat("x", 3000): "",
	} {
		got, err := ParseURL(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.60q: %q %v, want %q", text, got, err, want)
		}
	}
}
