// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/catalogue"
)

// Defaults of a file; docs/cluster-file.md names them too.
const (
	defaultLatency     = 100e-6
	defaultPeerLatency = 20e-6
	defaultIsland      = 5e-6
	defaultReserve     = placement.Bytes(1e9)
	defaultRAMReserve  = placement.Bytes(4e9)
	defaultNIC         = 1e9 / 8 * LineShare
)

func (m *mapping) number(key string, fallback float64) float64 {
	if v := m.has[key]; v != nil {
		return v.number
	}
	return fallback
}

func (m *mapping) bytes(key string, fallback placement.Bytes) placement.Bytes {
	if v := m.has[key]; v != nil {
		return placement.Bytes(v.number + 0.5)
	}
	return fallback
}

func (m *mapping) text(key, fallback string) string {
	if v := m.has[key]; v != nil {
		return v.text
	}
	return fallback
}

func (m *mapping) flag(key string, fallback bool) bool {
	if v := m.has[key]; v != nil {
		return v.number != 0
	}
	return fallback
}

// spotOf is where a key's value stands, or else the mapping.
func (m *mapping) spotOf(key string) spot {
	if v := m.has[key]; v != nil {
		return v.at
	}
	return m.at
}

// builder makes nodes of what was read.
type builder struct {
	*reader
	out   Cluster
	lines map[string]int               // of names and ids
	index map[string]int               // into out.Nodes
	group map[placement.NodeID][2]item // by kind: the group that a node is in
}

func (r *reader) cluster(top *mapping) Cluster {
	b := &builder{reader: r, lines: map[string]int{}, index: map[string]int{}, group: map[placement.NodeID][2]item{}}
	if v := top.has["nodes"]; v != nil {
		if v.empty {
			r.bad(v.at, "no nodes: name at least one")
		}
		for _, m := range v.maps {
			b.nodes(m)
		}
	}
	if v := top.has["links"]; v != nil {
		seen := map[[2]placement.NodeID]int{}
		for _, m := range v.maps {
			b.link(m, seen)
		}
	}
	if v := top.has["groups"]; v != nil {
		seen := map[string]int{}
		for _, m := range v.maps {
			b.groupOf(m, seen)
		}
	}
	return b.out.sorted()
}

// rangePattern is lab-{01..16}.
var rangePattern = regexp.MustCompile(`^([^{}]*)\{([0-9]{1,6})\.\.([0-9]{1,6})\}([^{}]*)$`)

// expand are the names that a name or range stands for.
func (r *reader) expand(name string, at spot) []string {
	if !strings.ContainsAny(name, "{}") {
		return []string{name}
	}
	m := rangePattern.FindStringSubmatch(name)
	if m == nil {
		r.bad(at, "%q: a range is written like lab-{01..16}, once in a name", name)
		return nil
	}
	first, _ := strconv.Atoi(m[2])
	last, _ := strconv.Atoi(m[3])
	if last < first || last-first >= maxNodes {
		r.bad(at, "%q: a range goes up, over at most %d names", name, maxNodes)
		return nil
	}
	var out []string
	for i := first; i <= last; i++ {
		out = append(out, fmt.Sprintf("%s%0*d%s", m[1], len(m[2]), i, m[4]))
	}
	return out
}

// nodes adds those that one entry stands for.
func (b *builder) nodes(m *mapping) {
	n := b.node(m)
	name := m.has["name"]
	if name == nil {
		return
	}
	all := b.expand(name.text, name.at)
	if len(all) > 1 && m.has["id"] != nil {
		b.bad(m.has["id"].at, "an id belongs to one node; %s stands for %d", name.text, len(all))
		return
	}
	if len(b.out.Nodes)+len(all) > maxNodes {
		b.bad(name.at, "over %d nodes; placement handles no more", maxNodes)
		return
	}
	for _, one := range all {
		n.Name, n.ID = one, placement.NodeID(m.text("id", one))
		known := true
		for _, ref := range []string{string(n.ID), n.Name} {
			line, twice := b.lines[ref]
			if twice && known {
				b.bad(m.spotOf("name"), "two nodes are called %q, the other in line %d; rename one", ref, line)
				known = false
			}
		}
		if !known {
			continue
		}
		b.lines[string(n.ID)], b.lines[n.Name] = m.at.line, m.at.line
		b.index[string(n.ID)], b.index[n.Name] = len(b.out.Nodes), len(b.out.Nodes)
		b.out.Nodes = append(b.out.Nodes, n)
	}
}

