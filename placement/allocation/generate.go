// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package allocation

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Options are what a generated string is to do.
type Options struct {
	Mode    Mode     // whose rules it is for; empty is Default
	Compute DeviceID // empty: the first accelerator, the first device if there is none
	// Virtual is how many bytes of the model are to lie elsewhere than on the compute device. The string is then the virtual
	// VRAM form. 0 keeps as much as fits on the compute device.
	Virtual Bytes
	Reserve Bytes // kept free on every device
}

// Generate writes a string which, assigned in its mode to the same devices and blocks, puts every block where it fits. The
// compute device comes first, then the other accelerators and then the cpus in the order of devices, those of its own node
// before others. Errors: [ErrInput]; *[FitError] if none was found.
func Generate(devices []Device, blocks Blocks, o Options) (string, error) {
	t, err := blocks.table()
	if err == nil {
		err = checkDevices(devices)
	}
	if err != nil {
		return "", err
	}
	if o.Reserve < 0 || o.Virtual < 0 {
		return "", inputError("a reserve of %d bytes and virtual VRAM of %d bytes", o.Reserve, o.Virtual)
	}
	g := &generator{Options: o, table: t, blocks: blocks, devices: slices.Clone(devices)}
	for i := range g.devices {
		g.devices[i].Free = max(0, g.devices[i].Free-o.Reserve)
	}
	if err := g.sort(); err != nil {
		return "", err
	}
	var candidates []string
	switch {
	case o.Mode != Distorch2 && o.Virtual > 0:
		candidates = []string{g.virtual(len(g.devices) - 1)}
	case o.Mode != Distorch2:
		candidates = []string{g.ranges()}
	default:
		if candidates, err = g.compat(); err != nil {
			return "", err
		}
	}
	for _, text := range candidates {
		if g.fits(text) {
			return text, nil
		}
	}
	return "", g.short()
}

type generator struct {
	Options
	table
	blocks  Blocks
	devices []Device // the compute device first; Free is without the reserve
}

func (g *generator) sort() error {
	if g.Compute == "" {
		g.Compute = g.devices[max(0, slices.IndexFunc(g.devices, func(d Device) bool { return d.ID.Accelerator() }))].ID
	}
	if !slices.ContainsFunc(g.devices, func(d Device) bool { return d.ID == g.Compute }) {
		var names []string
		for _, d := range g.devices {
			names = append(names, string(d.ID))
		}
		return inputError("there is no device %s to compute on; the nearest is %s", g.Compute, nearestWord(string(g.Compute), names))
	}
	rank := func(d Device) int {
		n := 0
		if d.ID == g.Compute {
			return -1
		}
		if !d.ID.Accelerator() {
			n++
		}
		if d.ID.Node() != g.Compute.Node() {
			n += 2
		}
		return n
	}
	slices.SortStableFunc(g.devices, func(a, b Device) int { return cmp.Compare(rank(a), rank(b)) })
	return nil
}

// room is what a device has for blocks.
func (g *generator) room(i int) Bytes {
	if i == 0 {
		return max(0, g.devices[0].Free-g.blocks.Fixed)
	}
	return g.devices[i].Free
}

// ranges fills the devices one after the other.
func (g *generator) ranges() string {
	var parts []string
	at := 0
	for i, d := range g.devices {
		end := g.upTo(at, g.count(), g.room(i))
		if end == at {
			continue
		}
		if end == g.count() {
			parts = append(parts, string(d.ID)+",*")
			break
		}
		least := g.bytes(at, end)
		parts = append(parts, string(d.ID)+","+amount(least, min(g.bytes(at, end+1)-1, g.room(i))))
		at = end
	}
	return strings.Join(parts, ";") + "#" + string(g.Compute)
}

// virtual is the virtual VRAM form with so many donors.
func (g *generator) virtual(donors int) string {
	var names []string
	for _, d := range g.devices[1 : donors+1] {
		if d.Free > 0 {
			names = append(names, string(d.ID))
		}
	}
	gb := strconv.FormatFloat(float64(g.Virtual)/gib, 'f', -1, 64)
	return fmt.Sprintf("#%s;%s;%s", g.Compute, gb, strings.Join(names, ","))
}

func (g *generator) fits(text string) bool {
	mode := g.Mode
	if mode == "" {
		mode = Default
	}
	e, p := read(text, mode)
	if p != nil {
		return false
	}
	r, err := assign(e, g.devices, g.blocks)
	if err != nil {
		return false
	}
	_, over := r.Over()
	return !over
}

// short is the error of blocks for which no string was found: those behind the last that fits when the devices are filled in
// turn.
func (g *generator) short() error {
	e := &FitError{}
	e.sum(g.devices, g.blocks)
	at := 0
	for i := range g.devices {
		at = g.upTo(at, g.count(), g.room(i))
	}
	if at == g.count() { // all fit, but not as they were wanted
		at = 0
	}
	e.First, e.Blocks, e.Needed = at, g.count()-at, g.bytes(at, g.count())
	e.Short = e.Needed
	if g.Virtual > 0 {
		if text, err := Generate(g.devices, g.blocks, Options{Mode: g.Mode, Compute: g.Compute}); err == nil {
			e.Nearest = text
		}
	}
	return e
}

// compat gives strings for distorch2. Quotas that are at most what is free cannot overfill a device, but first fit may leave
// blocks to the compute device, so quotas of the others are tried with more and more room to spare.
func (g *generator) compat() ([]string, error) {
	for _, d := range g.devices {
		if d.ID.Node() != "" {
			return nil, inputError("distorch2 knows one machine; %s has a node", d.ID)
		}
	}
	if g.Virtual > 0 {
		var list []string
		for donors := 1; donors < len(g.devices); donors++ {
			list = append(list, g.virtual(donors))
		}
		return list, nil
	}
	largest := Bytes(0)
	for i := range g.count() {
		largest = max(largest, g.bytes(i, i+1))
	}
	var list []string
	const most = 8
	for spare := range Bytes(most) {
		list = append(list, g.fractions(spare*largest, 0))
	}
	for spare := range Bytes(most) { // leave room for orphans on the compute device
		list = append(list, g.fractions(g.total(), (spare+1)*largest))
	}
	if slices.ContainsFunc(g.devices, func(d Device) bool { return d.ID == "mps" }) { // its m makes every number bytes
		list = []string{"mps," + strconv.FormatInt(int64(g.room(0)), 10) + "b;cpu,*#" + string(g.Compute), "mps,0b;cpu,*#" + string(g.Compute)}
		for spare := range Bytes(most) {
			kept := max(0, g.room(0)-(spare+1)*largest)
			list = append(list, "mps,"+strconv.FormatInt(int64(kept), 10)+"b;cpu,*#"+string(g.Compute))
		}
	}
	return list, nil
}

// fractions gives each device in turn a quota of what is left, with so much to spare, as far as its free memory goes.
func (g *generator) fractions(spare, orphans Bytes) string {
	const decimals = 10000
	left := g.total()
	var parts []string
	for i, d := range g.devices {
		room := g.room(i)
		if i == 0 {
			room = max(0, room-orphans)
		}
		wanted := min(room, left+spare)
		if wanted <= 0 || d.Total <= 0 {
			continue
		}
		share := min(int64(float64(wanted)/float64(d.Total)*decimals)+1, int64(float64(room)/float64(d.Total)*decimals))
		if share <= 0 {
			continue
		}
		parts = append(parts, fmt.Sprintf("%s,%d.%04d", d.ID, share/decimals, share%decimals))
		left = max(0, left-wanted)
	}
	return strings.Join(parts, ";") + "#" + string(g.Compute)
}
