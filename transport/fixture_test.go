// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testCA signs certificates whose common name is the node id.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &testCA{cert, key, pool}
}

func (ca *testCA) issue(t testing.TB, node NodeID) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: string(node)}, DNSNames: []string{string(node)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// fixture is a network of Hosts on loopback: with TLS when ca is set, else
// every peer is taken to be node "a".
type fixture struct {
	t  testing.TB
	ca *testCA
}

func (f *fixture) creds(self NodeID) (server credentials.TransportCredentials, client func(NodeID) (credentials.TransportCredentials, error)) {
	if f.ca == nil {
		return insecure.NewCredentials(), func(NodeID) (credentials.TransportCredentials, error) { return insecure.NewCredentials(), nil }
	}
	cert := f.ca.issue(f.t, self)
	server = ServerCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: f.ca.pool,
	}))
	return server, func(n NodeID) (credentials.TransportCredentials, error) {
		return credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: f.ca.pool, ServerName: string(n),
		}), nil
	}
}

func (f *fixture) peerFrom(ctx context.Context) (string, string, error) {
	if f.ca == nil {
		return "a", "agent", nil
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", "", errors.New("no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return "", "", errors.New("no certificate")
	}
	return info.State.PeerCertificates[0].Subject.CommonName, "agent", nil
}

// host makes a Host and, with a listener, its server. Both end with the test.
func (f *fixture) host(id NodeID, ln net.Listener, edit func(*Config)) *Host {
	f.t.Helper()
	server, client := f.creds(id)
	cfg := Config{PeerFrom: f.peerFrom, Credentials: client}
	if edit != nil {
		edit(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := h.Close(); err != nil {
			f.t.Error(err)
		}
	})
	if ln != nil {
		f.serve(h, ln, server)
	}
	return h
}

func (f *fixture) serve(h *Host, ln net.Listener, creds credentials.TransportCredentials) {
	s := grpc.NewServer(append(ServerOptions(), grpc.Creds(creds))...)
	h.RegisterService(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	f.t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
			f.t.Error(err)
		}
	})
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := Listen(context.Background(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// pair is host a, which writes, and host b, which has the regions.
func (f *fixture) pair(editA, editB func(*Config)) (a, b *Host, addr string) {
	f.t.Helper()
	ln := listen(f.t)
	b = f.host("b", ln, editB)
	a = f.host("a", nil, editA)
	return a, b, ln.Addr().String()
}

func register(t testing.TB, h *Host, n int, opts ...RegionOption) (*Region, []byte) {
	t.Helper()
	buf, free, err := Alloc(n)
	if err != nil {
		t.Fatal(err)
	}
	r, err := h.Register(buf, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Deregister()
		free()
	})
	return r, buf
}

// pattern is n bytes that differ by position and seed.
func pattern(n int, seed uint64) []byte {
	b := make([]byte, n+8)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := 0; i < n; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
	return b[:n:n]
}

func requireEqual(t testing.TB, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("bytes differ from %d of %d on", i, len(want))
			}
		}
	}
}

func next(t testing.TB, ch <-chan Completion) Completion {
	t.Helper()
	select {
	case c := <-ch:
		return c
	case <-time.After(20 * time.Second):
		t.Fatal("no completion")
		return Completion{}
	}
}

// requireNone writes an empty transfer to a region of its own on the same
// queue: since completions are in order, it must be the next one.
func requireNone(t testing.TB, a, b *Host, addr string) {
	t.Helper()
	r, _ := register(t, b, 0)
	if err := a.WriteImm(t.Context(), addr, "b", r.Key(), 0, nil, Immediate{Run: [16]byte{0xfe}}); err != nil {
		t.Fatal(err)
	}
	if c := next(t, b.Completions()); c.Region != r {
		t.Fatalf("unexpected completion %+v", c)
	}
}

// brokenConn lets a test see and change what a connection sends.
type brokenConn struct {
	net.Conn
	onWrite func(c net.Conn, p []byte) (int, error)
}

func (c *brokenConn) Write(p []byte) (int, error) { return c.onWrite(c.Conn, p) }

// cutter closes each connection after the next number of written bytes in
// after; the last connection lives.
type cutter struct {
	mu    sync.Mutex
	after []int
	cuts  int
	dials int
}

func (k *cutter) counts() (cuts, dials int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cuts, k.dials
}

func (k *cutter) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dials++
	if len(k.after) == 0 {
		return raw, nil
	}
	left := k.after[0]
	k.after = k.after[1:]
	return &brokenConn{raw, func(c net.Conn, p []byte) (int, error) {
		if left >= len(p) {
			left -= len(p)
			return c.Write(p)
		}
		n, _ := c.Write(p[:left])
		c.Close()
		k.mu.Lock()
		k.cuts++
		k.mu.Unlock()
		return n, errors.New("cut by the test")
	}}, nil
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func buffers(b []byte) mem.BufferSlice { return mem.BufferSlice{mem.SliceBuffer(b)} }
