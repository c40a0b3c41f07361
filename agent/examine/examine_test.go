// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package examine

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/distorch/distorch/agent/catalog"
	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/agent/diagnose"
)

// file writes a file below a folder.
func file(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReasonIsBounded(t *testing.T) {
	got := reason(catalog.Skipped{Path: "/m/a.gguf", Err: errors.New("open /m/a.gguf: " + strings.Repeat("é", maxReason))})
	if !utf8.ValidString(got) || len(got) > maxReason+len(" …") || !strings.HasPrefix(got, "éé") || !strings.HasSuffix(got, "é …") {
		t.Errorf("%q", got)
	}
}

func TestFolders(t *testing.T) {
	dir := t.TempDir()
	file(t, dir, "bad.safetensors", "not a header")
	for i := range diagnose.MaxSkipped + 3 {
		file(t, dir, fmt.Sprintf("many/%02d.gguf", i), "x")
	}
	file(t, dir, "file", "")
	got := folders([]string{dir, filepath.Join(dir, "many"), filepath.Join(dir, "missing"), "../../demo"})
	if f := got[0]; f.Error != "" || f.Checkpoints != 0 || len(f.Skipped) != diagnose.MaxSkipped || f.Left != 4 || f.Skipped[0].Reason == "" {
		t.Errorf("%+v", f)
	}
	bad := filepath.Join(dir, "bad.safetensors")
	if r := got[0].Skipped[0]; r.Path != bad || strings.Contains(r.Reason, dir) {
		t.Errorf("the path is said twice: %+v", r)
	}
	if f := got[1]; f.Left != 3 {
		t.Errorf("%+v", f)
	}
	if f := got[2]; !f.Missing || f.Error == "" {
		t.Errorf("%+v", f)
	}
	if f := got[3]; f.Checkpoints != 1 || f.Error != "" {
		t.Errorf("%+v", f)
	}
}

func TestContainer(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1") // of this machine, not of the tree
	for name, tc := range map[string]struct{ path, text, want string }{
		"none":       {"etc/hostname", "den", ""},
		"docker":     {".dockerenv", "", "docker"},
		"podman":     {"run/.containerenv", "", "podman"},
		"kubernetes": {"var/run/secrets/kubernetes.io/serviceaccount/token", "x", "kubernetes"},
		"lxc":        {"run/systemd/container", "lxc-libvirt\n", "lxc"},
		"other":      {"run/systemd/container", "systemd-nspawn\n", "systemd-nspawn"},
	} {
		root := t.TempDir()
		file(t, root, tc.path, tc.text)
		if got := container(root); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestSystem(t *testing.T) {
	root := t.TempDir()
	if got := system(root); got != "" {
		t.Errorf("%q", got)
	}
	file(t, root, "etc/os-release", "NAME=\"Ubuntu\"\nVERSION_ID=\"24.04\"\nID=ubuntu\n")
	if got := system(root); got != "ubuntu" {
		t.Errorf("%q", got)
	}
}

func TestCertificate(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: from.AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file(t, dir, "node.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	if got := certificate(filepath.Join(dir, "node.crt")); !got.From.Equal(from) || !got.Until.Equal(c.NotAfter) {
		t.Errorf("%+v", got)
	}
	file(t, dir, "bad.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	for _, name := range []string{"bad.crt", "missing.crt"} {
		if got := certificate(filepath.Join(dir, name)); got != (diagnose.Certificate{}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestFailure(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want diagnose.Failure
	}{
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, diagnose.PeerRefused},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, diagnose.PeerNoRoute},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Name: "x.lan", Err: "no such host", IsNotFound: true}}, diagnose.PeerNoName},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Name: "x.lan", Err: "timeout", IsTimeout: true}}, diagnose.PeerSilent},
		{context.DeadlineExceeded, diagnose.PeerSilent},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, diagnose.PeerSilent},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, diagnose.PeerOther},
		{io.EOF, diagnose.PeerOther},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, diagnose.PeerIdentity},
		{x509.UnknownAuthorityError{}, diagnose.PeerIdentity},
		{errors.New("peer is b, want a"), diagnose.PeerIdentity},
	} {
		if got := failure(fmt.Errorf("dial: %w", tc.err)); got != tc.want {
			t.Errorf("%v is %q, want %q", tc.err, got, tc.want)
		}
	}
}

