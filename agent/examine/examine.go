// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package examine collects the facts of this machine that package diagnose
// judges: cards, PyTorch, memory, folders, disk, clock, and whether the other
// nodes answer.
//
// Imported by the agent and the commands; of distorch it imports
// agent/catalog, agent/device, agent/diagnose and model/tensor. It changes
// nothing, and everything that it asks is bounded in time.
package examine

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/distorch/distorch/agent/catalog"
	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/agent/diagnose"
	"github.com/distorch/distorch/model/tensor"
)

// Config of an examination. The zero value looks at this machine and dials
// nobody.
type Config struct {
	Node            string // its name; the host's otherwise
	Version         string
	Address         string // of its agent; "": none runs
	Engine          string
	Models          []string     // models.dirs
	DataDir         string       // whose disk is looked at
	Certificate     string       // file of this node's certificate; "" or absent: none
	Memory, Reserve tensor.Bytes // agent.memory and agent.reserve
	Running         bool         // an agent of this process holds its memory
	Devices         device.Options
	// Torch looks for PyTorch; nil: it is not looked for.
	Torch func(ctx context.Context) diagnose.Torch
	// Peers are dialled by Dial, at most MaxPeers of them.
	Peers []diagnose.Peer
	Dial  func(ctx context.Context, p diagnose.Peer) error
	// Root is where the system's files are looked for; "" is "/".
	Root string
}

const (
	// MaxPeers bounds the nodes that are dialled.
	MaxPeers = 256
	// dials is how many at one time, dialTime how long each may take.
	dials    = 16
	dialTime = 4 * time.Second
	// torchTime bounds the start of a Python that imports PyTorch from a cold disk.
	torchTime = 60 * time.Second
)

// Cards collects what is known of the machine and its cards alone, without
// what takes their memory.
func Cards(ctx context.Context, cfg Config) diagnose.Facts {
	f := machine(cfg)
	f.Cards = device.Discover(ctx, cfg.Devices)
	return f
}

// machine is what takes no time to tell.
func machine(cfg Config) diagnose.Facts {
	f := diagnose.Facts{
		Node: cfg.Node, Time: time.Now(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Version: cfg.Version, Address: cfg.Address, NVML: device.NVMLBuilt(),
		Engine: cfg.Engine, Environment: map[string]string{}, Folders: []diagnose.Folder{},
		OS: system(cfg.Root), Container: container(cfg.Root), WSL: exists(cfg.Root, "/dev/dxg"),
		Certificate: certificate(cfg.Certificate),
	}
	if f.Node == "" {
		if host, err := os.Hostname(); err == nil {
			f.Node = host
		}
	}
	for _, name := range diagnose.Variables() {
		if v, set := os.LookupEnv(name); set {
			f.Environment[name] = v[:min(len(v), 1024)]
		}
	}
	return f
}

// Examine collects the facts. What cannot be told is zero, or an error in its
// place.
func Examine(ctx context.Context, cfg Config) diagnose.Facts {
	f := machine(cfg)
	var group sync.WaitGroup // these wait for other things than one another
	group.Go(func() {
		o := cfg.Devices
		o.Processes = true
		f.Cards = device.Discover(ctx, o)
		own(cfg.Root, f.Cards.GPUs)
		// A machine without cards needs no PyTorch; macOS shows its own nowhere else.
		if len(f.Cards.GPUs) > 0 || cfg.Engine == "torch" || runtime.GOOS == "darwin" {
			f.Torch = lookForTorch(ctx, cfg)
		}
	})
	group.Go(func() { f.Peers = Dial(ctx, cfg) })
	group.Go(func() { f.Folders = folders(cfg.Models) })
	group.Wait()
	f.RAM = memory(cfg)
	if cfg.DataDir != "" {
		f.Data = disk(cfg.DataDir)
	}
	return f
}

// forebears bounds the way from a worker up to its agent.
const forebears = 8

// own marks the processes that an agent of distorch is, or has started.
func own(root string, cards []device.GPU) {
	for i := range cards {
		for j := range cards[i].Processes {
			p := &cards[i].Processes[j]
			for pid, n := p.PID, 0; pid > 1 && n < forebears && !p.Own; n++ {
				var name string
				name, pid = process(root, pid)
				p.Own = name == "distorch"
			}
		}
	}
}

// process is the name of a process and the one that started it; "" and 0 where
// the system does not tell, as of a process outside this container.
func process(root string, pid int) (name string, parent int) {
	b, err := read(filepath.Join(root+"/", "proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return "", 0
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Name":
			name = value
		case "PPid":
			if parent, err = strconv.Atoi(value); err != nil {
				parent = 0
			}
		}
	}
	return name, parent
}

func lookForTorch(ctx context.Context, cfg Config) *diagnose.Torch {
	if cfg.Torch == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, torchTime)
	defer cancel()
	t := cfg.Torch(ctx)
	return &t
}

func memory(cfg Config) diagnose.RAM {
	r := diagnose.RAM{Asked: cfg.Memory, Reserve: cfg.Reserve, Running: cfg.Running}
	ram, err := device.RAM()
	if err != nil {
		r.Error = err.Error()
	}
	r.Total, r.Available = ram.Total, ram.Available
	return r
}

