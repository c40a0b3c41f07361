// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distorch/distorch/model/tensor"
)

// file is a blob of a size, with its digest.
func file(t testing.TB, elements int64) (string, []byte) {
	t.Helper()
	b := pack(t, nil, input{"t", tensor.F32, tensor.Shape{elements}})
	return digestOf(b), b
}

// TestBlobsDropTheLeastRecentlyUsed, also of those that an earlier process kept.
func TestBlobsDropTheLeastRecentlyUsed(t *testing.T) {
	dir := t.TempDir()
	const each = 1000
	open := func() *Blobs {
		b, err := OpenBlobs(dir, 3*4*each+3*200)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := open()
	var names []string
	put := func(elements int64) {
		d, raw := file(t, elements)
		if err := b.Put(d, int64(len(raw)), bytes.NewReader(raw)); err != nil {
			t.Fatal(err)
		}
		names = append(names, d)
	}
	kept := func() (out string) {
		for i, d := range names {
			_, err := os.Stat(filepath.Join(dir, d))
			if b.byHash[d] != nil != (err == nil) {
				t.Errorf("blob %d is known: %v; its file: %v", i, b.byHash[d] != nil, err)
			}
			if err == nil {
				out += string(rune('0' + i))
			}
		}
		return out
	}
	put(each)
	put(each + 1)
	put(each + 2)
	if _, _, ok := b.Use(names[0]); !ok {
		t.Error("the first is gone")
	}
	put(each + 3)
	if is := kept(); is != "023" {
		t.Errorf("kept %s", is)
	}
	// A restart knows the order by the files' times.
	for i, ago := range map[int]time.Duration{0: time.Hour, 2: 3 * time.Hour, 3: 2 * time.Hour} {
		at := time.Now().Add(-ago)
		if err := os.Chtimes(filepath.Join(dir, names[i]), at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, arrivingPrefix+"1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	b = open()
	if _, err := os.Stat(filepath.Join(dir, arrivingPrefix+"1")); err == nil {
		t.Error("what an earlier process began is there")
	}
	put(each + 4)
	if is := kept(); is != "034" {
		t.Errorf("kept %s after a restart", is)
	}
	if _, err := b.Path(names[1]); asError(err).Code != CodeMissingBlobs {
		t.Errorf("a dropped one: %v", err)
	}
}

// TestBadBlobs: nothing of them stays.
func TestBadBlobs(t *testing.T) {
	dir := t.TempDir()
	b, err := OpenBlobs(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	digest, raw := file(t, 100)
	zip := []byte("PK\x03\x04 a zip file, not safetensors")
	truncated := raw[:len(raw)-4]
	for name, c := range map[string]struct {
		digest string
		n      int
		body   []byte
		text   string
	}{
		"another hash":        {strings.Repeat("0", 64), len(raw), raw, "the body's SHA-256 is " + digest + ", not 0000"},
		"fewer bytes":         {digest, len(raw), truncated, "the body ends after"},
		"a zip file":          {digestOf(zip), len(zip), zip, "the blob is no safetensors"},
		"truncated, as named": {digestOf(truncated), len(truncated), truncated, "the blob is no safetensors"},
	} {
		err := b.Put(c.digest, int64(c.n), bytes.NewReader(c.body))
		if e := asError(err); err == nil || e.Code != CodeBadRequest || !strings.Contains(e.Message, c.text) {
			t.Errorf("%s: %v, want %q", name, err, c.text)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 || b.all != 0 {
		t.Errorf("%d files and %d bytes are left; %v", len(left), b.all, err)
	}
}

// TestOneBlobFromMany at the same time is kept once.
func TestOneBlobFromMany(t *testing.T) {
	dir := t.TempDir()
	b, err := OpenBlobs(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	digest, raw := file(t, 1000)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := b.Put(digest, int64(len(raw)), bytes.NewReader(raw)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || b.all != int64(len(raw)) {
		t.Errorf("%d files, %d bytes of %d; %v", len(left), b.all, len(raw), err)
	}
}