func (b *builder) node(m *mapping) placement.Node {
	n := placement.Node{
		HasModel: m.flag("has_model", true), Lend: m.bytes("lend", 0), HostBus: m.number("host_bus", 0),
		Disk: m.number("disk", 0), PeerLatency: m.number("peer_latency", defaultPeerLatency),
	}
	n.Load = m.number("load", n.Disk)
	n.Link = placement.Link{BytesPerSecond: defaultNIC, Latency: defaultLatency, Source: placement.SourcePublished}
	if v := m.has["nic"]; v != nil {
		n.Link.BytesPerSecond = v.number
		if !v.bits {
			n.Link.Source = placement.SourceGiven
		}
		if v.named != nil {
			n.Link.Latency = v.named.latency
		}
	}
	n.Link.Latency = m.number("latency", n.Link.Latency)
	n.Link.Source = placement.Source(m.text("link_source", string(n.Link.Source)))
	ram := m.bytes("ram", 0)
	reserve := m.bytes("ram_reserve", min(defaultRAMReserve, ram/4))
	if reserve > ram {
		b.bad(m.spotOf("ram_reserve"), "ram_reserve is %s and ram only %s; make it smaller", reserve, ram)
		reserve = ram
	}
	n.RAM = ram - reserve
	if n.Lend > n.RAM {
		b.bad(m.spotOf("lend"), "lend is %s, and ram less ram_reserve only %s; make it smaller", n.Lend, n.RAM)
	}
	if v := m.has["rejected"]; v != nil && len(v.maps) == 1 {
		n.Rejected = placement.Reason{Kind: placement.ReasonKind(v.maps[0].text("kind", "")), Detail: v.maps[0].text("detail", "")}
	}
	host := memory{ram, reserve}
	used := map[string]int{}
	if v := m.has["devices"]; v != nil {
		for _, d := range v.maps {
			b.devices(&n, d, host, used)
		}
		if v.empty && n.Rejected.Kind == "" {
			b.bad(v.at, "no devices: a node needs at least one, such as {device: rtx3090}")
		}
	}
	return n
}

// memory is what a host has, and what of it is kept.
type memory struct{ ram, reserve placement.Bytes }

// devices adds those that one entry stands for to its node.
func (b *builder) devices(n *placement.Node, m *mapping, host memory, used map[string]int) {
	d, ok := b.device(m, host)
	if !ok {
		return
	}
	count := int(m.number("count", 1))
	if len(n.Devices)+count > maxOnNode {
		b.bad(m.at, "over %d devices in one node", maxOnNode)
		return
	}
	for range count {
		d.ID = m.text("id", freeID(d.Kind, n.Devices))
		if line, twice := used[d.ID]; twice {
			b.bad(m.spotOf("id"), "two devices of this node are called %q, the other in line %d; rename one", d.ID, line)
			return
		}
		used[d.ID] = m.at.line
		n.Devices = append(n.Devices, d)
	}
}

// freeID is cpu or cuda:0, or the next that is not taken.
func freeID(kind placement.DeviceKind, taken []placement.Device) string {
	for i := 0; ; i++ {
		id := fmt.Sprintf("cuda:%d", i)
		switch {
		case kind == placement.KindCPU && i == 0:
			id = "cpu"
		case kind == placement.KindCPU:
			id = fmt.Sprintf("cpu:%d", i)
		}
		free := true
		for _, d := range taken {
			free = free && d.ID != id
		}
		if free {
			return id
		}
	}
}

