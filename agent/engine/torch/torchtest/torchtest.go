// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package torchtest gives tests a torch engine, or lists them as skipped where
// no PyTorch was installed for tests.
//
// Imported by tests alone. It imports the torch engine.
package torchtest

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/distorch/distorch/agent/engine/torch"
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
