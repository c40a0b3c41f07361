// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package diagnose says what is wrong with a node, why a card of it is not
// used, and the command that mends it.
//
// It decides only: what is known of a machine comes in as Facts (package
// examine collects them) and goes out as Findings; the same facts give the same
// findings in the same order. Imported by the agent, package examine and the
// commands. Of distorch it imports agent/device and model/tensor, for their
// types.
package diagnose

import (
	"cmp"
	"slices"
	"time"

	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/model/tensor"
)

// Facts are what is known of one machine. What is not known is zero.
type Facts struct {
	Node        string            `json:"node"` // its name in the cluster, or the host's
	Time        time.Time         `json:"time"`
	Platform    string            `json:"platform"`            // linux/amd64
	OS          string            `json:"os,omitempty"`        // ID of /etc/os-release: ubuntu
	Container   string            `json:"container,omitempty"` // docker, podman, kubernetes, lxc
	WSL         bool              `json:"wsl,omitempty"`
	Version     string            `json:"version"`
	Address     string            `json:"address,omitempty"` // where peers dial its agent
	NVML        bool              `json:"nvml_in_build"`
	Engine      string            `json:"engine"`                // agent.engine
	Environment map[string]string `json:"environment,omitempty"` // that hides cards, of those that are set
	Cards       device.Inventory  `json:"cards"`
	Torch       *Torch            `json:"torch,omitempty"` // nil: it was not looked for
	RAM         RAM               `json:"ram"`
	Folders     []Folder          `json:"folders"`
	Data        Disk              `json:"data"`
	Certificate Certificate       `json:"certificate,omitzero"`
	Peers       []Peer            `json:"peers,omitempty"`
}

// Torch is what a Python's PyTorch can do.
type Torch struct {
	Python  string        `json:"python,omitempty"`
	Version string        `json:"version,omitempty"`
	Runtime string        `json:"runtime,omitempty"` // cu130, rocm6.4, xpu, cpu
	Archs   []string      `json:"archs,omitempty"`   // sm_80, gfx1100
	Devices []TorchDevice `json:"devices,omitempty"`
	Problem Problem       `json:"problem,omitempty"`
	Error   string        `json:"error,omitempty"` // in the words of whoever looked
}

// Problem is why a PyTorch cannot serve.
type Problem string

// The problems.
const (
	TorchAbsent Problem = "absent"
	TorchBroken Problem = "does not load"
	TorchTooOld Problem = "too old"
	TorchFailed Problem = "failed"
)

// TorchDevice is a device as PyTorch sees it.
type TorchDevice struct {
	ID    string `json:"id"`   // cuda:0
	Kind  string `json:"kind"` // cuda, rocm, xpu, mps, cpu
	Model string `json:"model,omitempty"`
	UUID  string `json:"uuid,omitempty"`
	Arch  string `json:"arch,omitempty"`
	Lacks bool   `json:"lacks,omitempty"` // this PyTorch has no code for it
}