func (b *builder) device(m *mapping, host memory) (placement.Device, bool) {
	d := placement.Device{Kind: placement.KindGPU, Source: placement.SourceGiven}
	known := m.has["device"] != nil
	if known {
		e, err := catalogue.Lookup(m.has["device"].text)
		if err != nil {
			b.bad(m.has["device"].at, "%v", err)
			return d, false
		}
		d = e.Device("")
	}
	d.Kind = placement.DeviceKind(m.text("kind", string(d.Kind)))
	processor := d.Kind == placement.KindCPU
	if !known && !processor {
		slot := catalogue.Slot{Generation: 4, Lanes: 16}.BytesPerSecond()
		d.HostToDevice, d.Peer = slot*catalogue.PCIe, slot*catalogue.PeerPCIe
	}
	if processor && d.Allocatable == 0 {
		d.Allocatable = host.ram
	}
	_, rated := m.has["rates"]
	_, bandwidth := m.has["memory_bandwidth"]
	if rated && bandwidth {
		d.Source, d.Spread = placement.SourceGiven, 0
	}
	if rated {
		d.Rates = b.rates(m.has["rates"])
	}
	if v := m.has["memory_bandwidth"]; v != nil {
		d.Memory = v.number
		d.Expansion = v.number / 1.5
	}
	d.Expansion = m.number("expansion", d.Expansion)
	d.HostToDevice = m.number("host_to_device", d.HostToDevice)
	d.Peer = m.number("peer", d.Peer)
	d.Overlap = m.flag("overlap", false)
	d.Model, d.Class = m.text("model", d.Model), m.text("class", "")
	d.Source = placement.Source(m.text("source", string(d.Source)))
	d.Spread = m.number("spread", d.Spread)
	return d, b.room(&d, m, host)
}

// room sets a device's memory.
func (b *builder) room(d *placement.Device, m *mapping, host memory) bool {
	all := m.bytes("memory", d.Allocatable)
	d.Allocatable = m.bytes("free", all)
	if d.Allocatable > all && m.has["memory"] != nil {
		b.bad(m.spotOf("free"), "free is %s and memory only %s; make it smaller", d.Allocatable, all)
		return false
	}
	if _, broken := m.keys["memory"]; d.Allocatable == 0 && !broken {
		if d.Kind == placement.KindCPU {
			b.bad(m.at, "this processor has no memory; give the node ram: 32GB, or the device memory: 32GB")
		} else {
			b.bad(m.at, "this device has no memory; write memory: 24GB")
		}
		return false
	}
	reserve := min(defaultReserve, d.Allocatable/8)
	if d.Kind == placement.KindCPU {
		reserve = min(host.reserve, d.Allocatable)
	}
	d.Reserve = m.bytes("reserve", reserve)
	if d.Reserve > d.Allocatable {
		b.bad(m.spotOf("reserve"), "reserve is %s of %s; make it smaller", d.Reserve, d.Allocatable)
		return false
	}
	return true
}

func (b *builder) rates(v *value) []placement.Rate {
	var out []placement.Rate
	for _, c := range v.curves {
		lines := map[float64]int{}
		for _, p := range c.points {
			linear := p.number("linear", 0)
			t := p.number("tokens", 0)
			if line, twice := lines[t]; twice {
				b.bad(p.at, "%s has two points at %g tokens, the other in line %d; give each its number of tokens", c.dtype, t, line)
				continue
			}
			lines[t] = p.at.line
			out = append(out, placement.Rate{DType: c.dtype, Tokens: t, Linear: linear, Attention: p.number("attention", linear/2)})
		}
	}
	return out
}

// find is the node that a name or id stands for.
func (b *builder) find(what, ref string, at spot) (placement.NodeID, bool) {
	if i, ok := b.index[ref]; ok {
		return b.out.Nodes[i].ID, true
	}
	if len(b.problems) >= 10*maxShown {
		b.bad(at, "%s names node %q, which is not in this file", what, ref)
		return "", false
	}
	all := make([]string, len(b.out.Nodes))
	for i, n := range b.out.Nodes {
		all[i] = n.Name
	}
	hint := ""
	switch near := b.near(ref, all); {
	case near != "":
		hint = fmt.Sprintf("; did you mean %q?", near)
	case len(all) > 0 && len(all) <= 8:
		hint = "; there are " + strings.Join(all, ", ")
	}
	b.bad(at, "%s names node %q, which is not in this file%s", what, ref, hint)
	return "", false
}

