// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"
)

// testConnection is one, with its line.
func testConnection(t testing.TB) (Connection, string) {
	t.Helper()
	ca, err := NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	creds, err := ca.Issue(Subject{Role: RoleCoordinator, Name: "coordinator"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := creds.NewConnection([]string{"pc1:7801", "[fe80::1%eth0]:7801"})
	if err != nil {
		t.Fatal(err)
	}
	text, err := c.Text()
	if err != nil {
		t.Fatal(err)
	}
	return c, text
}

func TestConnection(t *testing.T) {
	want, text := testConnection(t)
	got, err := ParseConnection(" " + text + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(got.Addresses, " ") != strings.Join(want.Addresses, " ") || got.Secret != want.Secret || !got.CA.Equal(want.CA) {
		t.Errorf("%v became %v", want, got)
	}
	if strings.Contains(got.String()+got.LogValue().String(), got.Secret) {
		t.Error("the secret shows")
	}
	line := func(json string) string { return connectionPrefix + base64.RawURLEncoding.EncodeToString([]byte(json)) }
	for name, c := range map[string]struct{ text, want string }{
		"empty":        {"", "begin with"},
		"a join token": {"distorch-join-1.e30", "begin with"},
		"cut":          {text[:len(text)-3], "malformed"},
		"wrapped":      {text[:100] + "\n" + text[100:], "a character is missing or wrong"},
		"long":         {text + strings.Repeat(" ", MaxConnectionBytes), "at most 16384"},
		"no JSON":      {line("{"), "its fields cannot be read"},
		"a member":     {line(`{"a":[],"x":1}`), "its fields cannot be read"},
		"no CA":        {line(`{"a":["a:1"],"ca":"","t":"s"}`), "its CA is not one certificate"},
	} {
		if _, err := ParseConnection(c.text); !errors.Is(err, ErrConnectionMalformed) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// FuzzConnection: a line that is read is written the same way again.
func FuzzConnection(f *testing.F) {
	_, text := testConnection(f)
	f.Add(text)
	f.Add("distorch1.e30")
	f.Add("distorch1." + base64.RawURLEncoding.EncodeToString([]byte(`{"a":["a:1"],"ca":"-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n","t":"s"}`)))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseConnection(text)
		if err != nil {
			if !errors.Is(err, ErrConnectionMalformed) {
				t.Errorf("%v", err)
			}
			return
		}
		again, err := c.Text()
		if err != nil {
			t.Fatalf("a line that was read cannot be written: %v", err)
		}
		if d, err := ParseConnection(again); err != nil || d.Secret != c.Secret || !d.CA.Equal(c.CA) {
			t.Errorf("%v became %v, %v", c, d, err)
		}
	})
}