// RAM is the memory of the machine and what the agent is told to take.
type RAM struct {
	Total     tensor.Bytes `json:"total_bytes"` // or the control group's limit
	Available tensor.Bytes `json:"available_bytes"`
	Asked     tensor.Bytes `json:"asked_bytes,omitempty"`   // agent.memory
	Reserve   tensor.Bytes `json:"reserve_bytes,omitempty"` // agent.reserve
	// Running says that an agent holds its memory already: what is available is
	// beside it.
	Running bool   `json:"running,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Folder is one of models.dirs.
type Folder struct {
	Path        string    `json:"path"`
	Error       string    `json:"error,omitempty"`
	Missing     bool      `json:"missing,omitempty"`
	Denied      bool      `json:"denied,omitempty"`
	Checkpoints int       `json:"checkpoints"`
	Skipped     []Skipped `json:"skipped,omitempty"` // at most MaxSkipped
	Left        int       `json:"left,omitempty"`    // skipped files that are not listed
}

// MaxSkipped bounds the files of a folder that are named.
const MaxSkipped = 20

// Skipped is a file that is no model this build runs.
type Skipped struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// Disk is the file system of a folder.
type Disk struct {
	Path  string       `json:"path"`
	Free  tensor.Bytes `json:"free_bytes"`
	Total tensor.Bytes `json:"total_bytes"`
	Error string       `json:"error,omitempty"`
}

// Certificate is the time that this machine's identity is good for.
type Certificate struct {
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
}

// Peer is another node, and whether it answers where it says it is.
type Peer struct {
	Name      string        `json:"name"`
	Address   string        `json:"address"`
	Failure   Failure       `json:"failure,omitempty"`
	Error     string        `json:"error,omitempty"`
	RoundTrip time.Duration `json:"round_trip_nanoseconds,omitempty"` // of connecting and both certificates
}

// Failure says how dialling a peer failed.
type Failure string

// The failures.
const (
	PeerRefused  Failure = "refused" // nothing listens there
	PeerSilent   Failure = "silent"  // no answer: a firewall, or a machine that is off
	PeerNoRoute  Failure = "no route"
	PeerNoName   Failure = "no such name"
	PeerIdentity Failure = "identity" // somebody else answers
	PeerOther    Failure = "other"
)

// Severity says how bad a finding is.
type Severity string

// The severities, from worst to best.
const (
	Broken  Severity = "broken" // something cannot be used as it is
	Warning Severity = "warning"
	Note    Severity = "note" // good to know, nothing to mend
	OK      Severity = "ok"
)

func (s Severity) rank() int {
	return slices.Index([]Severity{Broken, Warning, Note, OK}, s)
}

// Known says whether s is one of the severities.
func (s Severity) Known() bool { return s.rank() >= 0 }

// The checks, in the order in which findings are given.
const (
	CheckCard    = "card"    // a card and what keeps it from being used
	CheckCards   = "cards"   // the machine's cards together
	CheckTorch   = "torch"   // the Python that computes on cards
	CheckMemory  = "memory"  // RAM
	CheckModels  = "models"  // folders with checkpoints
	CheckDisk    = "disk"    // the data directory's
	CheckClock   = "clock"   // and the certificate that it is held against
	CheckPort    = "port"    // whether nodes reach each other
	CheckVersion = "version" // of the nodes
)

// Checks are all checks in order.
func Checks() []string {
	return []string{CheckCard, CheckCards, CheckTorch, CheckMemory, CheckModels, CheckDisk, CheckClock, CheckPort, CheckVersion}
}

// Finding is one line of a diagnosis.
type Finding struct {
	Severity Severity `json:"severity"`
	Check    string   `json:"check"`
	Subject  string   `json:"subject,omitempty"` // the card, folder or node that it is about
	Text     string   `json:"text"`
	Mend     string   `json:"mend,omitempty"`   // the command or the change that mends it
	Unused   bool     `json:"unused,omitempty"` // because of it the card is not used
}

// Check finds what is wrong with one machine.
func Check(f Facts) []Finding {
	var out []Finding
	for _, g := range f.Cards.GPUs {
		out = append(out, card(f, g)...)
	}
	out = append(out, cards(f)...)
	out = append(out, torch(f)...)
	out = append(out, memory(f)...)
	out = append(out, models(f)...)
	out = append(out, disk(f)...)
	out = append(out, clock(f)...)
	out = append(out, ports(f)...)
	return out
}

// Worst is the worst severity of findings; OK without any.
func Worst(findings []Finding) Severity {
	worst := OK
	for _, f := range findings {
		if f.Severity.rank() < worst.rank() {
			worst = f.Severity
		}
	}
	return worst
}

// Unused is what keeps a card from being used; false where nothing is in the
// way.
func Unused(f Facts, g device.GPU) (Finding, bool) {
	for _, finding := range card(f, g) {
		if finding.Unused {
			return finding, true
		}
	}
	return Finding{}, false
}

// subject names a card as its vendor does, with its place on the bus.
func subject(g device.GPU) string {
	if g.PCI == "" {
		return cmp.Or(g.Model, g.UUID)
	}
	return g.Model + " " + g.PCI
}