func TestOwn(t *testing.T) {
	root := t.TempDir()
	for pid, p := range map[int]struct {
		name   string
		parent int
	}{10: {"distorch", 1}, 11: {"python3", 10}, 12: {"python3", 11}, 20: {"bash", 1}, 21: {"python3", 20}, 30: {"loop", 31}, 31: {"loop", 30}} {
		file(t, root, fmt.Sprintf("proc/%d/status", pid), fmt.Sprintf("Name:\t%s\nState:\tS\nPPid:\t%d\n", p.name, p.parent))
	}
	cards := []device.GPU{{Processes: []device.Process{{PID: 10}, {PID: 12}, {PID: 21}, {PID: 30}, {PID: 99}}}}
	own(root, cards)
	for i, want := range []bool{true, true, false, false, false} {
		if p := cards[0].Processes[i]; p.Own != want {
			t.Errorf("%+v", p)
		}
	}
}

// TestDial dials many peers, of which some do not answer.
func TestDial(t *testing.T) {
	cfg := Config{Dial: func(ctx context.Context, p diagnose.Peer) error {
		if p.Name == "p3" {
			return syscall.ECONNREFUSED
		}
		if _, bounded := ctx.Deadline(); !bounded {
			return errors.New("no deadline")
		}
		return nil
	}}
	for i := range MaxPeers + 1 {
		cfg.Peers = append(cfg.Peers, diagnose.Peer{Name: fmt.Sprintf("p%d", i)})
	}
	got := Dial(t.Context(), cfg)
	if len(got) != MaxPeers {
		t.Fatalf("%d peers", len(got))
	}
	for i, p := range got {
		if p.Name != fmt.Sprintf("p%d", i) || (p.Failure != "") != (i == 3) || i != 3 && p.RoundTrip <= 0 {
			t.Errorf("%+v", p)
		}
	}
}

// TestExamine looks at this machine, with a made up root for its cards.
func TestExamine(t *testing.T) {
	root := t.TempDir()
	file(t, root, "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
	file(t, root, "sys/bus/pci/devices/0000:01:00.0/device", "0x2204\n")
	file(t, root, "sys/bus/pci/devices/0000:01:00.0/class", "0x030000\n")
	file(t, root, "etc/os-release", "ID=ubuntu\n")
	t.Setenv("CUDA_VISIBLE_DEVICES", "")
	asked := 0
	cfg := Config{
		Node: "den", Engine: "torch", DataDir: filepath.Join(root, "not/yet/there"), Models: []string{root}, Memory: 1e9,
		Devices: device.Options{Root: root}, Root: root, Torch: func(context.Context) diagnose.Torch { asked++; return diagnose.Torch{Problem: diagnose.TorchAbsent} },
	}
	f := Examine(t.Context(), cfg)
	if len(f.Cards.GPUs) != 1 || f.OS != "ubuntu" || f.RAM.Total <= 0 || f.RAM.Asked != 1e9 || f.Torch == nil || asked != 1 {
		t.Errorf("%+v", f)
	}
	if v, set := f.Environment["CUDA_VISIBLE_DEVICES"]; v != "" || !set {
		t.Errorf("an empty variable is not one that is not set: %v", f.Environment)
	}
	if f.Data.Error != "" || f.Data.Path != cfg.DataDir {
		t.Errorf("%+v", f.Data)
	}
	found, unused := diagnose.Unused(f, f.Cards.GPUs[0])
	if !unused || found.Severity != diagnose.Broken {
		t.Errorf("%+v", found)
	}
	// A machine without cards is not asked for PyTorch.
	cfg.Devices.Root, cfg.Engine = t.TempDir(), "native"
	if f := Cards(t.Context(), cfg); len(f.Cards.GPUs) != 0 || asked != 1 {
		t.Errorf("%+v", f)
	}
}
