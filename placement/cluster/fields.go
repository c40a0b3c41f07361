// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"math"

	"github.com/distorch/distorch/placement"
)

// kind is what a field holds.
type kind uint8

const (
	text     kind = iota
	size          // bytes
	rate          // bytes/s
	compute       // FLOP/s, not 0
	seconds       //
	number        // without a unit
	flag          //
	word          // one of field.words
	names         // a list of nodes, ranges included
	pair          // two nodes
	object        // of field.of
	objects       // a list of them
	curves        // by dtype: an object or a list of them
	positive      // a rate that may not be 0
)

// field is a key of a file: for the reader, the schema and the reference.
type field struct {
	key      string
	kind     kind
	about    string
	fallback string // what it is when left out; "" when that needs no word
	required bool
	words    []string // of a word; of a rate: names that stand for one
	of       *table
	low      float64 // of a number
	high     float64
	whole    bool
	most     int // of a list
}

// table is a kind of mapping.
type table struct {
	name   string // of the schema's definition
	about  string
	fields []field
	either [][]string  // sets of keys, of which at least one must be there
	not    [][2]string // keys that exclude each other
}

func (t *table) keys() []string {
	out := make([]string, len(t.fields))
	for i, f := range t.fields {
		out[i] = f.key
	}
	return out
}

func (t *table) field(key string) *field {
	for i := range t.fields {
		if t.fields[i].key == key {
			return &t.fields[i]
		}
	}
	return nil
}

// named are network cards that people know by name: payload in bytes/s and
// latency. Wi-Fi: the link rate of a client with two antennas at 80 MHz (160 MHz
// from wifi6e), of which a bit more than half is payload in the same room.
type named struct {
	name           string
	bytesPerSecond float64
	latency        float64
	about          string
}

func networks() []named {
	return []named{
		{"wifi5", 60e6, 3e-3, "802.11ac, 867 Mbit/s on air"},
		{"wifi6", 85e6, 2e-3, "802.11ax, 1201 Mbit/s on air"},
		{"wifi6e", 165e6, 2e-3, "802.11ax at 160 MHz, 2402 Mbit/s on air"},
		{"unlimited", math.Inf(1), 0, "costs nothing but its latency"},
	}
}

func disks() []named {
	return []named{
		{"hdd", 150e6, 0, "a spinning disk"},
		{"sata", 500e6, 0, "an SSD on SATA"},
		{"nvme", 3e9, 0, "an SSD on PCIe 3.0 or later"},
	}
}

func words(of []named) []string {
	out := make([]string, len(of))
	for i, n := range of {
		out[i] = n.name
	}
	return out
}

// DTypes are the compute dtypes that a device may have rates for.
func DTypes() []string { return []string{"bf16", "f16", "f32", "f8_e4m3", "f8_e5m2", "i8"} }

func sources() []string {
	return []string{string(placement.SourceMeasured), string(placement.SourcePublished), string(placement.SourceGiven)}
}

func fileTable() *table {
	return &table{name: "cluster file", about: "The file.", fields: []field{
		{key: "nodes", kind: objects, of: nodeTable(), most: maxNodes, required: true, about: "the machines"},
		{key: "version", kind: number, low: 1, high: 1, whole: true, about: "of the format", fallback: "1"},
		{key: "links", kind: objects, of: linkTable(), most: maxLinks, about: "measured links; each replaces the estimate from both nodes' cards for one direction"},
		{key: "groups", kind: objects, of: groupTable(), most: maxGroups, about: "racks and islands"},
	}}
}

func nodeTable() *table {
	return &table{name: "node", about: "One machine, or several alike.", fields: []field{
		{key: "name", kind: text, required: true, about: "shown and used in pins; `lab-{01..16}` stands for sixteen machines alike"},
		{key: "id", kind: text, fallback: "the name", about: "of the node in a running cluster"},
		{key: "nic", kind: positive, words: words(networks()), fallback: "1gbps", about: "network card: `10gbps` counts bits on the line, of which 94 % are payload, `1.2GB/s` payload; or a name"},
		{key: "latency", kind: seconds, fallback: "100us; by name of the card on Wi-Fi", about: "one way, from here to any other node"},
		{key: "link_source", kind: word, words: sources(), fallback: "published for bits and names, given for bytes", about: "where `nic` and `latency` come from"},
		{key: "ram", kind: size, fallback: "0: nothing is streamed from it", about: "host memory"},
		{key: "ram_reserve", kind: size, fallback: "4GB, a quarter of a smaller `ram`", about: "part of it that neither weights nor a processor's stages get"},
		{key: "lend", kind: size, fallback: "0", about: "host memory for the weights of other nodes"},
		{key: "disk", kind: rate, words: words(disks()), fallback: "0: a running stage does not read it", about: "read rate of the disk with the checkpoints, or a kind of disk"},
		{key: "load", kind: rate, fallback: "`disk`", about: "rate at which a stage loads; 0 when unknown"},
		{key: "host_bus", kind: rate, fallback: "0: no limit", about: "from host memory to all devices together"},
		{key: "peer_latency", kind: seconds, fallback: "20us", about: "of a transfer between devices of this node"},
		{key: "has_model", kind: flag, fallback: "true", about: "whether the checkpoint lies here"},
		{key: "rejected", kind: object, of: rejectedTable(), about: "why the node must not be used"},
		{key: "devices", kind: objects, of: deviceTable(), most: maxOnNode, required: true, about: "what computes, at least one unless the node is rejected"},
	}}
}

