// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package config reads the configuration of every distorch command: flags over
// the environment over a file over defaults.
//
// Only the commands import it, and it is the only importer of viper;
// components take plain structs of their own. Of distorch it imports internal/edits
// alone.
//
// A key is a field of Config: its name is the path of mapstructure tags, its
// default the field's value in Default, its environment variable DISTORCH_
// followed by the name in capitals with dots as underscores. Secrets are given
// as paths of files.
package config

import (
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// Config is what a distorch process can be told.
type Config struct {
	DataDir     string      `mapstructure:"data_dir"` // identity, etcd's data and caches
	Log         Log         `mapstructure:"log"`
	Coordinator Coordinator `mapstructure:"coordinator"`
	Comfy       Comfy       `mapstructure:"comfy"`
	Agent       Agent       `mapstructure:"agent"`
	Models      Models      `mapstructure:"models"`
	Transport   Transport   `mapstructure:"transport"`
	Client      Client      `mapstructure:"client"`

	origins map[string]Origin
}

// Log says what is logged and how.
type Log struct {
	Level  string `mapstructure:"level"`  // debug, info, warn or error
	Format string `mapstructure:"format"` // text or json
}

// Coordinator configures `up` and `coordinator`.
type Coordinator struct {
	Listen    string        `mapstructure:"listen"`
	Advertise []string      `mapstructure:"advertise"` // addresses put into tokens; empty: the listening ones
	LeaseTTL  time.Duration `mapstructure:"lease_ttl"` // how long a silent node stays registered
	Etcd      Etcd          `mapstructure:"etcd"`
}

// Comfy configures ComfyUI's own API on the coordinator.
type Comfy struct {
	Listen  string   `mapstructure:"listen"`  // empty: off
	Allow   []string `mapstructure:"allow"`   // networks besides loopback whose clients are answered
	Origins []string `mapstructure:"origins"` // of other web pages that may use it; *: any
	Storage Bytes    `mapstructure:"storage"` // of files that are kept
}

// Etcd says which etcd keeps the state. Without endpoints the coordinator
// embeds one.
type Etcd struct {
	Endpoints    []string `mapstructure:"endpoints"`
	ClientListen string   `mapstructure:"client_listen"`
	CAFile       string   `mapstructure:"ca_file"`
	CertFile     string   `mapstructure:"cert_file"`
	KeyFile      string   `mapstructure:"key_file"`
}

// Agent configures `agent`, and the agent inside `up`.
type Agent struct {
	Name      string   `mapstructure:"name"` // empty: the host's name
	Listen    string   `mapstructure:"listen"`
	Advertise string   `mapstructure:"advertise"` // empty: the listening address
	JoinFile  string   `mapstructure:"join_file"` // holds a join token
	Memory    Bytes    `mapstructure:"memory"`    // 0: what the host and its cgroup allow
	Reserve   Bytes    `mapstructure:"reserve"`   // left free for others
	Donate    string   `mapstructure:"donate"`    // of the memory, for other nodes' blocks; empty: what stages leave, none: nothing
	Threads   int      `mapstructure:"threads"`   // 0: cores divided by the agents on this host
	CPUISA    string   `mapstructure:"cpu_isa"`   // empty: the best the CPU has
	Engine    string   `mapstructure:"engine"`    // auto, native or torch
	Torch     Torch    `mapstructure:"torch"`
	Labels    []string `mapstructure:"labels"`  // key=value
	Devices   []Device `mapstructure:"devices"` // what may be used of devices; simulated ones
}

// Torch says which Python with PyTorch computes, and how.
type Torch struct {
	Python    string `mapstructure:"python"`    // empty: a ComfyUI's or the one on PATH
	ComfyUI   string `mapstructure:"comfyui"`   // folder of a ComfyUI whose Python is used
	Attention string `mapstructure:"attention"` // kernels on a GPU
}

// Models says where checkpoints are looked for.
type Models struct {
	Dirs []string `mapstructure:"dirs"`
}

// Transport tunes the connections between nodes.
type Transport struct {
	HandshakeTimeout time.Duration `mapstructure:"handshake_timeout"`
	RedialFor        time.Duration `mapstructure:"redial_for"`    // a broken connection is dialled again this long
	SilenceLimit     time.Duration `mapstructure:"silence_limit"` // without one, a node counts as lost
}

// Client configures the commands that ask a coordinator.
type Client struct {
	Coordinator string        `mapstructure:"coordinator"`
	Timeout     time.Duration `mapstructure:"timeout"` // of one call that does not compute
}

// Default is the configuration without flags, environment and file.
func Default() Config {
	return Config{
		DataDir: dataDir(),
		Log:     Log{Level: "info", Format: "text"},
		Coordinator: Coordinator{
			Listen:   "127.0.0.1:7801",
			LeaseTTL: 20 * time.Second,
			Etcd:     Etcd{ClientListen: "127.0.0.1:7802"},
		},
		Comfy: Comfy{Storage: 20_000_000_000},
		Agent: Agent{Listen: "127.0.0.1:7800", Engine: "auto", Torch: Torch{Attention: "auto"}},
		Transport: Transport{
			HandshakeTimeout: 10 * time.Second,
			RedialFor:        time.Second,
			SilenceLimit:     2 * time.Second,
		},
		Client: Client{Coordinator: "127.0.0.1:7801", Timeout: 10 * time.Second},
	}
}

// dataDir is where this system keeps a program's data for one user.
func dataDir() string {
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" && runtime.GOOS == "linux" {
		return filepath.Join(dir, "distorch")
	}
	home, err := os.UserHomeDir()
	switch {
	case err != nil:
		return filepath.Join(os.TempDir(), "distorch")
	case runtime.GOOS == "windows":
		return filepath.Join(home, "AppData", "Local", "distorch")
	case runtime.GOOS == "darwin":
		return filepath.Join(home, "Library", "Application Support", "distorch")
	}
	return filepath.Join(home, ".local", "share", "distorch")
}
