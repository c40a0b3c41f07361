// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestDefaultsAreValid(t *testing.T) {
	c, err := Load(nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), *c, cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("loaded defaults (-want +got):\n%s", diff)
	}
	for _, key := range Keys() {
		if got := c.Origin(key); got != (Origin{Source: "default"}) {
			t.Errorf("origin of %s: %s", key, got)
		}
	}
}

// TestPrecedence walks down from the strongest source to the weakest.
func TestPrecedence(t *testing.T) {
	file := write(t, "c.yaml", "agent:\n  memory: 1GB\n  threads: 3\n  name: from-file\n  labels: [rack=a.B, zone=x]\n")
	t.Setenv("DISTORCH_AGENT_MEMORY", "2GB")
	t.Setenv("DISTORCH_AGENT_THREADS", "4")
	t.Setenv("DISTORCH_MODELS_DIRS", "/a,/b")
	t.Setenv("DISTORCH_AGENT", "hides nothing")
	fs := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	Flag(fs, "memory", "agent.memory", "memory to use")
	Flag(fs, "threads", "agent.threads", "threads to use")
	Flag(fs, "lease-ttl", "coordinator.lease_ttl", "lease")
	if err := fs.Parse([]string{"--memory", "3GiB", "--lease-ttl", "25s"}); err != nil {
		t.Fatal(err)
	}
	c, err := Load(fs, file)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Agent.Memory, want.Agent.Threads, want.Agent.Name = 3<<30, 4, "from-file"
	want.Agent.Labels = []string{"rack=a.B", "zone=x"}
	want.Models.Dirs = []string{"/a", "/b"}
	want.Coordinator.LeaseTTL = 25 * time.Second
	if diff := cmp.Diff(want, *c, cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for key, want := range map[string]string{
		"agent.memory":          "flag --memory",
		"coordinator.lease_ttl": "flag --lease-ttl",
		"agent.threads":         "environment DISTORCH_AGENT_THREADS",
		"agent.name":            "file " + file + ":4",
		"agent.listen":          "default",
		"no.such.key":           "",
	} {
		if got := c.Origin(key).String(); got != want {
			t.Errorf("origin of %s: %q, want %q", key, got, want)
		}
	}
}

// TestLines: the line of a key is told in each form of a file.
func TestLines(t *testing.T) {
	for name, text := range map[string]string{
		"c.yaml": "# a comment\nagent:\n  memory: 1GB\n  Labels:\n  - a=b\nlog: {level: debug}\n",
		"c.toml": "# agent.memory = 1\n[agent]\nmemory = \"1GB\"\n \"Labels\" = [\"a=b\"]\n[log]\nlevel = \"debug\"\n",
		"c.json": "{\n \"agent\": {\n  \"memory\": \"1GB\",\n  \"labels\": [\"a=b\"]\n },\n \"log\": {\"level\": \"debug\"}\n}\n",
	} {
		file := write(t, name, text)
		c, err := Load(nil, file)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for key, line := range map[string]int{"agent.memory": 3, "agent.labels": 4, "log.level": 6} {
			if got, want := c.Origin(key), (Origin{"file", file, line}); got != want {
				t.Errorf("%s: origin of %s: %s, want %s", name, key, got, want)
			}
		}
	}
	_, err := Load(nil, write(t, "c.yaml", "log:\n  level: info\n  colour: red\n"))
	if err == nil || !strings.Contains(err.Error(), `c.yaml:3: there is no key "log.colour"`) {
		t.Errorf("a misspelt key: %v", err)
	}
}

// TestSettings: what is shown of a configuration is a configuration.
func TestSettings(t *testing.T) {
	want := Default()
	want.Agent.Memory, want.Agent.Labels, want.Coordinator.LeaseTTL = 6e9, []string{"rack=a"}, 25*time.Second
	var text strings.Builder
	for _, s := range want.Settings() {
		raw, err := json.Marshal(s.Value)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&text, "%s = %s\n", s.Key, raw)
	}
	got, err := Load(nil, write(t, "c.toml", text.String()))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text.String())
	}
	if diff := cmp.Diff(want, *got, cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEveryKeyReadsItsVariable(t *testing.T) {
	for _, key := range Keys() {
		t.Run(key, func(t *testing.T) {
			t.Setenv(Env(key), "\x01 no key takes this")
			c, err := Load(nil, "")
			if err == nil && c.Origin(key).Source != "environment" {
				t.Errorf("%s was not read", Env(key))
			}
		})
	}
}

func TestFlagHelpShowsDefaults(t *testing.T) {
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	for _, key := range Keys() {
		Flag(fs, strings.NewReplacer(".", "-", "_", "-").Replace(key), key, "set "+key)
	}
	usage := fs.FlagUsages()
	for _, want := range []string{"--agent-memory bytes", `--coordinator-listen string`, "127.0.0.1:7801", "--agent-labels strings", "(default 20s)"} {
		if !strings.Contains(usage, want) {
			t.Errorf("help lacks %q:\n%s", want, usage)
		}
	}
	c, err := Load(fs, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), *c, cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("unset flags changed the defaults:\n%s", diff)
	}
	defer func() {
		if recover() == nil {
			t.Error("a flag for an unknown key was accepted")
		}
	}()
	Flag(fs, "x", "agent.memroy", "")
}