func rejectedTable() *table {
	return &table{name: "rejected", about: "Why a node must not be used.", fields: []field{
		{key: "kind", kind: text, required: true, about: "`draining`, `offline`, `protocol`, …"},
		{key: "detail", kind: text, about: "for people"},
	}}
}

func deviceTable() *table {
	return &table{name: "device", about: "A GPU or processor, by its name in the catalogue, by figures, or by a name and figures that replace the catalogue's.", fields: []field{
		{key: "device", kind: text, about: "name in the [catalogue](devices.md): `rtx4090`"},
		{key: "count", kind: number, low: 1, high: maxOnNode, whole: true, fallback: "1", about: "so many alike"},
		{key: "id", kind: text, fallback: "`cuda:0`, `cuda:1`, … and `cpu`, in the order of the file", about: "used in allocations"},
		{key: "kind", kind: word, words: []string{string(placement.KindGPU), string(placement.KindCPU)}, fallback: "the catalogue's, else gpu", about: "what it is"},
		{key: "model", kind: text, fallback: "the catalogue's", about: "what its maker calls it; devices of unlike models are never grouped"},
		{key: "memory", kind: size, fallback: "the catalogue's; `ram` for a processor", about: "all that it has"},
		{key: "free", kind: size, fallback: "`memory`", about: "what of it is free, if other programs use some"},
		{key: "reserve", kind: size, fallback: "1GB on a GPU (an eighth of less than 8GB), `ram_reserve` on a processor", about: "part of that to keep free"},
		{key: "rates", kind: curves, of: pointTable(), fallback: "the catalogue's", about: "compute rates by dtype: one point, or a list of points over tokens"},
		{key: "memory_bandwidth", kind: positive, fallback: "the catalogue's", about: "of its memory"},
		{key: "expansion", kind: rate, fallback: "`memory_bandwidth` / 1.5", about: "bytes at the compute dtype that it makes of stored weights"},
		{key: "overlap", kind: flag, fallback: "false", about: "whether it expands weights beside computing"},
		{key: "host_to_device", kind: rate, fallback: "the catalogue's; else that of PCIe 4.0 x16; 0 for a processor", about: "from host memory to it alone; 0: no weights are streamed to it"},
		{key: "peer", kind: rate, fallback: "as with `host_to_device`", about: "to and from other devices of the node; 0: it works alone"},
		{key: "class", kind: text, about: "numerics class, without the dtype"},
		{key: "source", kind: word, words: sources(), fallback: "published with figures of the catalogue, else given", about: "where the rates come from"},
		{key: "spread", kind: number, low: 0, high: 0.9, fallback: "0.25 with figures of the catalogue, else the source's", about: "relative uncertainty of the rates"},
	}, either: [][]string{{"device"}, {"rates", "memory_bandwidth"}}, not: [][2]string{{"id", "count"}}}
}

func pointTable() *table {
	return &table{name: "point", about: "Compute rates at one number of tokens.", fields: []field{
		{key: "tokens", kind: number, low: 0, high: 1e12, fallback: "0: for every number", about: "of the forward that they were measured with"},
		{key: "linear", kind: compute, required: true, about: "matrix products with weights"},
		{key: "attention", kind: compute, fallback: "half of `linear`", about: "attention"},
	}}
}

func linkTable() *table {
	return &table{name: "link", about: "A measured link.", fields: []field{
		{key: "from", kind: text, about: "node that sends"},
		{key: "to", kind: text, about: "node that receives"},
		{key: "between", kind: pair, about: "two nodes, instead of `from` and `to`: the same in both directions"},
		{key: "rate", kind: positive, required: true, about: "as with `nic`"},
		{key: "latency", kind: seconds, fallback: "the larger of both nodes'", about: "one way"},
		{key: "round_trip", kind: seconds, about: "twice the latency, instead of it"},
	}, either: [][]string{{"from", "to"}, {"between"}}, not: [][2]string{{"from", "between"}, {"to", "between"}, {"latency", "round_trip"}}}
}

func groupTable() *table {
	kinds := []string{string(placement.GroupRack), string(placement.GroupIsland)}
	return &table{name: "group", about: "Nodes that share an uplink (a rack) or a fabric fast enough for tensor parallelism (an island). A node is in at most one of each kind.", fields: []field{
		{key: "name", kind: text, required: true, about: "shown"},
		{key: "kind", kind: word, words: kinds, required: true, about: "what they share"},
		{key: "nodes", kind: names, most: maxNodes, required: true, about: "names, ids or ranges like `lab-{01..16}`"},
		{key: "rate", kind: positive, required: true, about: "rack: of one transfer that leaves it; island: of one device's transfers on the fabric"},
		{key: "latency", kind: seconds, fallback: "0 for a rack, 5us for an island", about: "added to a transfer that leaves the rack; of one on the fabric"},
	}}
}
