// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/catalogue"
)

// catalogueView is a device of the catalogue, with what plans take of it.
type catalogueView struct {
	catalogue.Entry
	Planned plannedView `json:"planned"`
}

// plannedView are the rates that a plan takes: published, not measured.
type plannedView struct {
	Rates        []plannedRate `json:"rates"`
	Memory       float64       `json:"memory_bytes_per_second"`
	Expansion    float64       `json:"expansion_bytes_per_second"`
	HostToDevice float64       `json:"host_to_device_bytes_per_second"`
	Peer         float64       `json:"peer_bytes_per_second"`
	Spread       float64       `json:"spread"`
}

type plannedRate struct {
	DType     placement.DType `json:"dtype"`
	Linear    float64         `json:"linear_flops_per_second"`
	Attention float64         `json:"attention_flops_per_second"`
}

func newDevices(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "devices",
		Short: "List the devices that a cluster file can name, with their published figures",
		Args:  arguments(0),
	}
	format := outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		var views []catalogueView
		var rows [][]string
		for _, e := range catalogue.Entries() {
			d := e.Device(e.Name)
			v := catalogueView{Entry: e, Planned: plannedView{Memory: d.Memory, Expansion: d.Expansion, HostToDevice: d.HostToDevice, Peer: d.Peer, Spread: d.Spread}}
			peaks := make([]string, len(e.Peaks))
			for i, p := range e.Peaks {
				peaks[i] = fmt.Sprintf("%s %.4g", p.DType, p.FLOPs/1e12)
				v.Planned.Rates = append(v.Planned.Rates, plannedRate{d.Rates[i].DType, d.Rates[i].Linear, d.Rates[i].Attention})
			}
			memory := "the host's"
			if e.Memory > 0 {
				memory = e.Memory.String()
			}
			views = append(views, v)
			rows = append(rows, []string{e.Name, e.Title, memory, output.Rate(e.Memrate, "B"), strings.Join(peaks, ", "), e.PCIe.String(), e.Source})
		}
		if *format != output.Table {
			return output.Write(a.stdout, *format, views)
		}
		return output.WriteTable(a.stdout, []string{"NAME", "DEVICE", "MEMORY", "BANDWIDTH", "TFLOP/S", "PCIE", "PUBLISHED IN"}, rows)
	}
	return cmd
}
