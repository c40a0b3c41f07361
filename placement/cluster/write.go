// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/distorch/distorch/placement"
)

// Marshal writes a cluster file that [Parse] reads back as the same cluster, in
// Parse's order. Every figure is written out; nothing refers to the catalogue.
// It refuses what Parse would refuse.
func Marshal(c Cluster) ([]byte, error) {
	c = c.sorted()
	if err := c.valid(); err != nil {
		return nil, err
	}
	top := &entry{}
	top.put("version", "1")
	nodes := top.list("nodes")
	for _, n := range c.Nodes {
		nodes.Content = append(nodes.Content, nodeEntry(n).node())
	}
	if len(c.Links) > 0 {
		links := top.list("links")
		for _, l := range c.Links {
			e := &entry{}
			e.text("from", string(l.From))
			e.text("to", string(l.To))
			e.put("rate", formatRate(l.BytesPerSecond))
			e.put("latency", formatSeconds(l.Latency))
			links.Content = append(links.Content, e.flow())
		}
	}
	if len(c.Groups) > 0 {
		groups := top.list("groups")
		for _, g := range c.Groups {
			e := &entry{}
			e.text("name", g.Name)
			e.put("kind", string(g.Kind))
			members := e.list("nodes")
			members.Style = yaml.FlowStyle
			for _, id := range g.Nodes {
				members.Content = append(members.Content, quoted(string(id)))
			}
			e.put("rate", formatRate(g.BytesPerSecond))
			e.put("latency", formatSeconds(g.Latency))
			groups.Content = append(groups.Content, e.node())
		}
	}
	out, err := yaml.Dump(top.node(), yaml.WithLineWidth(-1), yaml.WithIndent(2))
	if err != nil {
		return nil, fmt.Errorf("write a cluster file: %w", err)
	}
	// The reader decides what a name may be.
	if back, err := Parse("the cluster", out); err != nil {
		return nil, err
	} else if len(back.Nodes) != len(c.Nodes) {
		return nil, fmt.Errorf("the cluster has a node whose name is a range")
	}
	return out, nil
}

// entry is a mapping that is being written.
type entry struct{ content []*yaml.Node }

func (e *entry) node() *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode, Content: e.content} }

func (e *entry) flow() *yaml.Node {
	n := e.node()
	n.Style = yaml.FlowStyle
	return n
}

func (e *entry) add(key string, v *yaml.Node) {
	e.content = append(e.content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, v)
}

func (e *entry) list(key string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode}
	e.add(key, n)
	return n
}

// put writes a figure or word of the format's own.
func (e *entry) put(key, text string) {
	e.add(key, &yaml.Node{Kind: yaml.ScalarNode, Value: text})
}

// text writes what came from outside, quoted where YAML would take it for
// something else.
func (e *entry) text(key, text string) { e.add(key, quoted(text)) }

func quoted(text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
}

func nodeEntry(n placement.Node) *entry {
	e := &entry{}
	e.text("name", n.Name)
	if string(n.ID) != n.Name {
		e.text("id", string(n.ID))
	}
	switch nic := n.Link.BytesPerSecond; {
	case math.IsInf(nic, 1):
		e.put("nic", "unlimited")
	case nic > 0: // a rejected node may have none
		e.put("nic", formatRate(nic))
	}
	if n.Link.BytesPerSecond > 0 {
		e.put("latency", formatSeconds(n.Link.Latency))
		e.put("link_source", string(n.Link.Source))
	}
	if n.RAM > 0 {
		e.put("ram", formatSize(n.RAM))
		e.put("ram_reserve", "0")
	}
	if n.Lend > 0 {
		e.put("lend", formatSize(n.Lend))
	}
	if n.Disk > 0 {
		e.put("disk", formatRate(n.Disk))
	}
	if n.Load != n.Disk {
		e.put("load", formatRate(n.Load))
	}
	if n.HostBus > 0 {
		e.put("host_bus", formatRate(n.HostBus))
	}
	e.put("peer_latency", formatSeconds(n.PeerLatency))
	if !n.HasModel {
		e.put("has_model", "false")
	}
	if n.Rejected.Kind != "" {
		r := &entry{}
		r.text("kind", string(n.Rejected.Kind))
		if n.Rejected.Detail != "" {
			r.text("detail", n.Rejected.Detail)
		}
		e.add("rejected", r.node())
	}
	devices := e.list("devices")
	for i := 0; i < len(n.Devices); {
		count := alike(n.Devices, i)
		devices.Content = append(devices.Content, deviceEntry(n.Devices[i], count).node())
		i += count
	}
	if len(n.Devices) == 0 {
		devices.Style = yaml.FlowStyle
	}
	return e
}

// alike is how many devices from i on differ in nothing but ids, which are those
// that the reader gives.
func alike(all []placement.Device, i int) int {
	count := 0
	for i+count < len(all) {
		d := all[i+count]
		if d.ID != freeID(d.Kind, all[:i+count]) {
			break
		}
		d.ID = all[i].ID
		if !reflect.DeepEqual(d, all[i]) {
			break
		}
		count++
	}
	return max(count, 1)
}

func deviceEntry(d placement.Device, count int) *entry {
	e := &entry{}
	if count > 1 {
		e.put("count", strconv.Itoa(count))
	} else {
		e.text("id", d.ID)
	}
	e.put("kind", string(d.Kind))
	if d.Model != "" {
		e.text("model", d.Model)
	}
	e.put("memory", formatSize(d.Allocatable))
	e.put("reserve", formatSize(d.Reserve))
	e.put("memory_bandwidth", formatRate(d.Memory))
	e.put("expansion", formatRate(d.Expansion))
	if d.Overlap {
		e.put("overlap", "true")
	}
	if d.Kind != placement.KindCPU || d.HostToDevice > 0 {
		e.put("host_to_device", formatRate(d.HostToDevice))
	}
	if d.Kind != placement.KindCPU || d.Peer > 0 {
		e.put("peer", formatRate(d.Peer))
	}
	if d.Class != "" {
		e.text("class", d.Class)
	}
	e.put("source", string(d.Source))
	if d.Spread > 0 {
		e.put("spread", strconv.FormatFloat(d.Spread, 'g', -1, 64))
	}
	e.add("rates", rateEntries(d.Rates))
	return e
}

func rateEntries(rates []placement.Rate) *yaml.Node {
	byDType := &entry{}
	var list *yaml.Node
	for i, r := range rates {
		if i == 0 || rates[i-1].DType != r.DType {
			list = byDType.list(string(r.DType))
		}
		p := &entry{}
		if r.Tokens > 0 {
			p.put("tokens", strings.TrimSuffix(strconv.FormatFloat(r.Tokens, 'f', -1, 64), ".0"))
		}
		p.put("linear", formatFLOPs(r.Linear))
		p.put("attention", formatFLOPs(r.Attention))
		list.Content = append(list.Content, p.flow())
	}
	if len(rates) == 0 {
		return byDType.flow()
	}
	return byDType.node()
}
