// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/coordinator"
	"github.com/distorch/distorch/placement/cluster"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

type nodeView struct {
	Name        string            `json:"name"`
	ID          string            `json:"id"`
	Address     string            `json:"address"`
	Version     string            `json:"version"`
	Platform    string            `json:"platform"`
	Engine      string            `json:"engine"`
	PID         int64             `json:"pid"`
	Incarnation string            `json:"incarnation"`
	Labels      map[string]string `json:"labels,omitempty"`
	Devices     []deviceView      `json:"devices"`
	Seen        []seenView        `json:"seen_devices,omitempty"` // cards, used or not
	LoadRate    float64           `json:"load_bytes_per_second"`
	NIC         float64           `json:"nic_bytes_per_second"`
	Latency     float64           `json:"latency_seconds"`
	Peers       []peerView        `json:"peers,omitempty"`
	Models      []string          `json:"models"`
	HostMemory  uint64            `json:"host_memory_bytes"` // RAM for stages, tiers and other nodes' blocks together
	Donate      uint64            `json:"donate_bytes"`
	Lost        []lostView        `json:"lost_devices,omitempty"`
}

type deviceView struct {
	Name        string            `json:"name"`
	Model       string            `json:"model"`
	Memory      uint64            `json:"memory_total_bytes"`
	Allocatable uint64            `json:"memory_allocatable_bytes"`
	Threads     uint32            `json:"threads"`
	ISA         string            `json:"isa"`
	Classes     []string          `json:"numerics_classes"`
	Rates       []rateView        `json:"rates"`
	Calibration string            `json:"calibration"` // names the rates
	Learned     []learnedRateView `json:"learned,omitempty"`

	Kind         string     `json:"kind,omitempty"` // cpu, cuda, rocm, xpu, mps, sim
	Simulated    bool       `json:"simulated,omitempty"`
	Reserve      uint64     `json:"reserve_bytes"`
	HostToDevice float64    `json:"host_to_device_bytes_per_second,omitempty"`
	DeviceToHost float64    `json:"device_to_host_bytes_per_second,omitempty"`
	Peers        []pathView `json:"peers,omitempty"`
}

// pathView is a measured path from another device of the node.
type pathView struct {
	From string  `json:"from"`
	Rate float64 `json:"bytes_per_second"`
}

// lostView is a device that was there when the agent started.
type lostView struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

func newDeviceView(d *pb.Device) deviceView {
	v := deviceView{
		Name: d.Name, Model: d.Model, Memory: d.MemoryTotalBytes, Allocatable: d.MemoryAllocatableBytes, Threads: d.Threads, ISA: d.Isa,
		Classes: d.NumericsClasses, Rates: []rateView{}, Calibration: d.Calibration,
		Kind: d.Kind, Simulated: d.Simulated, Reserve: d.ReserveBytes,
		HostToDevice: d.HostToDeviceBytesPerSecond, DeviceToHost: d.DeviceToHostBytesPerSecond,
	}
	for _, rate := range largest(d.Rates) {
		v.Rates = append(v.Rates, rateView{rate.Dtype, rate.LinearFlopsPerSecond, rate.AttentionFlopsPerSecond, rate.ExpandBytesPerSecond})
	}
	for _, f := range d.GetFeedback() {
		v.Learned = append(v.Learned, learnedRateView{f.Dtype, f.Elements, f.Ratio, f.Samples})
	}
	for _, p := range d.GetPeers() {
		v.Peers = append(v.Peers, pathView{p.Device, p.BytesPerSecond})
	}
	return v
}

// learnedRateView is what forwards have taught of the rates, for activations of
// like size.
type learnedRateView struct {
	DType    string  `json:"dtype"`
	Elements uint64  `json:"elements"`
	Ratio    float64 `json:"ratio"` // measured over what the rates say
	Samples  uint64  `json:"forwards"`
}

type rateView struct {
	DType     string  `json:"dtype"`
	Linear    float64 `json:"linear_flops_per_second"`
	Attention float64 `json:"attention_flops_per_second"`
	Expand    float64 `json:"expand_bytes_per_second"`
}

type peerView struct {
	Node      string  `json:"node"`
	Bandwidth float64 `json:"bytes_per_second"`
	RoundTrip float64 `json:"round_trip_seconds"`
}

func newNodeView(n *pb.NodeStatus) nodeView {
	r := n.GetRecord()
	v := nodeView{
		Name: r.GetName(), ID: r.GetId(), Address: r.GetAddress(), Version: r.GetVersion(), Platform: r.GetPlatform(),
		Engine: r.GetEngine(), PID: r.GetPid(), Incarnation: r.GetIncarnation(), Labels: r.GetLabels(), LoadRate: r.GetLoadBytesPerSecond(),
		NIC: n.GetLink().GetNicBytesPerSecond(), Latency: n.GetLink().GetLatency().AsDuration().Seconds(),
		Devices: []deviceView{}, Seen: seenViews(r.GetSeenDevices()), Models: append([]string{}, n.Models...),
		HostMemory: r.GetHostMemoryBytes(), Donate: r.GetDonateBytes(),
	}
	for _, d := range r.GetLost() {
		v.Lost = append(v.Lost, lostView{d.Name, d.Reason})
	}
	for _, d := range r.GetDevices() {
		v.Devices = append(v.Devices, newDeviceView(d))
	}
	for _, p := range n.GetLink().GetPeers() {
		v.Peers = append(v.Peers, peerView{p.Node, p.BytesPerSecond, p.RoundTrip.AsDuration().Seconds()})
	}
	return v
}

