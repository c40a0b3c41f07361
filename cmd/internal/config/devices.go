// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Device is a simulated device of an agent: `{name: sim:0, memory: 2GiB}` in a
// file, "sim:0 memory=2GiB" in a variable. Rates of 0 are as fast as the machine
// copies.
type Device struct {
	Name    string `mapstructure:"name"`
	Memory  Bytes  `mapstructure:"memory"`
	H2D     Rate   `mapstructure:"h2d"`  // from RAM
	D2H     Rate   `mapstructure:"d2h"`  // to RAM; as h2d where it is not said
	Peer    Rate   `mapstructure:"peer"` // from another simulated device; as h2d where it is not said
	Threads int    `mapstructure:"threads"`
}

// Rate is bytes per second, written as 4GB/s.
type Rate Bytes

// UnmarshalText reads a rate.
func (r *Rate) UnmarshalText(text []byte) error {
	amount, _ := strings.CutSuffix(strings.TrimSpace(string(text)), "/s")
	b, err := ParseBytes(amount)
	if err != nil {
		return fmt.Errorf("rate %q: want bytes per second, such as 4GB/s", text)
	}
	*r = Rate(b)
	return nil
}

// String writes the rate as it is read.
func (r Rate) String() string { return Bytes(r).String() + "/s" }

// UnmarshalText reads a device from one line: its name and key=value pairs.
func (d *Device) UnmarshalText(text []byte) error {
	words := strings.Fields(string(text))
	if len(words) == 0 {
		return errors.New("a device without a name")
	}
	*d = Device{Name: words[0]}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		var err error
		switch key {
		case "memory":
			err = d.Memory.UnmarshalText([]byte(value))
		case "h2d":
			err = d.H2D.UnmarshalText([]byte(value))
		case "d2h":
			err = d.D2H.UnmarshalText([]byte(value))
		case "peer":
			err = d.Peer.UnmarshalText([]byte(value))
		case "threads":
			d.Threads, err = strconv.Atoi(value)
		default:
			err = fmt.Errorf("there is no %q; want memory, h2d, d2h, peer or threads", key)
		}
		if err != nil {
			return fmt.Errorf("device %s: %s: %w", d.Name, w, err)
		}
	}
	return nil
}

// String writes the device as UnmarshalText reads it.
func (d Device) String() string {
	s := d.Name + " memory=" + d.Memory.String()
	for _, r := range []struct {
		key  string
		rate Rate
	}{{"h2d", d.H2D}, {"d2h", d.D2H}, {"peer", d.Peer}} {
		if r.rate > 0 {
			s += " " + r.key + "=" + r.rate.String()
		}
	}
	if d.Threads > 0 {
		s += " threads=" + strconv.Itoa(d.Threads)
	}
	return s
}

// simName is what a simulated device may be called: nobody takes it for a GPU.
var simName = regexp.MustCompile(`^sim:(0|[1-9][0-9]?)$`)

// devices checks the simulated devices.
func (a *Agent) devices() error {
	known := map[string]bool{}
	for _, d := range a.Devices {
		switch {
		case !simName.MatchString(d.Name):
			return fmt.Errorf("%q: a simulated device is called sim:0 to sim:99", d.Name)
		case known[d.Name]:
			return fmt.Errorf("%s is there twice", d.Name)
		case d.Memory == 0:
			return fmt.Errorf("%s has no memory; say how much, such as memory: 2GiB", d.Name)
		case d.Threads < 0 || d.Threads > 4096:
			return fmt.Errorf("%s: %d threads: want 1 to 4096, or 0 for 1", d.Name, d.Threads)
		}
		known[d.Name] = true
	}
	return nil
}
