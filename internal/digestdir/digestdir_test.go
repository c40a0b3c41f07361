// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package digestdir

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func open(t *testing.T, limit int64) *Dir {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "files"), limit)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func put(t *testing.T, d *Dir, b []byte) (release func()) {
	t.Helper()
	path, release, err := d.Put(digestOf(b), int64(len(b)), func(w io.Writer) error { _, err := w.Write(b); return err })
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("it reads %d bytes (%v)", len(got), err)
	}
	return release
}

func TestWhatIsPutIsThere(t *testing.T) {
	d := open(t, 0)
	b := []byte("some bytes")
	put(t, d, b)()
	if err := os.WriteFile(filepath.Join(d.path, writing+"x"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := Open(d.path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, release, err := again.Use(digestOf(b)); err != nil {
		t.Error(err)
	} else {
		release()
	}
	if left, _ := filepath.Glob(filepath.Join(d.path, writing+"*")); len(left) > 0 {
		t.Errorf("%v is left of a process that ended", left)
	}
	// Changed on disk: another process finds it, and it is gone afterwards.
	if err := os.WriteFile(d.file(digestOf(b)), []byte("some other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := again.Use(digestOf(b)); !errors.Is(err, ErrMismatch) {
		t.Errorf("other bytes: %v", err)
	}
	if _, _, err := again.Use(digestOf(b)); !errors.Is(err, ErrMissing) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestPutRefuses(t *testing.T) {
	d := open(t, 100)
	b := []byte("some bytes")
	gone := errors.New("the sender is gone")
	for name, c := range map[string]struct {
		digest string
		bytes  int64
		fill   func(io.Writer) error
		want   error
	}{
		"a lie about the digest": {digestOf([]byte("other")), 10, func(w io.Writer) error { _, err := w.Write(b); return err }, ErrMismatch},
		"too few":                {digestOf(b), 11, func(w io.Writer) error { _, err := w.Write(b); return err }, ErrMismatch},
		"too many":               {digestOf(b), 9, func(w io.Writer) error { _, err := w.Write(b); return err }, ErrMismatch},
		"broken off":             {digestOf(b), 10, func(io.Writer) error { return gone }, gone},
		"too large":              {digestOf(b), 101, nil, ErrFull},
	} {
		if _, _, err := d.Put(c.digest, c.bytes, c.fill); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{"", "abc", "../../etc/passwd", digestOf(b) + "0", "Z" + digestOf(b)[1:]} {
		if _, _, err := d.Put(bad, 1, nil); err == nil {
			t.Errorf("digest %q was taken", bad)
		}
		if _, _, err := d.Use(bad); err == nil {
			t.Errorf("digest %q was looked for", bad)
		}
	}
	if left, err := os.ReadDir(d.path); err != nil || len(left) > 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
}

func TestRoomIsMade(t *testing.T) {
	d := open(t, 25)
	a, b, c := []byte("aaaaaaaaaa"), []byte("bbbbbbbbbb"), []byte("cccccccccc")
	put(t, d, a)()
	release := put(t, d, b)
	put(t, d, c)() // a was used longest ago
	if d.Has(digestOf(a)) || !d.Has(digestOf(b)) || !d.Has(digestOf(c)) {
		t.Error("another file than the one used longest ago was dropped")
	}
	put(t, d, a)() // b is in use
	if !d.Has(digestOf(b)) || d.Has(digestOf(c)) {
		t.Error("a file in use was dropped")
	}
	if _, _, err := d.Put(digestOf(c), 20, nil); !errors.Is(err, ErrFull) {
		t.Errorf("beside a file in use: %v", err)
	}
	if err := d.Keep(func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if d.Has(digestOf(a)) || !d.Has(digestOf(b)) {
		t.Error("Keep drops what nobody uses and nothing else")
	}
	release()
}

func TestTake(t *testing.T) {
	d := open(t, 0)
	b := []byte("some bytes")
	from := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(from, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is there
		_, release, err := d.Take(digestOf(b), from)
		if err != nil {
			t.Fatal(err)
		}
		release()
	}
	if err := os.Remove(from); err != nil {
		t.Fatal(err)
	}
	if _, release, err := d.Use(digestOf(b)); err != nil {
		t.Error(err)
	} else {
		release()
	}
	if err := os.WriteFile(from, b, 0o600); err != nil {
		t.Fatal(err)
	}
	other := digestOf([]byte("other"))
	if _, _, err := d.Take(other, from); !errors.Is(err, ErrMismatch) || d.Has(other) {
		t.Errorf("a file that is not what it is said to be: %v", err)
	}
	if _, err := os.Stat(from); err != nil {
		t.Errorf("the file that was offered: %v", err)
	}
}
