// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/enginetest"
	"github.com/distorch/distorch/agent/engine/torch"
	"github.com/distorch/distorch/agent/engine/torch/torchtest"
)

// role makes the test's own binary a process of another kind: a worker that
// does one thing wrong, or an agent.
const role = "TORCH_TEST_ROLE"

func TestMain(m *testing.M) {
	switch r := os.Getenv(role); r {
	case "":
		goleak.VerifyTestMain(m)
	case "agent":
		os.Exit(agentProcess())
	default:
		os.Exit((&fake{role: r}).run())
	}
}

// fake is a worker without PyTorch.
type fake struct {
	role string
	conn *os.File
}

func (f *fake) run() int {
	switch f.role {
	case "absent":
		return 41
	case "broken":
		fmt.Fprintln(os.Stderr, "ImportError: libcudart.so.13: cannot open shared object file")
		return 42
	case "old":
		fmt.Fprintln(os.Stderr, "2.1.0")
		return 43
	case "dies at start":
		fmt.Fprintln(os.Stderr, "Illegal instruction")
		return 132
	}
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadString('\n')
	if err != nil {
		return 1
	}
	n, _ := strconv.Atoi(strings.TrimSpace(line))
	if _, err := io.CopyN(io.Discard, in, int64(n)); err != nil {
		return 1
	}
	f.conn = os.NewFile(3, "agent")
	if f.role == "never reports" {
		_, _ = io.Copy(io.Discard, in)
		return 0
	}
	if f.role == "prints" {
		for range 10000 {
			fmt.Println("garbage on the standard output")
		}
	}
	f.say(map[string]any{"op": "hello", "protocol": 1, "torch": "9.9.9", "runtime": "cpu", "devices": []any{
		map[string]any{"id": "cpu", "kind": "cpu", "name": "Fake", "dtypes": map[string]string{"F32": "flash"}},
		map[string]any{"id": "cuda:0", "kind": "cuda", "name": "Old Card", "arch": "sm_61", "lacks": "sm_61", "dtypes": map[string]string{"F32": "flash"}},
	}})
	return f.serve()
}

func (f *fake) say(msg map[string]any) {
	raw, _ := json.Marshal(msg)
	_, _ = f.conn.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(raw))), raw...))
}

func (f *fake) serve() int {
	in := bufio.NewReader(f.conn)
	for {
		var head [4]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return 0
		}
		raw := make([]byte, binary.LittleEndian.Uint32(head[:]))
		if _, err := io.ReadFull(in, raw); err != nil {
			return 0
		}
		var msg map[string]any
		if json.Unmarshal(raw, &msg) != nil {
			return 1
		}
		if code, end := f.take(msg); end {
			return code
		}
	}
}

func (f *fake) take(msg map[string]any) (code int, end bool) {
	if q, ok := msg["q"]; ok {
		switch {
		case f.role == "mute" && msg["op"] == "ping":
		case f.role == "no memory" && msg["op"] == "alloc":
			f.say(map[string]any{"op": "reply", "q": q, "kind": "memory", "err": "OutOfMemoryError: tried to allocate"})
		default:
			f.say(map[string]any{"op": "reply", "q": q})
		}
		return 0, false
	}
	if msg["op"] == "free" {
		return 0, false
	}
	done := map[string]any{"op": "done", "s": msg["s"], "e": msg["e"]}
	switch f.role {
	case "crashes":
		fmt.Fprintln(os.Stderr, "Segmentation fault")
		return 139, true
	case "hangs", "mute":
		return 0, false
	case "long message":
		_, _ = f.conn.Write([]byte{0xff, 0xff, 0xff, 0xff})
		return 0, false
	case "no JSON":
		_, _ = f.conn.Write([]byte("\x05\x00\x00\x00hello"))
		return 0, false
	case "out of turn":
		done["e"] = 999
	case "unknown word":
		done["op"] = "dance"
	case "device gone":
		done["err"], done["kind"] = "AcceleratorError: CUDA error: unspecified launch failure", "lost"
	case "no memory in a step":
		done["err"], done["kind"], done["root"] = "OutOfMemoryError: CUDA out of memory", "memory", msg["e"]
	}
	f.say(done)
	return 0, false
}

// faulty is an engine whose worker plays a role.
func faulty(t *testing.T, name string, patience float64) *torch.Engine {
	t.Helper()
	t.Setenv(role, name)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return torchtest.Engine(t, torch.Config{Python: self, Threads: 1, Patience: patience})
}

func TestPythonsThatCannotServe(t *testing.T) {
	for name, want := range map[string]struct {
		err  error
		says string
	}{
		"absent":        {torch.ErrAbsent, "-m pip install torch"},
		"broken":        {torch.ErrBroken, "libcudart.so.13"},
		"old":           {torch.ErrTooOld, "2.1.0"},
		"dies at start": {torch.ErrWorkerLost, "Illegal instruction"},
		"never reports": {torch.ErrWorkerLost, "did not report within"},
	} {
		t.Run(name, func(t *testing.T) {
			e := faulty(t, name, map[bool]float64{true: 0.002, false: 1}[name == "never reports"])
			if _, err := e.Devices(t.Context()); !errors.Is(err, want.err) || !strings.Contains(err.Error(), want.says) {
				t.Errorf("got %v", err)
			}
		})
	}
	e, err := torch.New(torch.Config{Python: "/nonexistent/python3"})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.Devices(t.Context()); err == nil || !strings.Contains(err.Error(), "agent.torch.python") {
		t.Errorf("a Python that is not there: %v", err)
	}
}

