// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package child

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain is the process that the tests start: it does what CHILD says.
func TestMain(m *testing.M) {
	switch os.Getenv("CHILD") {
	case "":
		os.Exit(m.Run())
	case "ready":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		_ = os.WriteFile(os.Getenv("READY"), []byte("ready"), 0o600)
		<-c
	case "stubborn":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, os.Interrupt)
		_ = os.WriteFile(os.Getenv("READY"), []byte("ready"), 0o600)
		for range c { // a select without cases counts as a deadlock where there is no cgo
			continue
		}
	case "fails":
		_, _ = os.Stderr.WriteString("one\ntwo\nthree\n")
		os.Exit(3)
	}
}

func start(t *testing.T, kind string) (*Process, string) {
	t.Helper()
	dir := t.TempDir()
	ready := filepath.Join(dir, "ready")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CHILD="+kind, "READY="+ready)
	p, err := Start(kind, cmd, filepath.Join(dir, "log"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop(0) })
	return p, ready
}

func TestStopAsksFirst(t *testing.T) {
	p, ready := start(t, "ready")
	if raw, err := p.AwaitFile(t.Context(), ready); err != nil || string(raw) != "ready" {
		t.Fatalf("%q, %v", raw, err)
	}
	if err := p.Stop(time.Minute); err != nil {
		t.Error(err)
	}
	if p.Ended() {
		t.Error("a process that was asked to end counts as failed")
	}
}

func TestStopKillsInTheEnd(t *testing.T) {
	p, ready := start(t, "stubborn")
	if _, err := p.AwaitFile(t.Context(), ready); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(10 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("error: %v", err)
	}
}

func TestFailureIsSeen(t *testing.T) {
	p, ready := start(t, "fails")
	_, err := p.AwaitFile(t.Context(), ready)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error: %v", err)
	}
	if !p.Ended() {
		t.Error("a process that failed does not count as ended")
	}
	if got := strings.Join(p.Tail(2), "|"); got != "two|three" {
		t.Errorf("tail: %q", got)
	}
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	p, _ := start(t, "ready")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.AwaitFile(ctx, "never"); err == nil {
		t.Error("no error")
	}
}
