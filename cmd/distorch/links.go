// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// linkView is what one node measured of its link to another.
type linkView struct {
	From      string  `json:"from"`
	To        string  `json:"to"`
	Bandwidth float64 `json:"bytes_per_second"` // 0: not measured
	RoundTrip float64 `json:"round_trip_seconds"`
	Error     string  `json:"error,omitempty"` // why it was not measured again
}

// calibrateLinks shows every ordered pair of nodes.
func (a *app) calibrateLinks(cmd *cobra.Command, refresh bool, format output.Format) error {
	o, err := a.connect(cmd)
	if err != nil {
		return err
	}
	defer o.close()
	answer, err := ask(cmd.Context(), o, "list nodes", o.Control.ListNodes, &pb.ListNodesRequest{})
	if err != nil {
		return err
	}
	views := linkViews(answer.Nodes)
	failed := 0
	if refresh {
		if failed, err = a.refreshLinks(cmd, o, views); err != nil {
			return err
		}
	}
	if format != output.Table {
		err = output.Write(a.stdout, format, views)
	} else {
		err = writeLinks(a, views)
	}
	if err == nil && failed > 0 {
		err = fmt.Errorf("%d of %d links could not be measured", failed, len(views))
	}
	return err
}

func linkViews(nodes []*pb.NodeStatus) []linkView {
	views := []linkView{}
	for _, from := range nodes {
		for _, to := range nodes {
			if from == to {
				continue
			}
			v := linkView{From: from.GetRecord().GetName(), To: to.GetRecord().GetName()}
			for _, p := range from.GetLink().GetPeers() {
				if p.GetNode() == to.GetRecord().GetId() {
					v.take(p)
				}
			}
			views = append(views, v)
		}
	}
	slices.SortFunc(views, func(a, b linkView) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return views
}

func (v *linkView) take(p *pb.PeerLink) {
	v.Bandwidth, v.RoundTrip = p.GetBytesPerSecond(), p.GetRoundTrip().AsDuration().Seconds()
}

// refreshLinks has one link measured after another, for two at a time would
// share what they measure.
func (a *app) refreshLinks(cmd *cobra.Command, o *operator, views []linkView) (failed int, err error) {
	progress := output.NewProgress(a.stderr)
	defer progress.Done()
	for i := range views {
		v := &views[i]
		progress.Step("measuring links", int64(i), int64(len(views)), v.From+" to "+v.To)
		p, err := ask(cmd.Context(), o, "", o.Control.MeasureLink, &pb.MeasureLinkRequest{Node: v.From, Peer: v.To})
		if cmd.Context().Err() != nil {
			return failed, err
		}
		if err != nil {
			v.Error = err.Error()
			failed++
			continue
		}
		v.take(p)
	}
	progress.Step("measuring links", int64(len(views)), int64(len(views)), "")
	return failed, nil
}

func writeLinks(a *app, views []linkView) error {
	var rows [][]string
	for _, v := range views {
		trip := ""
		if v.Bandwidth > 0 {
			trip = output.Seconds(v.RoundTrip)
		}
		rows = append(rows, []string{v.From, v.To, output.Rate(v.Bandwidth, "B"), trip, v.Error})
	}
	return output.WriteTable(a.stdout, []string{"FROM", "TO", "RATE", "ROUND TRIP", "NOT MEASURED"}, rows)
}
