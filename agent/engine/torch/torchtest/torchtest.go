// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package torchtest gives tests a torch engine, or lists them as skipped where
// no PyTorch was installed for tests.
//
// Imported by tests alone. It imports the torch engine.
package torchtest

import (
	_ "embed" // streams.py
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/model/tensor"
)

// Variable names the environment variable that holds the Python for tests.
const Variable = "DISTORCH_TEST_PYTHON"

// Python is the interpreter whose PyTorch tests use: Variable's, or the one
// that `make bench-venv` installs. Without the latter the test is skipped; one
// that was asked for and is not there fails.
func Python(t testing.TB) string {
	t.Helper()
	if p := os.Getenv(Variable); p != "" {
		if _, err := os.Stat(p); err != nil {
			t.Fatalf("%s: %v", Variable, err)
		}
		return p
	}
	_, self, _, ok := runtime.Caller(0)
	if p := filepath.Join(self, "..", "..", "..", "..", "..", ".cache", "venv", "bin", "python"); ok {
		if _, err := os.Stat(filepath.Join(p, "..", "..", ".done")); err == nil {
			return filepath.Clean(p)
		}
	}
	t.Skip("no PyTorch for tests: make bench-venv installs one")
	return ""
}

// Engine is a torch engine that ends with the test. The Python is filled in.
func Engine(t testing.TB, cfg torch.Config) *torch.Engine {
	t.Helper()
	if cfg.Python == "" {
		cfg.Python = Python(t)
	}
	e, err := torch.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// streams.py is a module of the worker.
//
//go:embed streams.py
var streams string

// StreamsDevice is the CPU behind the calls that are made of a GPU: streams,
// events, memory of its own.
const StreamsDevice engine.DeviceID = "streams:0"

// Streams is an engine that has StreamsDevice; it ends with the test.
func Streams(t testing.TB, cfg torch.Config) *torch.Engine {
	t.Helper()
	cfg.More = []torch.Module{{Name: "streams", Text: streams}}
	return Engine(t, cfg)
}

// Chosen says whether `make test` runs the tests of stages, pipelines and golden
// cases with PyTorch instead of the native engine: unchanged but for what only
// native's class promises.
func Chosen() bool { return os.Getenv("DISTORCH_TEST_ENGINE") == "torch" }

// Threads of the CPU in a Suite: PyTorch gives the same bits at equal threads.
const Threads = 2

// Suite lends one worker to all tests of a package.
type Suite struct {
	mu     sync.Mutex
	engine *torch.Engine
}

// Engine is the worker's CPU with so much memory; 0: no limit.
func (s *Suite) Engine(t testing.TB, memory tensor.Bytes) engine.Engine {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.engine == nil {
		e, err := torch.New(torch.Config{Python: Python(t), Threads: Threads, Only: "cpu"})
		if err != nil {
			t.Fatal(err)
		}
		s.engine = e
	}
	return s.engine.Limited(memory)
}

// Close ends the worker; TestMain calls it last.
func (s *Suite) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.engine != nil {
		_ = s.engine.Close()
	}
}
