// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/distorch/distorch/agent"
	"github.com/distorch/distorch/agent/calibration"
	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/agent/measure"
	"github.com/distorch/distorch/agent/patches"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/model/tensor"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

// Agent is an agent to run.
type Agent struct {
	Config  *config.Config
	Dir     identity.Dir
	Version string
	Log     *slog.Logger
	// Engine replaces the one that the configuration names; for tests.
	Engine engine.Engine
	// Measure replaces the measuring of rates; for tests.
	Measure func(ctx context.Context, s engine.Session, d tensor.DType) ([]measure.Rates, error)
	// Ready is called once with the address, when the agent is registered.
	Ready func(address string)
}

// Calibrations is where a data directory keeps what was measured.
func Calibrations(dataDir string) calibration.Dir {
	return calibration.Dir(filepath.Join(dataDir, "calibration"))
}

// hostLabel is the label that says on which host an agent runs.
const hostLabel = "distorch.host"

// Run joins nothing: the data directory must hold the node's identity. It
// blocks until ctx ends.
func (a Agent) Run(ctx context.Context) error {
	creds, err := a.Dir.Load(identity.SlotNode)
	if err != nil {
		return fmt.Errorf("data directory %s: %w", a.Dir.Path(), err)
	}
	cluster, err := a.Dir.Cluster()
	if err != nil {
		return err
	}
	key, err := a.Dir.GossipKey()
	if err != nil {
		return err
	}
	st, err := store.Open(ctx, store.Config{
		Endpoints: cluster.Etcd, Logger: a.Log,
		TLS: creds.ClientTLS(identity.ALPNControl, identity.Expect{Roles: []identity.Role{identity.RoleEtcd}}),
	})
	if err != nil {
		return fmt.Errorf("open the cluster's state: %w", err)
	}
	run := func() error {
		cfg, err := a.configure(ctx, st)
		if err != nil {
			return err
		}
		cfg.Credentials, cfg.GossipKey, cfg.Store = creds, key, st
		if cfg.Brought, err = a.brought(creds); err != nil {
			return err
		}
		cfg.Examine = Examination(a.Config, a.Dir, a.Version)
		end := func() error { return nil }
		if c, ok := cfg.Engine.(io.Closer); ok && a.Engine == nil {
			end = c.Close
		}
		ag, err := agent.New(ctx, cfg)
		if err != nil {
			return errors.Join(err, end())
		}
		return errors.Join(ag.Run(ctx), end())
	}
	return errors.Join(run(), st.Close())
}

// broughtLimit is how much of the data directory's disk LoRA files of clients
// take; a FLUX.1 LoRA of rank 16 has 0.1 to 0.2 GB.
const broughtLimit = 8 << 30

// brought gets clients' LoRA files from the coordinators that the data directory
// names.
func (a Agent) brought(creds *identity.Credentials) (*patches.Cache, error) {
	return patches.New(patches.Config{
		Dir: filepath.Join(a.Config.DataDir, "patches", "fetched"), Limit: broughtLimit, Log: a.Log,
		Credentials: creds.ClientCredentials(identity.Expect{Roles: []identity.Role{identity.RoleCoordinator}}),
		Coordinators: func() ([]string, error) {
			c, err := a.Dir.Cluster()
			return c.Coordinators, err
		},
	})
}

// Check looks for what would keep an agent from running on this machine and can
// be told without its cluster: folders, memory and instruction set.
func Check(cfg *config.Config) error {
	for _, dir := range cfg.Models.Dirs {
		info, err := os.Stat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("models.dirs: %s does not exist; create it or correct models.dirs", dir)
		case err != nil:
			return fmt.Errorf("models.dirs: %w", err)
		case !info.IsDir():
			return fmt.Errorf("models.dirs: %s is not a folder; name the one that it is in", dir)
		}
	}
	if _, err := memory(tensor.Bytes(cfg.Agent.Memory), tensor.Bytes(cfg.Agent.Reserve)); err != nil {
		return err
	}
	if _, err := isa.Parse(cfg.Agent.CPUISA); err != nil {
		return fmt.Errorf("agent.%w", err)
	}
	return nil
}