// folders looks through the folders as an agent does at its start.
func folders(dirs []string) []diagnose.Folder {
	out := []diagnose.Folder{}
	for _, dir := range dirs {
		d := diagnose.Folder{Path: dir}
		entries, skipped, err := catalog.Scan([]string{dir})
		if _, readErr := os.ReadDir(dir); err == nil {
			err = readErr // a folder whose inside may not be seen
		}
		if err != nil {
			d.Error, d.Missing, d.Denied = err.Error(), false, errors.Is(err, fs.ErrPermission)
			if _, gone := os.Stat(dir); errors.Is(gone, fs.ErrNotExist) {
				d.Missing = true
			}
		}
		d.Checkpoints = len(entries)
		for i, s := range skipped {
			if i == diagnose.MaxSkipped {
				d.Left = len(skipped) - i
				break
			}
			d.Skipped = append(d.Skipped, diagnose.Skipped{Path: s.Path, Reason: reason(s)})
		}
		out = append(out, d)
	}
	return out
}

// maxReason bounds what is said of one file.
const maxReason = 400

// reason is why a file is not used, without its path, which is said already.
func reason(s catalog.Skipped) string {
	r := strings.TrimPrefix(s.Err.Error(), "open ")
	r = strings.TrimPrefix(strings.TrimPrefix(r, "checkpoint: "), s.Path+": ")
	if len(r) > maxReason {
		r = strings.ToValidUTF8(r[:maxReason], "") + " …"
	}
	return r
}

// disk looks at the file system that a folder is, or would be made, on.
func disk(dir string) diagnose.Disk {
	out := diagnose.Disk{Path: dir}
	at, err := filepath.Abs(dir)
	for ; err == nil; at = filepath.Dir(at) {
		if _, missing := os.Stat(at); !errors.Is(missing, fs.ErrNotExist) || at == filepath.Dir(at) {
			break
		}
	}
	if err == nil {
		out.Free, out.Total, err = space(at)
	}
	if err != nil {
		out.Error = err.Error()
	}
	return out
}

// Dial asks the peers, some at a time.
func Dial(ctx context.Context, cfg Config) []diagnose.Peer {
	if cfg.Dial == nil {
		return nil
	}
	out := append([]diagnose.Peer{}, cfg.Peers[:min(len(cfg.Peers), MaxPeers)]...)
	var group sync.WaitGroup
	turn := make(chan struct{}, dials)
	for i := range out {
		group.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			p := &out[i]
			ctx, cancel := context.WithTimeout(ctx, dialTime)
			defer cancel()
			begin := time.Now()
			if err := cfg.Dial(ctx, *p); err != nil {
				p.Failure, p.Error = failure(err), err.Error()
				return
			}
			p.RoundTrip = max(time.Since(begin), 1)
		})
	}
	group.Wait()
	return out
}

// failure says what kind of error dialling ended with.
func failure(err error) diagnose.Failure {
	var timeout interface{ Timeout() bool }
	var name *net.DNSError
	var op *net.OpError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return diagnose.PeerRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return diagnose.PeerNoRoute
	case errors.As(err, &name) && !name.IsTimeout:
		return diagnose.PeerNoName
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return diagnose.PeerSilent
	case errors.As(err, &op) && op.Op != "remote error", errors.Is(err, io.EOF):
		return diagnose.PeerOther // the connection broke
	}
	return diagnose.PeerIdentity // it stood, and a certificate was refused
}

// certificate reads the times of a certificate's file.
func certificate(file string) diagnose.Certificate {
	b, err := read(file)
	if err != nil {
		return diagnose.Certificate{}
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return diagnose.Certificate{}
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return diagnose.Certificate{}
	}
	return diagnose.Certificate{From: c.NotBefore, Until: c.NotAfter}
}

// maxFile bounds what is read of a file of the system.
const maxFile = 64 << 10

func read(file string) ([]byte, error) {
	if file == "" {
		return nil, fs.ErrNotExist
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func exists(root, file string) bool {
	_, err := os.Stat(filepath.Join(root+"/", file))
	return err == nil
}

// system is the ID of /etc/os-release, "" where there is none.
func system(root string) string {
	b, err := read(filepath.Join(root+"/", "etc/os-release"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if id, ok := strings.CutPrefix(strings.TrimSpace(line), "ID="); ok {
			id = strings.Trim(id, `"'`)
			return id[:min(len(id), 32)]
		}
	}
	return ""
}

// container says what kind of container this process runs in, "" for none.
func container(root string) string {
	switch {
	case exists(root, "/var/run/secrets/kubernetes.io/serviceaccount"), os.Getenv("KUBERNETES_SERVICE_HOST") != "" && root == "":
		return "kubernetes"
	case exists(root, "/run/.containerenv"):
		return "podman"
	case exists(root, "/.dockerenv"):
		return "docker"
	}
	// systemd's mark (systemd.io, container interface).
	b, err := read(filepath.Join(root+"/", "run/systemd/container"))
	if err != nil {
		return ""
	}
	kind := strings.TrimSpace(string(b))
	if strings.HasPrefix(kind, "lxc") {
		return "lxc"
	}
	return cmp.Or(kind[:min(len(kind), 32)], "")
}
