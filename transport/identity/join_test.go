// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTokenRoundTrip(t *testing.T) {
	c := issue(t, newTestCA(t), RoleCoordinator, "c")
	want, err := c.NewToken([]string{"10.0.0.1:7800", "[fe80::1%eth0]:7800", "pc1.lan:1"})
	if err != nil {
		t.Fatal(err)
	}
	text, err := want.Text()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseToken(" " + text + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if strings.Contains(want.String(), text[20:40]) || want.LogValue().String() != want.String() {
		t.Error("a token's name must not hold its secret")
	}
}

func token(body string) string {
	return tokenPrefix + base64.RawURLEncoding.EncodeToString([]byte(body))
}

const (
	goodHash    = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	goodSecret  = "AAAAAAAAAAAAAAAAAAAAAA"
	goodCluster = "aaaaaaaaaaaaaaaa"
	goodID      = "0123456789abcdef"
)

func tokenBody(address, cluster, hash, id, secret string) string {
	return `{"a":["` + address + `"],"c":"` + cluster + `","h":"` + hash + `","i":"` + id + `","s":"` + secret + `"}`
}

func TestParseTokenRefuses(t *testing.T) {
	good := tokenBody("a:1", goodCluster, goodHash, goodID, goodSecret)
	if _, err := ParseToken(token(good)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	cases := map[string]string{
		"empty":           "",
		"prefix alone":    tokenPrefix,
		"other version":   strings.Replace(token(good), "-1.", "-2.", 1),
		"cut":             token(good)[:len(token(good))-4],
		"padding":         token(good) + "=",
		"line break":      token(good)[:40] + "\n" + token(good)[40:],
		"too long":        token(strings.Repeat(" ", MaxTokenBytes) + good),
		"not JSON":        token("x"),
		"unknown field":   token(strings.Replace(good, `{`, `{"x":1,`, 1)),
		"duplicate field": token(strings.Replace(good, `{`, `{"i":"`+goodID+`",`, 1)),
		"trailing":        token(good + "{}"),
		"no address":      token(strings.Replace(good, `["a:1"]`, `[]`, 1)),
		"many addresses":  token(strings.Replace(good, `["a:1"]`, `["a:1"`+strings.Repeat(`,"a:1"`, 8)+`]`, 1)),
		"no port":         token(tokenBody("a", goodCluster, goodHash, goodID, goodSecret)),
		"port 0":          token(tokenBody("a:0", goodCluster, goodHash, goodID, goodSecret)),
		"port 65536":      token(tokenBody("a:65536", goodCluster, goodHash, goodID, goodSecret)),
		"no host":         token(tokenBody(":1", goodCluster, goodHash, goodID, goodSecret)),
		"odd host":        token(tokenBody("a b:1", goodCluster, goodHash, goodID, goodSecret)),
		"cluster":         token(tokenBody("a:1", "../../../../etcd", goodHash, goodID, goodSecret)),
		"short hash":      token(tokenBody("a:1", goodCluster, goodHash[1:], goodID, goodSecret)),
		"id":              token(tokenBody("a:1", goodCluster, goodHash, "0123456789ABCDEF", goodSecret)),
		"short secret":    token(tokenBody("a:1", goodCluster, goodHash, goodID, goodSecret[1:])),
		"loose bits":      token(tokenBody("a:1", goodCluster, goodHash, goodID, goodSecret[:21]+"B")),
	}
	for name, text := range cases {
		if _, err := ParseToken(text); !errors.Is(err, ErrTokenMalformed) {
			t.Errorf("%s: got %v, want ErrTokenMalformed", name, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(token(tokenBody("a:1", goodCluster, goodHash, goodID, goodSecret)))
	f.Add(token(tokenBody("[::1]:7800", goodCluster, goodHash, goodID, goodSecret)))
	f.Add(tokenPrefix + "e30")
	f.Add(tokenPrefix)
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseToken(text)
		if err != nil {
			if !errors.Is(err, ErrTokenMalformed) {
				t.Fatalf("an error without its class: %v", err)
			}
			return
		}
		again, err := got.Text()
		if err != nil {
			t.Fatalf("parsed but cannot be written: %v", err)
		}
		back, err := ParseToken(again)
		if err != nil {
			t.Fatalf("written but cannot be parsed: %v", err)
		}
		if d := cmp.Diff(got, back); d != "" {
			t.Fatal(d)
		}
	})
}

// memoryTokens is a TokenStore that says what it is told to.
type memoryTokens struct {
	mu     sync.Mutex
	tokens map[string][sha256.Size]byte
	used   map[string]Redemption
	names  map[string]string
	fail   error
}

func newMemoryTokens() *memoryTokens {
	return &memoryTokens{tokens: map[string][sha256.Size]byte{}, used: map[string]Redemption{}, names: map[string]string{}}
}

func (m *memoryTokens) CreateToken(_ context.Context, id string, hash [sha256.Size]byte, _ time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[id] = hash
	return nil
}

func (m *memoryTokens) RedeemToken(_ context.Context, r Redemption) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	if hash, ok := m.tokens[r.TokenID]; !ok || hash != r.SecretHash {
		return ErrTokenUnknown
	}
	if u, ok := m.used[r.TokenID]; ok && u != r {
		return ErrTokenUsed
	}
	if holder, ok := m.names[r.Name]; ok && holder != r.KeyHash {
		return &NameTakenError{Name: r.Name, KeyHash: holder}
	}
	m.used[r.TokenID], m.names[r.Name] = r, r.KeyHash
	return nil
}

type joinBench struct {
	ca      *CA
	creds   *Credentials
	tokens  *memoryTokens
	address string
}

func (b *joinBench) token(t *testing.T) Token {
	t.Helper()
	tok, err := b.creds.NewToken([]string{b.address})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.tokens.CreateToken(t.Context(), tok.ID, tok.SecretHash(), DefaultTokenTTL); err != nil {
		t.Fatal(err)
	}
	return tok
}

func serveJoins(t *testing.T) *joinBench {
	t.Helper()
	b := &joinBench{ca: newTestCA(t), tokens: newMemoryTokens()}
	b.creds = issue(t, b.ca, RoleCoordinator, "c")
	mux, err := NewMux(MuxConfig{Listener: listen(t), TLS: b.creds.ServerTLSWithJoin([]string{ALPNControl})})
	if err != nil {
		t.Fatal(err)
	}
	b.address = mux.Addr().String()
	ln, err := mux.Listen(ALPNJoin)
	if err != nil {
		t.Fatal(err)
	}
	server, err := NewJoinServer(JoinConfig{
		CA: b.ca, Tokens: b.tokens, GossipKey: bytes.Repeat([]byte{7}, gossipBytes),
		Cluster: func() Cluster {
			return Cluster{ID: b.ca.Cluster(), Etcd: []string{"https://10.0.0.1:7801"}, Coordinators: []string{b.address}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := mux.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := server.Serve(ctx, ln); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return b
}

func TestJoin(t *testing.T) {
	b := serveJoins(t)
	d := openTestDir(t)
	tok := b.token(t)
	c, err := Join(t.Context(), d, SlotNode, tok, "pc2")
	if err != nil {
		t.Fatal(err)
	}
	if p := c.Self(); p.Role != RoleAgent || p.Name != "pc2" || p.Cluster != b.ca.Cluster() {
		t.Errorf("joined as %v", p)
	}
	loaded, err := d.Load(SlotNode)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Self() != c.Self() {
		t.Errorf("stored %v, got %v", loaded.Self(), c.Self())
	}
	cluster, err := d.Cluster()
	if err != nil || len(cluster.Etcd) != 1 || cluster.Coordinators[0] != b.address {
		t.Errorf("cluster %+v, %v", cluster, err)
	}
	if key, err := d.GossipKey(); err != nil || key[0] != 7 {
		t.Errorf("gossip key %v, %v", key, err)
	}
	conn, err := c.Dial(t.Context(), b.address, ALPNControl, Expect{Roles: []Role{RoleCoordinator}})
	if err != nil {
		t.Fatalf("the new certificate does not work: %v", err)
	}
	conn.Close()

	if _, err := Join(t.Context(), d, SlotNode, tok, "pc2"); err != nil {
		t.Errorf("the same machine may repeat its join: %v", err)
	}
	if _, err := Join(t.Context(), openTestDir(t), SlotNode, tok, "pc3"); !errors.Is(err, ErrTokenUsed) {
		t.Errorf("second use: got %v, want ErrTokenUsed", err)
	}
	fresh := b.token(t)
	var taken *NameTakenError
	if _, err := Join(t.Context(), openTestDir(t), SlotNode, fresh, "pc2"); !errors.As(err, &taken) || taken.KeyHash != c.Self().KeyHash ||
		!strings.Contains(err.Error(), "distorch nodes remove pc2") {
		t.Errorf("taken name: got %v", err)
	}
	if _, err := Join(t.Context(), openTestDir(t), SlotNode, fresh, "pc3"); err != nil {
		t.Errorf("a refused name must not cost the token: %v", err)
	}
}

func TestJoinRefused(t *testing.T) {
	b := serveJoins(t)
	other := issue(t, newTestCA(t), RoleCoordinator, "c")
	for _, tc := range []struct {
		name   string
		change func(*Token)
		fail   error
		want   error
	}{
		{"unknown id", func(tok *Token) { tok.ID = goodID }, nil, ErrTokenUnknown},
		{"wrong secret", func(tok *Token) { tok.Secret[0] ^= 1 }, nil, ErrTokenUnknown},
		{"expired", nil, ErrTokenExpired, ErrTokenExpired},
		{"another CA", func(tok *Token) { tok.CAHash = other.CAHash() }, nil, ErrTokenOtherCluster},
		{"another cluster's token", func(tok *Token) { *tok, _ = other.NewToken([]string{b.address}) }, nil, ErrTokenOtherCluster},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tok := b.token(t)
			if tc.change != nil {
				tc.change(&tok)
			}
			b.tokens.fail = tc.fail
			d := openTestDir(t)
			if _, err := Join(t.Context(), d, SlotNode, tok, "pc2"); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if _, err := d.Load(SlotNode); !errors.Is(err, ErrNotJoined) {
				t.Errorf("a refused join left an identity: %v", err)
			}
		})
	}
	t.Run("internal errors stay inside", func(t *testing.T) {
		b.tokens.fail = errors.New("etcd at 10.0.0.1 is gone")
		_, err := Join(t.Context(), openTestDir(t), SlotNode, b.token(t), "pc2")
		var refused *JoinError
		if !errors.As(err, &refused) || strings.Contains(err.Error(), "etcd") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a directory of another cluster", func(t *testing.T) {
		d := openTestDir(t)
		if _, err := d.InitCluster(epoch); err != nil {
			t.Fatal(err)
		}
		if _, err := Join(t.Context(), d, SlotNode, b.token(t), "pc2"); !errors.Is(err, ErrTokenOtherCluster) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		ln := listen(t)
		ln.Close()
		tok := b.token(t)
		tok.Addresses = []string{ln.Addr().String()}
		if _, err := Join(t.Context(), openTestDir(t), SlotNode, tok, "pc2"); err == nil || !strings.Contains(err.Error(), tok.Addresses[0]) {
			t.Errorf("got %v", err)
		}
	})
}

// A server that only pretends must not see the secret.
func TestSecretIsNotSentToAnImpostor(t *testing.T) {
	b := serveJoins(t)
	tok := b.token(t)
	impostors := map[string]*Credentials{
		"another CA":        issue(t, newTestCA(t), RoleCoordinator, "c"),
		"not a coordinator": issue(t, b.ca, RoleAgent, "a"),
	}
	for name, c := range impostors {
		t.Run(name, func(t *testing.T) {
			ln := tls.NewListener(listen(t), &tls.Config{
				Certificates: []tls.Certificate{c.certificate()}, NextProtos: []string{ALPNJoin}, MinVersion: tls.VersionTLS13,
			})
			tok := tok
			tok.Addresses = []string{ln.Addr().String()}
			seen := make(chan []byte, 1)
			go func() {
				defer close(seen)
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				b, _ := io.ReadAll(conn)
				seen <- b
			}()
			if _, err := Join(t.Context(), openTestDir(t), SlotNode, tok, "pc2"); err == nil {
				t.Error("joined an impostor")
			}
			ln.Close()
			if got := <-seen; len(got) > 0 {
				t.Errorf("the impostor read %d bytes", len(got))
			}
		})
	}
}

func TestJoinPortAnswersOnlyRequests(t *testing.T) {
	b := serveJoins(t)
	for name, sent := range map[string][]byte{
		"an http request": []byte("GET / HTTP/1.1\r\n\r\n"),
		"not JSON":        append(binary.BigEndian.AppendUint32(nil, 3), "abc"...),
		"too long":        binary.BigEndian.AppendUint32(nil, maxRequestBytes+1),
	} {
		t.Run(name, func(t *testing.T) {
			dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNJoin}, MinVersion: tls.VersionTLS13}}
			conn, err := dialer.DialContext(t.Context(), "tcp", b.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write(sent); err != nil {
				t.Fatal(err)
			}
			if got, _ := io.ReadAll(conn); len(got) > 0 {
				t.Errorf("answered %q", got)
			}
		})
	}
}

func FuzzJoinRequest(f *testing.F) {
	ca, err := NewCA(time.Now())
	if err != nil {
		f.Fatal(err)
	}
	server, err := NewJoinServer(JoinConfig{
		CA: ca, Tokens: newMemoryTokens(), GossipKey: make([]byte, gossipBytes),
		Cluster: func() Cluster { return Cluster{ID: ca.Cluster()} },
	})
	if err != nil {
		f.Fatal(err)
	}
	frame := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	f.Add(frame(`{"cluster":"` + ca.Cluster() + `","token":"` + goodID + `","secret":"AAAAAAAAAAAAAAAAAAAAAA==","name":"a","csr":"MAA="}`))
	f.Add(frame(`{}`))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		var request joinRequest
		if err := readFrame(bytes.NewReader(data), &request, maxRequestBytes); err != nil {
			return
		}
		if _, err := server.admit(t.Context(), request); err == nil {
			t.Fatal("admitted without a token")
		}
	})
}

func FuzzJoinAnswer(f *testing.F) {
	f.Add([]byte(`{"error":"used"}`))
	f.Add([]byte(`{"certificate":"MAA=","cluster":{"cluster":"aaaaaaaaaaaaaaaa","etcd":[],"coordinators":[]},"gossip_key":"AA=="}`))
	ca, err := NewCA(time.Now())
	if err != nil {
		f.Fatal(err)
	}
	dir, err := OpenDir(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
		var answer joinAnswer
		if err := readFrame(bytes.NewReader(frame), &answer, maxAnswerBytes); err != nil || answer.err() != nil {
			return
		}
		if _, err := adopt(dir, SlotNode, answer, ca.Certificate(), ca.Cluster()); err == nil {
			t.Fatal("adopted a certificate that the CA did not sign")
		}
	})
}

var _ net.Listener = (*subListener)(nil)
