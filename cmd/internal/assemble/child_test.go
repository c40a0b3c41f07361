// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/transport/identity"
)

// childEnv makes the test binary a process of a cluster.
const childEnv = "DISTORCH_TEST_CHILD"

// childSpec is what such a process runs.
type childSpec struct {
	Agent              string // name; empty: a coordinator
	Token              string
	DataDir            string
	Listen, EtcdListen string // empty: loopback, a free port
	// Tmpfs mounts a file system of so many bytes on the data directory, in a
	// mount namespace of the process's own.
	Tmpfs int
}

// childMain runs what the environment asks for, and says whether it did.
func childMain() bool {
	text := os.Getenv(childEnv)
	if text == "" {
		return false
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var spec childSpec
	err := json.Unmarshal([]byte(text), &spec)
	if err == nil {
		err = spec.run(ctx)
	}
	fmt.Printf("ended %s\n", strings.ReplaceAll(fmt.Sprint(err), "\n", "; "))
	return true
}

func (s childSpec) run(ctx context.Context) error {
	if s.Tmpfs > 0 {
		if err := mountTmpfs(s.DataDir, s.Tmpfs, false); err != nil {
			return err
		}
		fmt.Printf("full %s\n", strings.ReplaceAll(fmt.Sprint(s.start(ctx)), "\n", "; "))
		if err := mountTmpfs(s.DataDir, 1<<28, true); err != nil {
			return err
		}
		s.Tmpfs = 0
		text, err := json.Marshal(s)
		if err != nil {
			return err
		}
		// Another process in the same place, as after a start that failed.
		if err := os.Setenv(childEnv, string(text)); err != nil {
			return err
		}
		return syscall.Exec(os.Args[0], os.Args, os.Environ())
	}
	return s.start(ctx)
}

func (s childSpec) config() *config.Config {
	c := testConfig(s.DataDir)
	if s.Listen != "" {
		c.Agent.Listen, c.Coordinator.Listen = s.Listen, s.Listen
	}
	if s.EtcdListen != "" {
		c.Coordinator.Etcd.ClientListen = s.EtcdListen
	}
	return c
}

func (s childSpec) start(ctx context.Context) error {
	dir, err := identity.OpenDir(s.DataDir)
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	if s.Agent == "" {
		return Coordinator{
			Config: s.config(), Dir: dir, Version: "test", Log: log, Volatile: true,
			Ready: func(_ context.Context, address string) { fmt.Printf("ready %s\n", address) },
		}.Run(ctx)
	}
	if s.Token != "" {
		if err := JoinCluster(ctx, dir, s.Token, s.Agent); err != nil {
			return err
		}
	}
	return Agent{
		Config: s.config(), Dir: dir, Version: "test", Log: log, Measure: rates,
		Ready: func(address string) { fmt.Printf("ready %s\n", address) },
	}.Run(ctx)
}

// child is a process of a cluster.
type child struct {
	t     testing.TB
	cmd   *exec.Cmd
	lines chan string // of its output; closed at its end
}

// spawn starts a process; start may put it into another place.
func spawn(t testing.TB, spec childSpec, start func(*exec.Cmd) error) *child {
	t.Helper()
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if spec.Tmpfs > 0 {
		cmd.SysProcAttr = ownMounts()
	}
	if err := start(cmd); err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: cmd, lines: make(chan string, 64)}
	go func() {
		defer close(c.lines)
		s := bufio.NewScanner(out)
		for s.Scan() {
			c.lines <- s.Text()
		}
	}()
	t.Cleanup(c.stop)
	return c
}

// await is the rest of the first line that begins with a word.
func (c *child) await(word string) string {
	c.t.Helper()
	timeout := time.After(60 * time.Second)
	for {
		select {
		case line, ok := <-c.lines:
			if !ok {
				c.t.Fatalf("the process ended before it said %q", word)
			}
			if first, rest, _ := strings.Cut(line, " "); first == word {
				return rest
			} else if first == "ended" {
				c.t.Fatalf("the process ended: %s", rest)
			}
		case <-timeout:
			c.t.Fatalf("the process did not say %q in a minute", word)
		}
	}
}

// signal sends one to this process alone.
func (c *child) signal(s os.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// stop ends the process in order, or by force after a while.
func (c *child) stop() {
	if c.cmd.ProcessState != nil {
		return
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	kill := time.AfterFunc(20*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer kill.Stop()
	for range c.lines { // until its output ends
	}
	_ = c.cmd.Wait() // a killed process is no failure here
}

// kill ends it as a power cut does.
func (c *child) kill() {
	c.signal(os.Kill)
	c.stop()
}
