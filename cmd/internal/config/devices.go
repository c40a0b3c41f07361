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

// Device is what is said of a device of an agent: what of it may be used, or,
// of a name such as sim:0, what the simulated device is like. It is
// `{name: sim:0, memory: 2GiB}` in a file, "sim:0 memory=2GiB" elsewhere. Rates
// of 0 are as fast as the machine copies.
type Device struct {
	Name    string `mapstructure:"name"`
	Off     bool   `mapstructure:"off"`     // not to be used
	Memory  Bytes  `mapstructure:"memory"`  // at most; of a simulated device, all it has
	Reserve string `mapstructure:"reserve"` // of that, kept free; empty: 2GiB where a desktop or a ComfyUI uses the card
	H2D     Rate   `mapstructure:"h2d"`     // from RAM
	D2H     Rate   `mapstructure:"d2h"`     // to RAM; as h2d where it is not said
	Peer    Rate   `mapstructure:"peer"`    // from another simulated device; as h2d where it is not said
	Threads int    `mapstructure:"threads"` // of a simulated device, that compute
}

// Simulated says whether the device is made up.
func (d *Device) Simulated() bool { return strings.HasPrefix(d.Name, "sim:") }

// Kept is the reserve; false where none is said.
func (d *Device) Kept() (Bytes, bool, error) {
	if d.Reserve == "" {
		return 0, false, nil
	}
	b, err := ParseBytes(d.Reserve)
	return b, err == nil, err
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
		case "off":
			d.Off = value == "" || value == "true"
			if !d.Off && value != "false" {
				err = errors.New("want off, off=true or off=false")
			}
		case "reserve":
			d.Reserve = value
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
			err = fmt.Errorf("there is no %q; want off, memory, reserve, h2d, d2h, peer or threads", key)
		}
		if err != nil {
			return fmt.Errorf("device %s: %s: %w", d.Name, w, err)
		}
	}
	return nil
}

// String writes the device as UnmarshalText reads it.
func (d Device) String() string {
	words := []string{d.Name}
	if d.Off {
		words = append(words, "off")
	}
	put := func(key, value string, said bool) {
		if said {
			words = append(words, key+"="+value)
		}
	}
	put("memory", d.Memory.String(), d.Memory > 0)
	put("reserve", d.Reserve, d.Reserve != "")
	put("h2d", d.H2D.String(), d.H2D > 0)
	put("d2h", d.D2H.String(), d.D2H > 0)
	put("peer", d.Peer.String(), d.Peer > 0)
	put("threads", strconv.Itoa(d.Threads), d.Threads > 0)
	return strings.Join(words, " ")
}

// deviceName is what devices are called. Nobody takes a simulated one for a GPU.
var deviceName = regexp.MustCompile(`^(cpu|mps|(cuda|rocm|xpu|sim):(0|[1-9][0-9]?))$`)

// devices checks what is said of devices.
func (a *Agent) devices() error {
	known := map[string]bool{}
	for i := range a.Devices {
		d := &a.Devices[i]
		if err := d.check(); err != nil {
			return err
		}
		if known[d.Name] {
			return fmt.Errorf("%s is there twice", d.Name)
		}
		known[d.Name] = true
	}
	return nil
}

func (d *Device) check() error {
	if !deviceName.MatchString(d.Name) {
		return fmt.Errorf("%q: want a name of `distorch nodes`, such as cuda:0; a simulated device is called sim:0 to sim:99", d.Name)
	}
	kept, _, err := d.Kept()
	switch {
	case err != nil:
		return fmt.Errorf("%s: reserve: %w", d.Name, err)
	case d.Memory > 0 && kept >= d.Memory:
		return fmt.Errorf("%s: reserve %s leaves nothing of memory %s", d.Name, kept, d.Memory)
	case d.Name == "cpu" && (d.Memory > 0 || d.Reserve != ""):
		return errors.New("cpu: its memory is agent.memory, and its reserve agent.reserve")
	case !d.Simulated() && (d.H2D > 0 || d.D2H > 0 || d.Peer > 0 || d.Threads > 0):
		return fmt.Errorf("%s: h2d, d2h, peer and threads are a simulated device's; a real one's are measured", d.Name)
	case d.Simulated() && d.Memory == 0 && !d.Off:
		return fmt.Errorf("%s has no memory; say how much, such as memory: 2GiB", d.Name)
	case d.Threads < 0 || d.Threads > 4096:
		return fmt.Errorf("%s: %d threads: want 1 to 4096, or 0 for 1", d.Name, d.Threads)
	}
	return nil
}
