// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// seenView is a card of a node, used or not.
type seenView struct {
	Vendor       string   `json:"vendor"`
	Model        string   `json:"model"`
	UUID         string   `json:"uuid,omitempty"`
	PCI          string   `json:"pci_address,omitempty"`
	Architecture string   `json:"architecture,omitempty"`
	Memory       uint64   `json:"memory_total_bytes"`
	Generation   uint32   `json:"pcie_generation,omitempty"`
	Lanes        uint32   `json:"pcie_lanes,omitempty"`
	Sources      []string `json:"sources"`
	UsedAs       string   `json:"used_as,omitempty"`
	Reason       string   `json:"reason,omitempty"` // why it is not used
	Blocked      bool     `json:"blocked,omitempty"`
}

func seenViews(all []*pb.SeenDevice) []seenView {
	var out []seenView
	for _, s := range all {
		out = append(out, seenView{
			s.GetVendor(), s.GetModel(), s.GetUuid(), s.GetPciAddress(), s.GetArchitecture(), s.GetMemoryTotalBytes(), s.GetPcieGeneration(), s.GetPcieLanes(),
			append([]string{}, s.GetSources()...), s.GetUsedAs(), s.GetReason(), s.GetBlocked(),
		})
	}
	return out
}

// writeSeen lists the cards that are there and not used, below the nodes.
func writeSeen(w io.Writer, nodes []nodeView) error {
	for _, n := range nodes {
		for _, s := range n.Seen {
			if s.UsedAs != "" {
				continue
			}
			memory := ""
			if s.Memory > 0 {
				memory = ", " + output.Bytes(s.Memory)
			}
			text := fmt.Sprintf("%s: %s %s%s: seen, not used: %s", n.Name, s.Model, s.PCI, memory, s.Reason)
			if s.Blocked {
				text += fmt.Sprintf(" (`distorch doctor %s` says what mends it)", n.Name)
			}
			if _, err := fmt.Fprintln(w, output.Clean(text)); err != nil {
				return err
			}
		}
	}
	return nil
}