func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		name, file, text string
		env              map[string]string
		want             []string
	}{
		{name: "misspelt key", file: "c.yaml", text: "agent:\n  memroy: 6GB\n", want: []string{`no key "agent.memroy"`, `"agent.memory"`}},
		{name: "key without its section", file: "c.yaml", text: "cpu_isa: avx2\n", want: []string{`no key "cpu_isa"`, `"agent.cpu_isa"`}},
		{name: "two misspelt keys", file: "c.toml", text: "dat_dir = 1\n[log]\nlvl = 2\n", want: []string{`"data_dir"`, `"log.level"`}},
		{name: "section as value", file: "c.yaml", text: "agent: 6GB\n", want: []string{`"agent" is a section`}},
		{name: "unreadable value", file: "c.json", text: `{"agent":{"threads":"many"}}`, want: []string{"threads"}},
		{name: "network", env: map[string]string{"DISTORCH_COMFY_ALLOW": "10.0.0.0/8,home"}, want: []string{"comfy.allow", `"home"`}},
		{name: "unreadable amount", file: "c.yaml", text: "agent: {memory: 6 parsecs}\n", want: []string{"6 parsecs", "512MiB"}},
		{name: "broken file", file: "c.yaml", text: "agent: [", want: []string{"c.yaml"}},
		{name: "huge file", file: "c.yaml", text: strings.Repeat("#", maxFileBytes+1), want: []string{"at most"}},
		{name: "misspelt variable", env: map[string]string{"DISTORCH_AGENT_MEMROY": "6GB"}, want: []string{"DISTORCH_AGENT_MEMROY", "DISTORCH_AGENT_MEMORY"}},
		{name: "all invalid values at once", file: "c.yaml", text: `
log: {level: loud, format: xml}
coordinator: {listen: nowhere, lease_ttl: 1s, etcd: {endpoints: ["http://a:1"], cert_file: x}}
agent: {name: "a b", listen: "example:1", advertise: ":1", threads: -1, cpu_isa: sse2, engine: cuda, labels: [x], memory: 1GB, reserve: 1GB}
transport: {silence_limit: 1ms}
client: {coordinator: "127.0.0.1:0"}
comfy: {listen: "0.0.0.0:8188", origins: [x], storage: 1MB}
`, want: []string{
			"comfy.listen", "ComfyUI's API knows no passwords", "comfy.origins", "comfy.storage",
			"log.level", "debug, info, warn, error", "log.format", "coordinator.listen", "coordinator.lease_ttl", "coordinator.etcd.endpoints", "https://",
			"coordinator.etcd.cert_file", "agent.name", "agent.listen", "agent.advertise", "agent.threads", "agent.cpu_isa", "avx512bf16, avx512, avx2, generic", "agent.engine",
			"agent.labels", "agent.reserve", "transport.silence_limit", "client.coordinator",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := ""
			if tc.file != "" {
				file = write(t, tc.file, tc.text)
			}
			for name, value := range tc.env {
				t.Setenv(name, value)
			}
			_, err := Load(nil, file)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error lacks %q:\n%v", want, err)
				}
			}
		})
	}
	if _, err := Load(nil, filepath.Join(t.TempDir(), "absent.yaml")); err == nil {
		t.Error("an absent file was accepted")
	}
}

