// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/distorch/distorch/internal/netns"
	"github.com/distorch/distorch/model/tensor"
)

const (
	readyWithin = 60 * time.Second // a process that starts
	stopWithin  = 20 * time.Second
)

// member is an agent to start.
type member struct {
	name    string
	threads int
	memory  tensor.Bytes // 0: the agent's own choice
}

// cluster is a coordinator and agents as processes, on loopback or each in a
// network namespace of its own.
type cluster struct {
	dir    string
	binary string
	models string // folder
	hosts  []*netns.Host
	net    *netns.Network
	procs  []*process
	addr   string
}

// process is one of them.
type process struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{} // closed once err is set
	err   error
	log   string
}

// startCluster starts a coordinator and its members and waits until all are
// registered. bitsPerSecond, if not 0, puts each into a namespace whose link
// has that rate.
func startCluster(ctx context.Context, o *options, models string, bitsPerSecond uint64, members ...member) (_ *cluster, err error) {
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("distorch itself: %w; `make build` makes it, -distorch names another", err)
	}
	dir, err := os.MkdirTemp(o.dir, "cluster-")
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, binary: binary, models: models}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	if bitsPerSecond > 0 {
		if c.net, err = netns.New(netns.Options{Hosts: 1 + len(members), BitsPerSecond: bitsPerSecond}); err != nil {
			return nil, err
		}
		c.hosts = c.net.Hosts()
	}
	if err := c.coordinator(ctx); err != nil {
		return nil, err
	}
	for i, m := range members {
		if err := c.agent(ctx, i+1, m); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// at is an address on host i that nobody listens on.
func (c *cluster) at(ctx context.Context, i int) (string, error) {
	listen := func() (net.Listener, error) { return new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0") }
	if c.hosts != nil {
		listen = func() (net.Listener, error) {
			return c.hosts[i].Listen(ctx, "tcp", net.JoinHostPort(c.hosts[i].Addr().String(), "0"))
		}
	}
	l, err := listen()
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (c *cluster) coordinator(ctx context.Context) error {
	var at [3]string
	for i := range at {
		var err error
		if at[i], err = c.at(ctx, 0); err != nil {
			return err
		}
	}
	c.addr = at[0]
	return c.start(ctx, 0, "coordinator", []string{"DISTORCH_COORDINATOR_ETCD_PEER_LISTEN=" + at[2]},
		"coordinator", "--listen", at[0], "--etcd-listen", at[1])
}

func (c *cluster) agent(ctx context.Context, host int, m member) error {
	token := filepath.Join(c.dir, m.name+".token")
	if _, err := c.command(ctx, "token", "create", "--out", token); err != nil {
		return err
	}
	at, err := c.at(ctx, host)
	if err != nil {
		return err
	}
	args := []string{"agent", "--name", m.name, "--join-file", token, "--listen", at, "--models", c.models, "--threads", strconv.Itoa(m.threads)}
	if m.memory > 0 {
		args = append(args, "--memory", strconv.FormatInt(int64(m.memory), 10))
	}
	return c.start(ctx, host, m.name, nil, args...)
}

func (c *cluster) data(name string) string { return filepath.Join(c.dir, name) }

// launch runs cmd on a host.
func (c *cluster) launch(host int, cmd *exec.Cmd) error {
	if c.hosts != nil {
		return c.hosts[host].Start(cmd)
	}
	return cmd.Start()
}

// start starts one of the processes and waits until it serves.
func (c *cluster) start(ctx context.Context, host int, name string, env []string, args ...string) error {
	ready := filepath.Join(c.dir, name+".ready")
	p := &process{name: name, ended: make(chan struct{}), log: filepath.Join(c.dir, name+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		return err
	}
	defer log.Close()
	// Not ended by ctx: stop ends it, in order.
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), c.binary, append(args, "--data-dir", c.data(name), "--log-level", "warn", "--ready-file", ready)...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := c.launch(host, p.cmd); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	c.procs = append(c.procs, p)
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p.await(ctx, ready)
}

func (p *process) await(ctx context.Context, ready string) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(ready); err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended: %w\n%s", p.name, errors.Join(p.err, errors.New("before it was ready")), p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", p.name, ctx.Err(), p.tail())
		case <-tick.C:
		}
	}
}

// tail is the end of the process's log.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

// command runs a distorch command against the cluster and gives its output.
func (c *cluster) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.binary, append(args, "--data-dir", c.data("coordinator"), "--coordinator", c.addr)...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := c.launch(0, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		text := complaints.String()
		return nil, fmt.Errorf("distorch %s: %w\n%s", args[0], err, text[max(0, len(text)-2000):])
	}
	return out.Bytes(), nil
}

// query is a command with -o json, decoded.
func (c *cluster) query(ctx context.Context, into any, args ...string) error {
	out, err := c.command(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("distorch %s answered %.200q: %w", args[0], out, err)
	}
	return nil
}

// peak is the most memory that a process has held at one time.
func (c *cluster) peak(name string) (tensor.Bytes, error) {
	for _, p := range c.procs {
		if p.name == name {
			return peakMemory(p.cmd.Process.Pid)
		}
	}
	return 0, fmt.Errorf("there is no process %s", name)
}

// stop ends all processes, the agents first, and frees what they had.
func (c *cluster) stop() error {
	var errs []error
	for _, v := range slices.Backward(c.procs) {
		errs = append(errs, v.stop())
	}
	c.procs = nil
	if c.net != nil {
		errs = append(errs, c.net.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}

func (p *process) stop() error {
	select {
	case <-p.ended:
		return fmt.Errorf("%s had ended: %w\n%s", p.name, errors.Join(p.err, errors.New("not asked to")), p.tail())
	default:
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopWithin):
		err := p.cmd.Process.Kill()
		<-p.ended
		return errors.Join(fmt.Errorf("%s did not end in %v and was killed", p.name, stopWithin), err)
	}
}
