// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/distorch/distorch/model/safetensors"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/transport/identity"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"distorch": func() { os.Exit(start()) }})
}

type fakeKey struct{}

// TestScripts runs the commands as a shell would, against a coordinator of this
// process. In the scripts,
//
//	exits CODE ARGS...   runs distorch and checks its exit code
//	assignment FILE      compares the assignment in the JSON on stdout, "DEVICE FIRST BLOCKS" a line
//	forwarding           waits until a forward of the deployment "slow" has begun
//	runs BEGUN OPEN      checks how many runs were begun and how many are not ended
func TestScripts(t *testing.T) {
	demo, err := filepath.Abs(filepath.Join("..", "..", "demo"))
	if err != nil {
		t.Fatal(err)
	}
	bad, err := filepath.Abs(filepath.Join("..", "..", "model", "arch", "testdata", "bad", "model"))
	if err != nil {
		t.Fatal(err)
	}
	gguf, err := filepath.Abs(filepath.Join("..", "..", "model", "gguf", "testdata", "bad", "gguf"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(e *testscript.Env) error {
			ctx, cancel := context.WithCancel(context.Background())
			f, done, err := startFake(ctx, filepath.Join(e.WorkDir, ".fake"))
			if err != nil {
				cancel()
				return err
			}
			e.Defer(func() { cancel(); <-done })
			e.Values[fakeKey{}] = f
			other := filepath.Join(e.WorkDir, ".other")
			if err := otherCluster(other); err != nil {
				return err
			}
			e.Vars = append(e.Vars, "OTHER="+other, "DISTORCH_DATA_DIR="+f.dataDir, "DISTORCH_CLIENT_COORDINATOR="+f.address, "DEMO="+demo, "BAD="+bad, "GGUF="+gguf)
			return writeConditioning(e.WorkDir)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":      exits,
			"assignment": assignment,
			"forwarding": forwarding,
			"runs":       checkRuns,
		},
	})
}

// otherCluster makes an operator of a cluster that has nothing to do with the
// fake one.
func otherCluster(dir string) error {
	d, err := identity.OpenDir(dir)
	if err != nil {
		return err
	}
	ca, err := d.InitCluster(time.Now())
	if err != nil {
		return err
	}
	_, err = d.Ensure(ca, identity.SlotOperator, identity.Subject{Role: identity.RoleOperator, Name: "operator"}, time.Now())
	return err
}

// writeConditioning writes text.safetensors, both.safetensors (with a negative),
// masked.safetensors (with a mask for 128x128 pixels) and bad.safetensors (y is missing) for the demo's widths.
func writeConditioning(dir string) error {
	values := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(i%7) / 7
		}
		return v
	}
	context := safetensors.FromFloat32s("context", tensor.Shape{1, 5, 64}, values(320))
	y := safetensors.FromFloat32s("y", tensor.Shape{1, 64}, values(64))
	negative := context
	negative.Name = "negative.context"
	negativeY := y
	negativeY.Name = "negative.y"
	return errors.Join(
		safetensors.WriteFile(filepath.Join(dir, "text.safetensors"), []safetensors.Data{context, y}, nil),
		safetensors.WriteFile(filepath.Join(dir, "both.safetensors"), []safetensors.Data{context, y, negative, negativeY}, nil),
		safetensors.WriteFile(filepath.Join(dir, "masked.safetensors"), []safetensors.Data{context, y, safetensors.FromFloat32s("attention_mask", tensor.Shape{1, 69, 69}, values(69*69))}, nil),
		safetensors.WriteFile(filepath.Join(dir, "bad.safetensors"), []safetensors.Data{context}, nil),
	)
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: exits CODE ARGS...")
	}
	err := ts.Exec("distorch", args[1:]...)
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if !slices.Contains(strings.Split(args[0], ","), strconv.Itoa(code)) { // one, or one of a few
		ts.Fatalf("distorch %v: exit code %d, want %s", args[1:], code, args[0])
	}
}

func assignment(ts *testscript.TestScript, _ bool, args []string) {
	var v allocationView
	if err := json.Unmarshal([]byte(ts.ReadFile("stdout")), &v); err != nil {
		ts.Fatalf("%v", err)
	}
	var got strings.Builder
	for _, s := range v.Assignment {
		fmt.Fprintln(&got, s.Device, s.First, s.Blocks)
	}
	if diff := cmp.Diff(ts.ReadFile(args[0]), got.String()); diff != "" {
		ts.Fatalf("%s: -want +got\n%s", args[0], diff)
	}
}

func fake(ts *testscript.TestScript) *fakeServer {
	f, ok := ts.Value(fakeKey{}).(*fakeServer)
	if !ok {
		ts.Fatalf("no server")
	}
	return f
}

func forwarding(ts *testscript.TestScript, _ bool, _ []string) {
	select {
	case <-fake(ts).forwarding:
	case <-time.After(time.Minute):
		ts.Fatalf("no forward began")
	}
}

func checkRuns(ts *testscript.TestScript, _ bool, args []string) {
	begun, open := fake(ts).open()
	if len(args) != 2 || strconv.Itoa(begun) != args[0] || strconv.Itoa(open) != args[1] {
		ts.Fatalf("%d runs begun, %d open; want %v", begun, open, args)
	}
}
