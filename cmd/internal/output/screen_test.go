// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package output

import (
	"bytes"
	"testing"
)

func TestScreen(t *testing.T) {
	show := func(s *Screen, b *bytes.Buffer) string {
		for _, text := range []string{"one\ntwo\n", "long line\n", "x\n"} {
			if err := s.Show(text); err != nil {
				t.Fatal(err)
			}
		}
		return b.String()
	}
	for name, c := range map[string]struct {
		columns, rows int
		want          string
	}{
		"in place":       {80, 24, "one\ntwo\n\x1b[2F\x1b[Jlong line\n\x1b[1F\x1b[Jx\n"},
		"wrapped":        {4, 24, "one\ntwo\n\x1b[2F\x1b[Jlong line\n\x1b[3F\x1b[Jx\n"},
		"full":           {80, 2, "one\ntwo\n\x1b[H\x1b[2Jlong line\n\x1b[1F\x1b[Jx\n"},
		"size not known": {0, 0, "one\ntwo\n\x1b[2F\x1b[Jlong line\n\x1b[1F\x1b[Jx\n"},
	} {
		var b bytes.Buffer
		s := &Screen{w: &b, size: func() (int, int) { return c.columns, c.rows }}
		if got := show(s, &b); got != c.want || !s.Terminal() {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	var b bytes.Buffer
	s := NewScreen(&b)
	if got := show(s, &b); got != "one\ntwo\nlong line\nx\n" || s.Terminal() {
		t.Errorf("no terminal: %q", got)
	}
}
