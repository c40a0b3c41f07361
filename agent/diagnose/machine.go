// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"cmp"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/distorch/distorch/model/tensor"
)

const (
	// leastRAM is what an agent needs beside weights to be of use.
	leastRAM = 2 * tensor.GB
	// lowDisk is where the cluster's state, calibrations and logs may run out of
	// room; leastDisk is where they do.
	lowDisk, leastDisk = tensor.GB, 100 * tensor.MB
	// lateClock is when certificates are about to fail.
	lateClock = 30 * 24 * time.Hour
)

// epoch is before any build of this program: an earlier clock was never set.
func epoch() time.Time { return time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC) }

// memory looks at RAM.
func memory(f Facts) []Finding {
	r := f.RAM
	out := Finding{Severity: OK, Check: CheckMemory, Text: fmt.Sprintf("%v, %v free", r.Total, r.Available)}
	if r.Asked > 0 {
		out.Text += fmt.Sprintf("; agent.memory %v", r.Asked)
	}
	switch {
	case r.Error != "":
		out.Severity, out.Text, out.Mend = Warning, r.Error, "agent.memory: 8GB, or what the machine has to spare"
	case r.Asked > r.Total:
		out.Severity, out.Mend = Broken, "agent.memory: "+short(r.Available/10*9)
	case r.Running: // what is free is beside what the agent took
	case r.Asked > r.Available:
		out.Severity, out.Mend = Warning, "agent.memory: "+short(r.Available/10*9)+", or end what holds the rest"
	case r.Available < leastRAM:
		out.Severity, out.Mend = Warning, "end what holds the rest; `ps aux --sort -rss | head` lists it"
		if f.Container != "" {
			out.Mend = "raise the container's memory limit"
		}
	}
	return []Finding{out}
}

// short writes an amount as configuration has it.
func short(b tensor.Bytes) string {
	return strings.ReplaceAll(b.String(), " ", "")
}

// models looks at the folders with checkpoints.
func models(f Facts) []Finding {
	if len(f.Folders) == 0 {
		return []Finding{{Severity: Note, Check: CheckModels, Text: "models.dirs names no folder: this node holds no checkpoint and gets none", Mend: "distorch agent --models DIR"}}
	}
	var out []Finding
	for _, d := range f.Folders {
		one := Finding{Severity: OK, Check: CheckModels, Subject: d.Path, Text: plural(d.Checkpoints, "checkpoint")}
		switch {
		case d.Missing:
			one.Severity, one.Text, one.Mend = Broken, "does not exist", "mkdir -p "+quote(d.Path)+", or correct models.dirs"
		case d.Denied:
			one.Severity, one.Text, one.Mend = Broken, "this user may not read it", "sudo chmod -R a+rX "+quote(d.Path)
		case d.Error != "":
			one.Severity, one.Text, one.Mend = Broken, d.Error, "correct models.dirs"
		case d.Checkpoints == 0:
			one.Severity, one.Text, one.Mend = Warning, "no checkpoint that this build runs", "put .safetensors or .gguf files there, or name another folder in models.dirs"
		}
		out = append(out, one)
		for _, s := range d.Skipped {
			out = append(out, Finding{Severity: Note, Check: CheckModels, Subject: s.Path, Text: "not used: " + s.Reason})
		}
		if d.Left > 0 {
			out = append(out, Finding{Severity: Note, Check: CheckModels, Subject: d.Path, Text: plural(d.Left, "more file") + " not used"})
		}
	}
	return out
}

