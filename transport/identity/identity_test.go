// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch = time.Now()

func newTestCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA(epoch)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *CA, role Role, name string) *Credentials {
	t.Helper()
	c, err := ca.Issue(Subject{Role: role, Name: name}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func openTestDir(t *testing.T) Dir {
	t.Helper()
	d, err := OpenDir(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func TestInitClusterKeepsWhatIsThere(t *testing.T) {
	d := openTestDir(t)
	ca, err := d.InitCluster(epoch)
	if err != nil {
		t.Fatal(err)
	}
	first, err := d.Ensure(ca, SlotNode, Subject{Role: RoleAgent, Name: "pc1"}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	again, err := d.InitCluster(epoch)
	if err != nil {
		t.Fatal(err)
	}
	if again.Hash() != ca.Hash() || again.Cluster() != ca.Cluster() {
		t.Fatal("a second start made another CA")
	}
	second, err := d.Ensure(again, SlotNode, Subject{Role: RoleAgent, Name: "pc1"}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if !second.cert.Equal(first.cert) {
		t.Error("a valid certificate was replaced")
	}
	moved, err := d.Ensure(again, SlotNode, Subject{Role: RoleAgent, Name: "pc1", Hosts: []string{"10.1.2.3", "pc1.lan"}}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if moved.cert.Equal(first.cert) || moved.Self().ID != first.Self().ID || !covers(moved.cert, []string{"10.1.2.3", "pc1.lan"}) {
		t.Error("new hosts need a new certificate for the same key")
	}
	if before := epoch.Sub(first.cert.NotBefore); before < 23*time.Hour || before > 25*time.Hour {
		t.Errorf("NotBefore is %v before now, want 24 h", before)
	}
	if key, err := d.GossipKey(); err != nil || len(key) != 32 {
		t.Errorf("gossip key: %d bytes, %v", len(key), err)
	}
	entries, err := os.ReadDir(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", e.Name(), info.Mode())
		}
	}
}

func TestDirRefuses(t *testing.T) {
	t.Run("empty", func(t *testing.T) {
		if _, err := openTestDir(t).Load(SlotNode); !errors.Is(err, ErrNotJoined) {
			t.Errorf("got %v, want ErrNotJoined", err)
		}
	})
	t.Run("key readable by others", func(t *testing.T) {
		if runtime.GOOS == "windows" {
			return
		}
		d := openTestDir(t)
		ca, err := d.InitCluster(epoch)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Ensure(ca, SlotNode, Subject{Role: RoleAgent, Name: "a"}, epoch); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d.KeyFile(SlotNode), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Load(SlotNode); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("got %v, want a hint to chmod", err)
		}
	})
	t.Run("key of another", func(t *testing.T) {
		d := openTestDir(t)
		ca, err := d.InitCluster(epoch)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []Slot{SlotNode, SlotOperator} {
			if _, err := d.Ensure(ca, s, Subject{Role: RoleAgent, Name: "a"}, epoch); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(d.KeyFile(SlotOperator), d.KeyFile(SlotNode)); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Load(SlotNode); err == nil || !strings.Contains(err.Error(), "do not belong together") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("write fails and leaves nothing", func(t *testing.T) {
		d := openTestDir(t)
		// A directory in the file's place makes the rename fail, as a full disk
		// makes the write fail.
		if err := os.MkdirAll(filepath.Join(d.Path(), clusterFile, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := d.SaveCluster(Cluster{ID: newTestCA(t).Cluster()}); err == nil || !strings.Contains(err.Error(), clusterFile) {
			t.Errorf("got %v, want an error that names %s", err, clusterFile)
		}
		entries, err := os.ReadDir(d.Path())
		if err != nil || len(entries) != 1 {
			t.Errorf("left %v behind (%v)", entries, err)
		}
	})
}

// serveMux runs a Mux with every protocol and an echo behind each, which first
// says the protocol's name.
func serveMux(t *testing.T, c *Credentials, change func(*MuxConfig)) string {
	t.Helper()
	cfg := MuxConfig{Listener: listen(t), TLS: c.ServerTLSWithJoin([]string{ALPNControl, ALPNBulk, ALPNGossip})}
	if change != nil {
		change(&cfg)
	}
	mux, err := NewMux(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 8)
	running := 0
	for _, p := range []string{ALPNControl, ALPNBulk, ALPNGossip, ALPNJoin} {
		roles := []Role{RoleCoordinator, RoleAgent}
		if p == ALPNControl {
			roles = nil
		}
		ln, err := mux.Listen(p, roles...)
		if err != nil {
			t.Fatal(err)
		}
		running++
		go func() {
			defer func() { done <- struct{}{} }()
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(conn, "%s\n", p)
				conn.Close()
			}
		}()
	}
	running++
	go func() {
		defer func() { done <- struct{}{} }()
		if err := mux.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range running {
			<-done
		}
	})
	return mux.Addr().String()
}

// greeting dials and reads what the server says.
func greeting(ctx context.Context, address string, cfg *tls.Config) (string, error) {
	dialer := tls.Dialer{Config: cfg}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	b, err := io.ReadAll(conn)
	if err == nil && len(b) == 0 {
		err = io.ErrUnexpectedEOF
	}
	return strings.TrimSpace(string(b)), err
}

func TestMuxSplitsAndChecks(t *testing.T) {
	ca := newTestCA(t)
	address := serveMux(t, issue(t, ca, RoleAgent, "server"), nil)
	other := newTestCA(t)
	all := []string{ALPNControl, ALPNBulk, ALPNGossip, ALPNJoin}

	type client struct {
		name   string
		tls    func(protocol string) *tls.Config
		served map[string]bool
	}
	bare := func(protocol ...string) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, NextProtos: protocol, MinVersion: tls.VersionTLS13}
	}
	of := func(c *Credentials) func(string) *tls.Config {
		return func(p string) *tls.Config { return c.ClientTLS(p, Expect{}) }
	}
	foreign := issue(t, other, RoleAgent, "x")
	for _, c := range []client{
		{"agent", of(issue(t, ca, RoleAgent, "a")), map[string]bool{ALPNControl: true, ALPNBulk: true, ALPNGossip: true, ALPNJoin: true}},
		{"operator", of(issue(t, ca, RoleOperator, "me")), map[string]bool{ALPNControl: true, ALPNJoin: true}},
		{"no certificate", func(p string) *tls.Config { return bare(p) }, map[string]bool{ALPNJoin: true}},
		{"no certificate, join among others", func(p string) *tls.Config { return bare(ALPNJoin, p, ALPNControl) }, nil},
		{"no protocol", func(string) *tls.Config { return bare() }, nil},
		{"unknown protocol", func(string) *tls.Config { return bare("http/1.1") }, nil},
		{"another cluster's certificate", func(p string) *tls.Config {
			cfg := bare(p)
			cfg.Certificates = []tls.Certificate{foreign.certificate()}
			return cfg
		}, map[string]bool{ALPNJoin: true}},
		{"TLS 1.2", func(p string) *tls.Config {
			cfg := of(issue(t, ca, RoleAgent, "a"))(p)
			cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return cfg
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, p := range all {
				got, err := greeting(t.Context(), address, c.tls(p))
				if served := err == nil && got == p; served != c.served[p] {
					t.Errorf("%s: served=%v (%q, %v), want %v", p, served, got, err, c.served[p])
				}
			}
		})
	}
}

func TestClientChecksTheServer(t *testing.T) {
	ca := newTestCA(t)
	server := issue(t, ca, RoleAgent, "server")
	address := serveMux(t, server, nil)
	me := issue(t, ca, RoleCoordinator, "c")
	for _, tc := range []struct {
		name string
		from *Credentials
		want Expect
		err  string
	}{
		{"right", me, Expect{Roles: []Role{RoleAgent}, ID: server.Self().ID}, ""},
		{"another node", me, Expect{ID: me.Self().ID}, "another machine answers"},
		{"another role", me, Expect{Roles: []Role{RoleCoordinator}}, "has the role agent"},
		{"another CA", issue(t, newTestCA(t), RoleAgent, "x"), Expect{}, "another cluster's CA"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn, err := tc.from.Dial(t.Context(), address, ALPNBulk, tc.want)
			if conn != nil {
				conn.Close()
			}
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("got %v, want %q", err, tc.err)
			}
		})
	}
	t.Run("an operator's certificate cannot serve", func(t *testing.T) {
		address := serveMux(t, issue(t, ca, RoleOperator, "o"), nil)
		conn, err := me.Dial(t.Context(), address, ALPNBulk, Expect{})
		if err == nil {
			conn.Close()
			t.Error("accepted")
		}
	})
}

func TestSilentClientsDelayNobody(t *testing.T) {
	ca := newTestCA(t)
	var dialer net.Dialer
	address := serveMux(t, issue(t, ca, RoleAgent, "server"), func(c *MuxConfig) {
		c.HandshakeTimeout = time.Hour // a served client cannot have waited for it
		c.MaxPerHost = 8
	})
	var silent []net.Conn
	for range 7 {
		conn, err := dialer.DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		silent = append(silent, conn)
	}
	me := issue(t, ca, RoleAgent, "a").ClientTLS(ALPNBulk, Expect{})
	if got, err := greeting(t.Context(), address, me); err != nil || got != ALPNBulk {
		t.Fatalf("got %q, %v", got, err)
	}
	// One more silent client takes the last slot; then a ninth is closed at once.
	last, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	ninth, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer ninth.Close()
	if _, err := ninth.Read(make([]byte, 1)); err == nil {
		t.Error("a client over the limit was kept")
	}
	// The slots come back when the silent ones go.
	for _, c := range silent {
		c.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		if got, err := greeting(ctx, address, me); err == nil && got == ALPNBulk {
			return
		}
		if ctx.Err() != nil {
			t.Fatal("slots were not freed")
		}
	}
}

func TestHandshakeDeadline(t *testing.T) {
	address := serveMux(t, issue(t, newTestCA(t), RoleAgent, "server"), func(c *MuxConfig) {
		c.HandshakeTimeout = 50 * time.Millisecond
	})
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the server spoke first")
	}
}

func TestValidName(t *testing.T) {
	for name, ok := range map[string]bool{
		"pc1": true, "PC-1.lan_x": true, "0": true, strings.Repeat("a", 63): true,
		"": false, strings.Repeat("a", 64): false, ".a": false, "-a": false, "a/b": false, "a b": false, "ä": false, "a\n": false,
	} {
		if err := ValidName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}
