// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// lendView is what a node left to other programs.
type lendView struct {
	Node   string          `json:"node"`
	Device string          `json:"device"`
	Lent   uint64          `json:"lent_bytes"` // in all
	Free   uint64          `json:"free_bytes"`
	Took   float64         `json:"took_seconds"`
	Left   float64         `json:"left_seconds,omitempty"` // until it is taken back; 0: by --restore
	Stages []lendStageView `json:"stages"`
}

type lendStageView struct {
	Deployment string  `json:"deployment"`
	Epoch      uint64  `json:"epoch"`
	Stage      uint32  `json:"stage"`
	Moved      uint64  `json:"moved_bytes"`
	Streamed   uint64  `json:"streamed_bytes"`           // per forward
	Before     float64 `json:"before_seconds,omitempty"` // forecast of a forward on the stage; 0: not known
	After      float64 `json:"after_seconds,omitempty"`
}

func newLend(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lend NODE",
		Short: "Leave memory of a device to other programs for a while, such as a ComfyUI",
		Long: `Moves blocks off a device of NODE until --bytes of it are free, within a second,
and keeps them free. What runs goes on, with the same bits and more slowly: the
answer says what moved and the new forecast. --restore brings the blocks back, as
does the end of --for.

--bytes is what is to be free in all: asking again for as much, or for less,
moves nothing.`,
		Args: arguments(1, "NODE"),
	}
	operatorFlags(cmd)
	format := outputFlag(cmd)
	device := cmd.Flags().String("device", "", "device of the node, such as cuda:0")
	lasting := cmd.Flags().Duration("for", 0, "take it back after this long (default: with --restore)")
	restore := cmd.Flags().Bool("restore", false, "take back what is lent")
	var bytes config.Bytes
	cmd.Flags().Var(&bytes, "bytes", "memory to be free, such as 6GB")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req := &pb.LendRequest{Node: args[0], Device: *device, Bytes: uint64(bytes), Restore: *restore}
		switch {
		case *device == "":
			return usage(errors.New("--device is missing: a device of the node, such as cuda:0 (`distorch nodes` lists them)"))
		case *restore && (bytes > 0 || *lasting > 0):
			return usage(errors.New("give --restore alone, or --bytes with or without --for"))
		case !*restore && bytes == 0:
			return usage(errors.New("say how much with --bytes, such as 6GB, or take it back with --restore"))
		case *lasting < 0:
			return usage(fmt.Errorf("--for %v: want a duration such as 10m", *lasting))
		case *lasting > 0:
			req.Duration = durationpb.New(*lasting)
		}
		o, err := a.connect(cmd)
		if err != nil {
			return err
		}
		defer o.close()
		res, err := ask(cmd.Context(), o, "", o.Control.Lend, req)
		if err != nil {
			return err
		}
		v := newLendView(res)
		if *format != output.Table {
			return output.Write(a.stdout, *format, v)
		}
		return writeLend(a, v, *restore)
	}
	return cmd
}

func newLendView(r *pb.LendResponse) lendView {
	v := lendView{
		Node: r.GetNode(), Device: r.GetDevice(), Lent: r.GetLentBytes(), Free: r.GetFreeBytes(),
		Took: r.GetTook().AsDuration().Seconds(), Left: r.GetLeft().AsDuration().Seconds(), Stages: []lendStageView{},
	}
	for _, s := range r.GetStages() {
		v.Stages = append(v.Stages, lendStageView{
			Deployment: s.GetDeployment(), Epoch: s.GetEpoch(), Stage: s.GetStage(), Moved: s.GetMovedBytes(), Streamed: s.GetStreamedBytes(),
			Before: s.GetBeforeSeconds(), After: s.GetAfterSeconds(),
		})
	}
	return v
}

func writeLend(a *app, v lendView, restored bool) error {
	moved := uint64(0)
	for _, s := range v.Stages {
		moved += s.Moved
	}
	where, until := v.Node+"/"+v.Device, ""
	if v.Left > 0 {
		until = ", for " + time.Duration(v.Left*float64(time.Second)).Round(time.Second).String()
	}
	what := fmt.Sprintf("%s lent", output.Bytes(v.Lent))
	if restored {
		what = "nothing is lent"
	}
	if _, err := fmt.Fprintf(a.stdout, "%s: %s%s; %s moved in %s, %s free\n", where, what, until, output.Bytes(moved), output.Seconds(v.Took), output.Bytes(v.Free)); err != nil {
		return err
	}
	var rows [][]string
	for _, s := range v.Stages {
		forecast := "not known: the device's copy rate was not measured"
		if s.Before > 0 && s.After > 0 {
			forecast = output.Seconds(s.Before) + " to " + output.Seconds(s.After)
		}
		rows = append(rows, []string{s.Deployment, fmt.Sprint(s.Stage), output.Bytes(s.Moved), output.Bytes(s.Streamed), forecast})
	}
	if len(rows) == 0 {
		return nil
	}
	return output.WriteTable(a.stdout, []string{"DEPLOYMENT", "STAGE", "MOVED", "STREAMED", "FORECAST OF A FORWARD"}, rows)
}