// TestServiceVariablesAreLeftAlone: Kubernetes sets these for services.
func TestServiceVariablesAreLeftAlone(t *testing.T) {
	t.Setenv("DISTORCH_AGENT_SERVICE_HOST", "10.0.0.1")
	t.Setenv("DISTORCH_COORDINATOR_PORT_7801_TCP", "tcp://10.0.0.1:7801")
	if _, err := Load(nil, ""); err != nil {
		t.Error(err)
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0": 0, "17": 17, "6GB": 6e9, "6 GiB": 6 << 30, "1.5gb": 1.5e9, "512MiB": 512 << 20, "2TB": 2e12,
		"1kB": 1000, "1b": 1, "9007199254740993": 9007199254740993,
	} {
		got, err := ParseBytes(text)
		if err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", text, got, err, want)
		}
		if back, err := ParseBytes(got.String()); err != nil || back != got {
			t.Errorf("%d is written as %q, which reads as %d, %v", got, got, back, err)
		}
	}
	for _, text := range []string{"", "GB", "-1", "6 parsecs", "1e30TB", "NaN", "Inf", "0x10"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("ParseBytes(%q) = %d", text, got)
		}
	}
}

func FuzzParseBytes(f *testing.F) {
	for _, text := range []string{"6GB", "1.5 TiB", "", "9e9", "-0b"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := ParseBytes(text)
		if err != nil {
			return
		}
		if back, err := ParseBytes(b.String()); err != nil || back != b {
			t.Errorf("%q reads as %d, is written as %q and reads as %d, %v", text, b, b, back, err)
		}
	})
}

func TestDevices(t *testing.T) {
	want := []Device{
		{Name: "sim:0", Memory: 2 << 30, H2D: 4e9, Threads: 1},
		{Name: "sim:1", Memory: 1 << 30, Peer: 2 << 20},
	}
	file := write(t, "c.yaml", `agent:
  devices:
    - {name: sim:0, memory: 2GiB, h2d: 4GB/s, threads: 1}
    - {name: sim:1, memory: 1GiB, peer: 2MiB/s}
`)
	c, err := Load(nil, file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, c.Agent.Devices); diff != "" {
		t.Errorf("of the file (-want +got):\n%s", diff)
	}
	var lines []string
	for _, d := range want {
		lines = append(lines, d.String())
	}
	t.Setenv("DISTORCH_AGENT_DEVICES", strings.Join(lines, ","))
	if c, err = Load(nil, ""); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, c.Agent.Devices); diff != "" {
		t.Errorf("of the variable %q (-want +got):\n%s", lines, diff)
	}
	for text, says := range map[string]string{
		"sim:0":                             "memory",
		"gpu0 memory=1GB":                   "sim:0",
		"sim:0 memory=1GB,sim:0 memory=1GB": "twice",
		"sim:0 memory=lots":                 "lots",
		"sim:0 memory=1GB h2d=fast":         "fast",
		"sim:0 memory=1GB speed=4GB/s":      "speed",
		"sim:0 memory=1GB threads=-1":       "threads",
	} {
		t.Setenv("DISTORCH_AGENT_DEVICES", text)
		if _, err := Load(nil, ""); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(strings.ToLower(err.Error()), "devices") {
			t.Errorf("%q: %v", text, err)
		}
	}
	t.Setenv("DISTORCH_AGENT_DEVICES", "")
	if _, err := Load(nil, write(t, "d.yaml", "agent:\n  devices:\n    - {name: sim:0, memory: 1GB, rate: 3}\n")); err == nil || !strings.Contains(err.Error(), "rate") {
		t.Errorf("an unknown key of a device: %v", err)
	}
}
