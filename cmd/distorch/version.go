// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/model/graph"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/node"
)

type versionView struct {
	Version  string       `json:"version"`
	Go       string       `json:"go"`
	Platform string       `json:"platform"`
	Engines  []string     `json:"engines"`
	CGO      bool         `json:"cgo"`
	NVML     string       `json:"nvml"`
	ISA      []string     `json:"cpu_isa"` // that this CPU runs, slowest first
	OpSet    uint32       `json:"op_set"`
	Protocol protocolView `json:"protocol"`
	Server   *serverView  `json:"server,omitempty"`
}

type protocolView struct {
	Min uint32 `json:"min"`
	Max uint32 `json:"max"`
}

type serverView struct {
	Address  string       `json:"address"`
	Version  string       `json:"version"`
	Cluster  string       `json:"cluster"`
	Protocol protocolView `json:"protocol"`
}

func newVersion(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print this build's version, its engines and what this CPU runs",
		Args:  arguments(0),
	}
	operatorFlags(cmd)
	format := outputFlag(cmd)
	server := cmd.Flags().Bool("server", false, "ask the coordinator for its version too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v := thisVersion()
		if *server {
			var err error
			if v.Server, err = serverVersion(a, cmd); err != nil {
				return err
			}
		}
		if *format != output.Table {
			return output.Write(a.stdout, *format, v)
		}
		return v.write(a)
	}
	return cmd
}

func serverVersion(a *app, cmd *cobra.Command) (*serverView, error) {
	o, err := a.connect(cmd)
	if err != nil {
		return nil, err
	}
	defer o.close()
	s, err := ask(cmd.Context(), o, "version", o.Control.Version, &pb.VersionRequest{})
	if err != nil {
		return nil, err
	}
	return &serverView{o.Address, s.Version, s.Cluster, protocolView{s.ProtocolMin, s.ProtocolMax}}, nil
}

func thisVersion() versionView {
	v := versionView{
		Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Engines: []string{"native", "torch"}, NVML: nvmlState(), OpSet: graph.OpSet, Protocol: protocolView{node.ProtocolMin, node.ProtocolMax},
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			v.CGO = v.CGO || s.Key == "CGO_ENABLED" && s.Value == "1"
		}
	}
	for _, i := range isa.Supported() {
		v.ISA = append(v.ISA, i.String())
	}
	return v
}

func nvmlState() string {
	if device.NVMLBuilt() {
		return "in this build"
	}
	return "not in this build"
}

func (v versionView) write(a *app) error {
	rows := [][]string{
		{"version", v.Version},
		{"go", v.Go + " " + v.Platform},
		{"engine", fmt.Sprintf("native (%s)", v.ISA[len(v.ISA)-1])},
		{"cpu isa", strings.Join(v.ISA, ", ")},
		{"cgo", fmt.Sprint(v.CGO)},
		{"nvml", v.NVML},
		{"protocol", v.Protocol.String()},
		{"op set", fmt.Sprint(v.OpSet)},
	}
	if s := v.Server; s != nil {
		rows = append(rows, []string{"server", fmt.Sprintf("%s at %s, protocol %s, cluster %s", s.Version, s.Address, s.Protocol, s.Cluster)})
	}
	return output.WriteTable(a.stdout, nil, rows)
}

func (p protocolView) String() string {
	if p.Min == p.Max {
		return fmt.Sprint(p.Max)
	}
	return fmt.Sprintf("%d to %d", p.Min, p.Max)
}