func (v nodeView) row() []string {
	var devices, memory, compute, rates []string
	for _, d := range v.Devices {
		name := d.Name
		if d.Simulated {
			name += " (simulated)"
		}
		devices = append(devices, name)
		memory = append(memory, fmt.Sprintf("%s of %s", output.Bytes(d.Allocatable), output.Bytes(d.Memory)))
		compute = append(compute, fmt.Sprintf("%d %s", d.Threads, d.ISA))
		for _, r := range d.Rates {
			rates = append(rates, r.DType+" "+output.Rate(r.Linear, "FLOP"))
		}
	}
	for _, d := range v.Lost {
		devices = append(devices, d.Name+" (lost: "+d.Reason+")")
	}
	link := ""
	if v.NIC > 0 {
		link = fmt.Sprintf("%s, %s", output.Rate(v.NIC, "B"), output.Seconds(v.Latency))
	}
	join := func(s []string) string { return strings.Join(s, ", ") }
	// A node is listed as long as its lease lives.
	return []string{v.Name, v.Address, "ready", join(devices), join(memory), join(compute), join(rates), link, join(few(v.Models))}
}

// few keeps a table narrow: the first three names, and how many there are beside.
func few(names []string) []string {
	const most = 3
	if len(names) <= most {
		return names
	}
	return append(slices.Clone(names[:most]), fmt.Sprintf("and %d more", len(names)-most))
}

func newNodes(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes: devices, memory, measured speed, checkpoints",
	}
	group(cmd)
	operatorFlags(cmd)
	format, watch := nodesFormat(output.Table), watchFlags(cmd)
	cmd.Flags().VarP(&format, "output", "o", "how to print the result; cluster is a file for plan --cluster")
	unknown := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknown(cmd, args)
		}
		if format == clusterFile {
			return a.writeCluster(cmd, watch)
		}
		return a.show(cmd, watch, output.Format(format), listNodes)
	}
	cmd.AddCommand(newNodesRemove(a))
	return cmd
}

// clusterFile is the format of nodes alone: what a plan rests on, as a file.
const clusterFile nodesFormat = "cluster"

// nodesFormat is an output.Format, or clusterFile.
type nodesFormat output.Format

func (f *nodesFormat) Set(s string) error {
	if err := output.OneOf(s, choices("nodes "+outputName)); err != nil {
		return err
	}
	*f = nodesFormat(s)
	return nil
}

func (f *nodesFormat) String() string { return string(*f) }

func (f *nodesFormat) Type() string { return strings.Join(choices("nodes "+outputName), "|") }

// writeCluster prints the live nodes as a cluster file.
func (a *app) writeCluster(cmd *cobra.Command, watch *watching) error {
	if watch.on {
		return usage(errors.New("-o cluster writes one file; leave --watch out"))
	}
	o, err := a.connect(cmd)
	if err != nil {
		return err
	}
	defer o.close()
	all, err := ask(cmd.Context(), o, "list nodes", o.Control.ListNodes, &pb.ListNodesRequest{})
	if err != nil {
		return err
	}
	text, err := cluster.Marshal(coordinator.Inventory(all.Nodes))
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(text)
	return err
}

func listNodes(cmd *cobra.Command, o *operator) (answer, error) {
	all, err := ask(cmd.Context(), o, "list nodes", o.Control.ListNodes, &pb.ListNodesRequest{})
	if err != nil {
		return answer{}, err
	}
	views, rows := []nodeView{}, [][]string{}
	for _, n := range all.Nodes {
		v := newNodeView(n)
		views, rows = append(views, v), append(rows, v.row())
	}
	return answer{views, func(w io.Writer) error {
		if err := output.WriteTable(w, []string{"NAME", "ADDRESS", "STATE", "DEVICES", "MEMORY", "THREADS", "RATES", "LINK", "MODELS"}, rows); err != nil {
			return err
		}
		return writeSeen(w, views)
	}}, nil
}

func newNodesRemove(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a node's name and records away; it must join again",
		Args:  arguments(1, "NAME"),
	}
	operatorFlags(cmd)
	format := outputFlag(cmd)
	cmd.RunE = a.connected(func(cmd *cobra.Command, o *operator, args []string) error {
		if _, err := ask(cmd.Context(), o, "", o.Control.RemoveNode, &pb.RemoveNodeRequest{Name: args[0]}); err != nil {
			return err
		}
		if *format != output.Table {
			return output.Write(a.stdout, *format, removedView{args[0]})
		}
		_, err := fmt.Fprintf(a.stdout, "node %s removed\n", output.Clean(args[0]))
		return err
	})
	return cmd
}

// nodeNames are the nodes' names by id, for plans, which have ids.
func nodeNames(cmd *cobra.Command, o *operator) (map[string]string, error) {
	answer, err := ask(cmd.Context(), o, "list nodes", o.Control.ListNodes, &pb.ListNodesRequest{})
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, n := range answer.Nodes {
		names[n.GetRecord().GetId()] = n.GetRecord().GetName()
	}
	return names, nil
}

// round keeps JSON free of digits that mean nothing.
func round(d time.Duration) float64 { return d.Round(time.Microsecond).Seconds() }

// largest are the rates at the largest measured size, one for each dtype.
func largest(all []*pb.Rates) []*pb.Rates {
	var out []*pb.Rates
	for _, r := range all {
		i := slices.IndexFunc(out, func(o *pb.Rates) bool { return o.Dtype == r.Dtype })
		switch {
		case i < 0:
			out = append(out, r)
		case r.Elements > out[i].Elements:
			out[i] = r
		}
	}
	return out
}