func (a Agent) configure(ctx context.Context, st *store.Store) (agent.Config, error) {
	c := a.Config.Agent
	labels, err := c.LabelMap()
	if err != nil {
		return agent.Config{}, err
	}
	host, err := os.Hostname()
	if err == nil && labels[hostLabel] == "" {
		labels[hostLabel] = host
	}
	cfg := agent.Config{
		Listen: c.Listen, Advertise: c.Advertise, ModelDirs: a.Config.Models.Dirs, Labels: labels,
		Version: a.Version, EngineName: "native", LeaseTTL: a.Config.Coordinator.LeaseTTL, Reserve: tensor.Bytes(c.Reserve),
		HandshakeTimeout: a.Config.Transport.HandshakeTimeout, RedialFor: a.Config.Transport.RedialFor, Log: a.Log, Ready: a.Ready, Measure: a.Measure,
		Calibrations: Calibrations(a.Config.DataDir),
	}
	if cfg.Memory, err = memory(tensor.Bytes(c.Memory), cfg.Reserve); err != nil {
		return cfg, err
	}
	give, err := c.Donation(config.Bytes(cfg.Memory))
	if err != nil {
		return cfg, err
	}
	cfg.Donate = min(tensor.Bytes(give), cfg.Memory)
	if cfg.Devices, err = limits(c.Devices); err != nil {
		return cfg, err
	}
	if cfg.Engine = a.Engine; cfg.Engine != nil {
		return cfg, nil
	}
	cfg.Host = engine.NewAccount(cfg.Memory, "raise agent.memory or place fewer blocks here")
	threads := c.Threads
	if threads == 0 {
		threads = share(ctx, st, labels[hostLabel], a.Log)
	}
	cfg.Engine, cfg.EngineName, err = machine{a.Config, cfg.Host, threads, a.Log}.engines(ctx)
	return cfg, err
}

// memory is what stages may take: what is asked for, or nine tenths of what
// the host has free, without the reserve.
func memory(asked, reserve tensor.Bytes) (tensor.Bytes, error) {
	ram, err := device.RAM()
	if asked == 0 {
		if err != nil {
			return 0, err
		}
		asked = ram.Available / 10 * 9
	}
	if err == nil && asked > ram.Total {
		return 0, fmt.Errorf("agent.memory is %v, this machine has %v; lower it", asked, ram.Total)
	}
	if reserve >= asked {
		return 0, fmt.Errorf("agent.reserve is %v of agent.memory %v: nothing is left for weights", reserve, asked)
	}
	return asked - reserve, nil
}

// share is the cores divided by the agents on this host, this one included.
func share(ctx context.Context, st *store.Store, host string, log *slog.Logger) int {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	others := 0
	snap, err := store.List(ctx, st, store.Nodes())
	if err != nil {
		log.Warn("other agents on this host are not known", "error", err)
	}
	for _, e := range snap.Entries {
		if host != "" && e.Value.Labels[hostLabel] == host {
			others++
		}
	}
	return max(1, runtime.GOMAXPROCS(0)/(others+1))
}

// JoinCluster gives this machine a node's identity by a token, unless it has
// one of the same cluster already.
func JoinCluster(ctx context.Context, dir identity.Dir, token, name string) error {
	if name == "" {
		var err error
		if name, err = hostName(); err != nil {
			return err
		}
	}
	t, err := identity.ParseToken(token)
	if err != nil {
		return err
	}
	if creds, err := dir.Load(identity.SlotNode); err == nil && creds.Self().Cluster == t.Cluster && creds.Self().Name == name {
		return nil // joined before; the token may be used up
	}
	_, err = identity.Join(ctx, dir, identity.SlotNode, t, name)
	return room(dir, err)
}

// LocalAgent gives the machine that holds the CA a node's identity of its own
// and reserves its name.
func LocalAgent(ctx context.Context, dir identity.Dir, name string, now time.Time) error {
	ca, err := dir.CA()
	if err != nil {
		return err
	}
	if name == "" {
		if name, err = hostName(); err != nil {
			return err
		}
	}
	creds, err := dir.Ensure(ca, identity.SlotNode, identity.Subject{Role: identity.RoleAgent, Name: name}, now)
	if err != nil {
		return err
	}
	cluster, err := dir.Cluster()
	if err != nil {
		return err
	}
	admin, err := dir.Load(identity.SlotCoordinator)
	if err != nil {
		return err
	}
	st, err := store.Open(ctx, store.Config{
		Endpoints: cluster.Etcd,
		TLS:       admin.ClientTLS(identity.ALPNControl, identity.Expect{Roles: []identity.Role{identity.RoleEtcd}}),
	})
	if err != nil {
		return err
	}
	return errors.Join(st.ClaimName(ctx, name, creds.Self().KeyHash), st.Close())
}

func hostName() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("name of this machine: %w; say it with --name", err)
	}
	return strings.ToLower(strings.Split(host, ".")[0]), nil
}
