// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// seen is what a command writes while it runs.
type seen struct {
	mu      sync.Mutex
	b       bytes.Buffer
	changed chan struct{}
}

func newSeen() *seen { return &seen{changed: make(chan struct{}, 1)} }

func (s *seen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return s.b.Write(p)
}

func (s *seen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await waits until the text has been written.
func (s *seen) await(t *testing.T, text string) {
	t.Helper()
	limit := time.After(time.Minute)
	for !strings.Contains(s.String(), text) {
		select {
		case <-s.changed:
		case <-limit:
			t.Fatalf("%q was not written, but\n%s", text, s)
		}
	}
}

// watched runs a command against a fake coordinator, which lives until lose is
// called, and interrupts it when the test has done its part.
func watched(t *testing.T, args ...string) (f *fakeServer, out, errs *seen, lose func(), interrupt func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	f, ended, err := startFake(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	lose = func() { cancel(); <-ended }
	t.Cleanup(lose)
	out, errs = newSeen(), newSeen()
	a := &app{stdin: strings.NewReader(""), stdout: out, stderr: errs}
	running, stop := context.WithCancelCause(t.Context())
	code := make(chan int, 1)
	go func() {
		code <- a.run(running, append(args, "--data-dir", f.dataDir, "--coordinator", f.address))
	}()
	return f, out, errs, lose, func() int {
		stop(interruptedError{os.Interrupt})
		return <-code
	}
}

// TestWatch: a table for each change and no other; Ctrl-C is how it ends.
func TestWatch(t *testing.T) {
	f, out, errs, _, interrupt := watched(t, "deployments", "--watch", "--interval", "100ms")
	out.await(t, "NAME  MODEL")
	if _, err := f.Deploy(t.Context(), &pb.DeployRequest{Spec: &pb.DeploymentSpec{Name: "flux"}}); err != nil {
		t.Fatal(err)
	}
	out.await(t, "loading")
	out.await(t, "ready") // at the third question
	if code := interrupt(); code != exitOK || errs.String() != "" {
		t.Errorf("exit %d, %q", code, errs)
	}
	if n := strings.Count(out.String(), "NAME"); n != 3 {
		t.Errorf("%d tables, want 3:\n%s", n, out)
	}
}

// TestWatchDocuments: JSON is a line for each change, YAML a document.
func TestWatchDocuments(t *testing.T) {
	for format, begins := range map[string]string{"json": `[{"name":"a"`, "yaml": "---\n- name: a\n"} {
		_, out, _, _, interrupt := watched(t, "nodes", "-w", "--interval", "100ms", "-o", format)
		out.await(t, "\n")
		if code := interrupt(); code != exitOK || !strings.HasPrefix(out.String(), begins) {
			t.Errorf("%s: exit %d,\n%s", format, code, out)
		}
		if format == "json" && (strings.Count(out.String(), "\n") != 1 || !json.Valid([]byte(out.String()))) {
			t.Errorf("not one document:\n%s", out)
		}
	}
}

// TestWatchLoss: that the coordinator is lost is said once.
func TestWatchLoss(t *testing.T) {
	_, out, errs, lose, interrupt := watched(t, "status", "--watch", "--interval", "100ms")
	out.await(t, "NAME")
	lose()
	errs.await(t, "trying again every 100ms")
	if code := interrupt(); code != exitOK {
		t.Errorf("exit %d", code)
	}
	if n := strings.Count(errs.String(), "distorch:"); n != 1 {
		t.Errorf("said %d times:\n%s", n, errs)
	}
}

// TestWatchReturn: asked again, a coordinator that answers is asked further; an
// answer that stays the same is not shown twice. What cannot mend ends it.
func TestWatchReturn(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f, done, err := startFake(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); <-done }()
	var out, errs bytes.Buffer
	a := &app{stdout: &out, stderr: &errs}
	replies := []error{nil, unreachable(errors.New("no answer")), unreachable(errors.New("no answer")), nil, notFound(errors.New("removed"))}
	cmd := &cobra.Command{Use: "x", SilenceErrors: true, SilenceUsage: true}
	operatorFlags(cmd)
	w := &watching{on: true, every: watchSpeedy}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.show(cmd, w, output.Table, func(*cobra.Command, *operator) (answer, error) {
			err := replies[0]
			replies = replies[1:]
			return answer{table: func(w io.Writer) error { _, err := io.WriteString(w, "table\n"); return err }}, err
		})
	}
	t.Setenv("DISTORCH_DATA_DIR", f.dataDir)
	cmd.SetArgs([]string{"--coordinator", f.address})
	if err := cmd.ExecuteContext(t.Context()); exitCode(err) != exitNotFound {
		t.Errorf("ended with %v", err)
	}
	want := "distorch: no answer; trying again every 100ms\ndistorch: coordinator " + f.address + " answers again\n"
	if out.String() != "table\n" || errs.String() != want {
		t.Errorf("%q, %q; want %q", out.String(), errs.String(), want)
	}
}