// quote makes a path one word of a shell.
func quote(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/._-+:@%", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// disk looks at the room of the data directory.
func disk(f Facts) []Finding {
	d := f.Data
	out := Finding{Severity: OK, Check: CheckDisk, Subject: d.Path, Text: fmt.Sprintf("%v free of %v", d.Free, d.Total)}
	switch {
	case d.Path == "":
		return nil
	case d.Error != "":
		out.Severity, out.Text, out.Mend = Warning, d.Error, "--data-dir DIR: a folder that this user may write"
	case d.Total == 0:
		return nil // the system does not tell
	case d.Free < leastDisk:
		out.Severity, out.Mend = Broken, "free some space, or --data-dir DIR on another disk"
	case d.Free < lowDisk:
		out.Severity, out.Mend = Warning, "free some space, or --data-dir DIR on another disk"
	}
	return []Finding{out}
}

// setClock is how a clock is set where the system is not known.
const setClock = "sudo timedatectl set-ntp true"

// setOwnClock is how this machine's clock is set.
func setOwnClock(f Facts) string {
	switch {
	case strings.HasPrefix(f.Platform, "windows"):
		return "w32tm /resync (as administrator)"
	case strings.HasPrefix(f.Platform, "darwin"):
		return "sudo sntp -sS time.apple.com"
	}
	return setClock
}

// clock holds the time against the certificate's.
func clock(f Facts) []Finding {
	c := f.Certificate
	out := Finding{Severity: OK, Check: CheckClock, Text: f.Time.UTC().Format(time.RFC3339)}
	if !c.Until.IsZero() {
		out.Text += "; certificate until " + c.Until.UTC().Format(time.DateOnly)
	}
	switch {
	case f.Time.IsZero():
		return nil
	case f.Time.Before(epoch()):
		out.Severity, out.Text, out.Mend = Broken, fmt.Sprintf("the clock says %s: it was never set", f.Time.UTC().Format(time.RFC3339)), setOwnClock(f)
	case !c.From.IsZero() && f.Time.Before(c.From):
		out.Severity, out.Text, out.Mend = Broken, fmt.Sprintf("the clock says %s, before this node's certificate begins (%s)", f.Time.UTC().Format(time.RFC3339), c.From.UTC().Format(time.RFC3339)), setOwnClock(f)
	case !c.Until.IsZero() && f.Time.After(c.Until):
		out.Severity, out.Text, out.Mend = Broken, "this node's certificate ended on "+c.Until.UTC().Format(time.DateOnly), rejoin(f)
	case !c.Until.IsZero() && f.Time.After(c.Until.Add(-lateClock)):
		out.Severity, out.Mend = Warning, rejoin(f)
	}
	return []Finding{out}
}

// rejoin is how a node gets a new certificate for the key that it has.
func rejoin(f Facts) string {
	return "on the coordinator's machine: restart it; elsewhere: rm " + quote(cmp.Or(f.Data.Path, "DATA_DIR")+"/node.crt") +
		", then distorch agent --join-file FILE with a token of `distorch token create`; if the clock is wrong: " + setOwnClock(f)
}

// ports says which nodes do not answer this one.
func ports(f Facts) []Finding {
	var out []Finding
	for _, p := range f.Peers {
		out = append(out, reach(f.Node, f.Address, p))
	}
	return out
}

// reach is what dialling a peer came to, for a node at an address.
func reach(from, address string, p Peer) Finding {
	out := Finding{Severity: Broken, Check: CheckPort, Subject: from + " to " + p.Name}
	host, port, err := net.SplitHostPort(p.Address)
	if err != nil {
		host, port = p.Address, "PORT"
	}
	switch p.Failure {
	case "":
		out.Severity, out.Text = OK, fmt.Sprintf("%s answers in %s", p.Address, p.RoundTrip.Round(100*time.Microsecond))
	case PeerRefused:
		out.Text, out.Mend = "nothing listens at "+p.Address, fmt.Sprintf("start the agent of %s, or give the address where it is reached: distorch agent --listen IP:%s", p.Name, port)
	case PeerSilent:
		out.Text, out.Mend = p.Address+" does not answer: a firewall, an agent that hangs, or a machine that is off", fmt.Sprintf("on %s: sudo ufw allow %s/tcp (or the firewall that it has)", p.Name, port)
	case PeerNoRoute:
		out.Text, out.Mend = "there is no way to "+p.Address, fmt.Sprintf("on %s: distorch agent --listen IP:%s with an address of a network that both have", p.Name, port)
	case PeerNoName:
		out.Text, out.Mend = "the name "+host+" is not known here", fmt.Sprintf("on %s: distorch agent --advertise IP:%s", p.Name, port)
	case PeerIdentity:
		out.Text, out.Mend = fmt.Sprintf("somebody else answers at %s: %s", p.Address, p.Error), "give each agent an address of its own; its clock: "+setClock
	default:
		out.Text, out.Mend = fmt.Sprintf("%s: %s", p.Address, cmp.Or(p.Error, "no answer")), "look at the log of the agent on "+p.Name
	}
	if own, _, err := net.SplitHostPort(address); p.Failure != "" && loopback(host) && (err != nil || !loopback(own)) {
		out.Text += "; that address is reached on its own machine alone"
		out.Mend = fmt.Sprintf("on %s: distorch agent --listen IP:%s with its address in your network", p.Name, port)
	}
	return out
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