func (b *builder) link(m *mapping, seen map[[2]placement.NodeID]int) {
	var ends []item
	if v := m.has["between"]; v != nil {
		ends = v.list
	} else if from, to := m.has["from"], m.has["to"]; from != nil && to != nil {
		ends = []item{{from.at, from.text}, {to.at, to.text}}
	}
	if len(ends) != 2 {
		return
	}
	from, ok := b.find("the link", ends[0].text, ends[0].at)
	to, both := b.find("the link", ends[1].text, ends[1].at)
	if !ok || !both {
		return
	}
	if from == to {
		b.bad(ends[1].at, "the link goes from %q to itself", ends[1].text)
		return
	}
	latency := max(b.out.Nodes[b.index[string(from)]].Link.Latency, b.out.Nodes[b.index[string(to)]].Link.Latency)
	l := placement.PeerLink{From: from, To: to, BytesPerSecond: m.number("rate", 0), Latency: m.number("latency", latency)}
	if v := m.has["round_trip"]; v != nil {
		l.Latency = v.number / 2
	}
	all := []placement.PeerLink{l}
	if m.has["between"] != nil {
		all = append(all, placement.PeerLink{From: to, To: from, BytesPerSecond: l.BytesPerSecond, Latency: l.Latency})
	}
	for _, one := range all {
		way := [2]placement.NodeID{one.From, one.To}
		if line, twice := seen[way]; twice {
			b.bad(m.at, "the link from %q to %q is given twice, first in line %d; take one away", one.From, one.To, line)
			continue
		}
		seen[way] = m.at.line
		b.out.Links = append(b.out.Links, one)
	}
}

func (b *builder) groupOf(m *mapping, seen map[string]int) {
	g := placement.Group{Name: m.text("name", ""), Kind: placement.GroupKind(m.text("kind", "")), BytesPerSecond: m.number("rate", 0)}
	if g.Kind == placement.GroupIsland {
		g.Latency = defaultIsland
	}
	g.Latency = m.number("latency", g.Latency)
	if line, twice := seen[string(g.Kind)+" "+g.Name]; twice {
		b.bad(m.spotOf("name"), "two groups of one kind are called %q, the other in line %d; rename one", g.Name, line)
		return
	}
	seen[string(g.Kind)+" "+g.Name] = m.at.line
	which := 0
	if g.Kind == placement.GroupIsland {
		which = 1
	}
	v := m.has["nodes"]
	if v == nil || g.Kind == "" {
		return
	}
	for _, it := range v.list {
		for _, name := range b.expand(it.text, it.at) {
			id, ok := b.find("the group", name, it.at)
			if !ok {
				continue
			}
			in := b.group[id]
			if in[which].text != "" {
				b.bad(it.at, "node %q is in %s %q already, in line %d; a node is in one of each kind", name, g.Kind, in[which].text, in[which].at.line)
				continue
			}
			in[which] = item{it.at, g.Name}
			b.group[id] = in
			g.Nodes = append(g.Nodes, id)
		}
	}
	if len(g.Nodes) == 0 && len(v.list) == 0 {
		b.bad(v.at, "the group has no nodes; name at least one")
	}
	b.out.Groups = append(b.out.Groups, g)
}

// valid is what placement itself says of a cluster.
func (c Cluster) valid() error {
	for _, n := range c.Nodes {
		if n.Rejected.Kind != "" {
			continue
		}
		if err := n.Validate(); err != nil {
			return err
		}
		if len(n.Devices) == 0 {
			return fmt.Errorf("node %q: it has no devices", n.ID)
		}
	}
	if len(c.Nodes) == 0 {
		return errors.New("no nodes")
	}
	return nil
}