func TestCardWithoutCode(t *testing.T) {
	e := faulty(t, "well", 1)
	d, err := e.Devices(t.Context())
	if err != nil || len(d) != 1 || d[0].ID != cpu {
		t.Errorf("devices %+v, %v", d, err)
	}
	if _, err := e.Open(t.Context(), "cuda:0"); !errors.Is(err, torch.ErrArch) || !strings.Contains(err.Error(), "sm_61") || !strings.Contains(err.Error(), "/cu126") {
		t.Errorf("a card that this PyTorch has no code for: %v", err)
	}
	if _, err := e.Open(t.Context(), "cuda:7"); err == nil || !strings.Contains(err.Error(), "cuda:7") {
		t.Errorf("a device that is not there: %v", err)
	}
}

// A worker that goes wrong fails what was asked of it with its reason, at once
// and for good; another one takes its place.
func TestFaultyWorkers(t *testing.T) {
	for name, says := range map[string]string{
		"crashes":      "Segmentation fault",
		"hangs":        "hangs in a copy",
		"mute":         "said nothing",
		"long message": "a message of 4294967295 bytes",
		"no JSON":      `"hello"`,
		"out of turn":  "out of turn",
		"unknown word": "dance",
		"device gone":  "unspecified launch failure",
	} {
		t.Run(name, func(t *testing.T) {
			patience := map[string]float64{"hangs": 0.01, "mute": 0.005}[name]
			e := faulty(t, name, patience)
			s, err := e.Open(t.Context(), cpu)
			if err != nil {
				t.Fatal(err)
			}
			b, err := s.Buffer(1000)
			if err != nil {
				t.Fatal(err)
			}
			first := s.Copy(b, 0, b, 500, 100)
			last := s.Fetch(b, 0, b, 500, 100, first)
			for _, event := range []engine.Event{last, first} {
				if err := s.Wait(t.Context(), event); !errors.Is(err, engine.ErrLost) || !strings.Contains(err.Error(), says) {
					t.Errorf("got %v, want one with %q", err, says)
				}
			}
			if err := s.Wait(t.Context(), s.Copy(b, 0, b, 500, 100)); !errors.Is(err, engine.ErrLost) {
				t.Errorf("work on a lost session: %v", err)
			}
			if _, err := s.Buffer(10); !errors.Is(err, engine.ErrLost) {
				t.Errorf("memory of a lost session: %v", err)
			}
			select {
			case <-e.Lost():
			default:
				t.Error("the engine does not say that its worker is lost")
			}
			b.Host()[0] = 1 // still there
			b.Free()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			again, err := e.Open(t.Context(), cpu)
			if err != nil {
				t.Fatalf("the next worker: %v", err)
			}
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNoMemory(t *testing.T) {
	s, err := faulty(t, "no memory", 1).Open(t.Context(), cpu)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Buffer(1000); !errors.Is(err, engine.ErrNoMemory) {
		t.Errorf("a buffer that the device has no memory for: %v", err)
	}
	if used, _, _ := s.Account(); used != 0 {
		t.Errorf("%v counted for a buffer that was not given", used)
	}
	s, err = faulty(t, "no memory in a step", 1).Open(t.Context(), cpu)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := s.Buffer(1000)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Free()
	if err := s.Wait(t.Context(), s.Copy(b, 0, b, 500, 100)); !errors.Is(err, engine.ErrNoMemory) || errors.Is(err, engine.ErrLost) {
		t.Errorf("no memory in a step: %v", err)
	}
}

// What a worker or its libraries print has no part in what it says.
func TestPrintingWorker(t *testing.T) {
	s, err := faulty(t, "prints", 1).Open(t.Context(), cpu)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// busy opens a session whose compute queue has seconds of work.
func busy(t testing.TB, e *torch.Engine) (engine.Session, engine.Event) {
	t.Helper()
	s, err := e.Open(t.Context(), cpu)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Buffer(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	var last engine.Event
	for range 5000 {
		last = s.Copy(b, 0, b, 32<<20, 32<<20)
	}
	return s, last
}

func TestKilledWorker(t *testing.T) {
	e := torchtest.Engine(t, torch.Config{Threads: 1})
	s, last := busy(t, e)
	pid, err := torch.PID(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(t.Context(), last); !errors.Is(err, engine.ErrLost) || !strings.Contains(err.Error(), "killed") {
		t.Errorf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	again, err := e.Open(t.Context(), cpu)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	seg := enginetest.SiLU(t, 8)
	enginetest.Execute(t, again, seg, enginetest.Draw(seg, false))
}

// agentProcess is an agent with a busy worker, until it is killed.
func agentProcess() int {
	if err := os.Unsetenv(role); err != nil {
		return 1
	}
	var t stub
	e, err := torch.New(torch.Config{Python: os.Args[1], Threads: 1})
	if err != nil {
		return 1
	}
	s, last := busy(&t, e)
	pid, err := torch.PID(t.Context(), e)
	if err != nil {
		return 1
	}
	fmt.Println(pid)
	_ = s.Wait(t.Context(), last)
	return 0
}

// stub is a testing.TB outside a test.
type stub struct{ testing.TB }

func (*stub) Helper()                  {}
func (*stub) Context() context.Context { return context.Background() }
func (*stub) Fatal(args ...any)        { panic(fmt.Sprint(args...)) }

// A worker is gone two seconds after its agent was killed, and its memory with
// it, however much it has to do.
func TestWorkerDiesWithItsAgent(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, torchtest.Python(t))
	cmd.Env = append(os.Environ(), role+"=agent")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	watch, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	polls := []unix.PollFd{{Fd: int32(watch), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(polls, 10000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("the worker lives on: %v", err)
		}
		break
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the worker ended %v after its agent", took)
	}
	_ = cmd.Wait()
}
