// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/placement/allocation"
)

type allocationView struct {
	String     string                 `json:"string"`
	Mode       string                 `json:"mode"`
	Compute    string                 `json:"compute_device"`
	Fits       bool                   `json:"fits"`
	Contiguous bool                   `json:"contiguous"` // each device has one range of blocks
	ModelBytes int64                  `json:"model_bytes"`
	FixedBytes int64                  `json:"fixed_bytes"` // on the compute device beside blocks
	Blocks     int                    `json:"blocks"`
	Assignment []segmentView          `json:"assignment"` // from head to tail
	Devices    []allocationDeviceView `json:"devices"`
	Warnings   []string               `json:"warnings"`
}

type segmentView struct {
	Device string `json:"device"`
	First  int    `json:"first_block"`
	Blocks int    `json:"blocks"`
}

type allocationDeviceView struct {
	Device string `json:"device"`
	Named  bool   `json:"named"`
	Asked  string `json:"asked"`       // as written
	Limit  int64  `json:"asked_bytes"` // what it comes to
	Given  int64  `json:"given_bytes"`
	Blocks int    `json:"blocks"`
	Free   int64  `json:"free_bytes"`
	Total  int64  `json:"total_bytes"`
	Why    string `json:"why"`
}

// allocationFlags are the flags that the commands on allocation strings share.
type allocationFlags struct {
	devices, blocks, model, compat string
	format                         *output.Format
}

func (f *allocationFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.devices, "devices", "", "DEVICE=TOTAL or DEVICE=FREE/TOTAL, separated by commas: cpu=64GB,cuda:0=20GB/24GB (here 1 GB is 2^30 bytes)")
	flags.StringVar(&f.blocks, "blocks", "", "COUNTxSIZE from head to tail, separated by commas: 19x680MB,38x283MB (here 1 GB is 2^30 bytes)")
	flags.StringVar(&f.model, "model", "", "checkpoint whose blocks are meant, as they are stored")
	flags.StringVar(&f.compat, "compat", "", "distorch2: by the rules of ComfyUI-MultiGPU 2.6.3")
	f.format = outputFlag(cmd)
}

func newAllocation(a *app) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "allocation",
		Short: "Check, explain or write an allocation string of ComfyUI-MultiGPU",
		Long: `Allocation strings such as "cuda:0,2.5gb;cpu,*#cuda:0" say how much of a model
lies on which device. These commands need no cluster.`,
	})
	check := &cobra.Command{
		Use:   "check STRING",
		Short: "Say whether an allocation string is valid and fits",
		Args:  arguments(1, "STRING"),
	}
	explain := &cobra.Command{
		Use:   "explain STRING",
		Short: "Show which blocks an allocation string puts on which device, and why",
		Args:  arguments(1, "STRING"),
	}
	for _, sub := range []*cobra.Command{check, explain} {
		var f allocationFlags
		f.add(sub)
		sub.ValidArgsFunction = cobra.NoFileCompletions
		sub.RunE = func(_ *cobra.Command, args []string) error {
			v, over, err := f.assign(args[0])
			if err != nil {
				return err
			}
			if err := v.print(a, *f.format, sub == explain); err != nil || sub == explain {
				return err
			}
			return over
		}
	}
	cmd.AddCommand(check, explain, newAllocationGenerate(a))
	return cmd
}

func newAllocationGenerate(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Write an allocation string that fits",
		Args:  arguments(0),
	}
	var f allocationFlags
	f.add(cmd)
	flags := cmd.Flags()
	compute := flags.String("compute", "", "device that computes (default: the first accelerator)")
	virtual := flags.String("virtual-vram", "", "how much of the model lies elsewhere, such as 4GB (default: what does not fit)")
	reserve := flags.String("reserve", "", "memory to keep free on every device")
	cmd.RunE = func(*cobra.Command, []string) error {
		devices, blocks, mode, err := f.input()
		if err != nil {
			return err
		}
		o := allocation.Options{Mode: mode, Compute: allocation.DeviceID(strings.TrimSpace(*compute))}
		for _, amount := range []struct {
			text  string
			bytes *allocation.Bytes
		}{{*virtual, &o.Virtual}, {*reserve, &o.Reserve}} {
			if amount.text == "" {
				continue
			}
			if *amount.bytes, err = allocation.ParseBytes(amount.text); err != nil {
				return usage(err)
			}
		}
		text, err := allocation.Generate(devices, blocks, o)
		if err != nil {
			return allocationError(err)
		}
		v, _, err := f.assign(text)
		if err != nil {
			return err
		}
		if *f.format != output.Table {
			return output.Write(a.stdout, *f.format, v)
		}
		_, err = fmt.Fprintln(a.stdout, text)
		return err
	}
	return cmd
}

// allocationError gives an error its exit code.
func allocationError(err error) error {
	var short *allocation.FitError
	var wrong *allocation.SyntaxError
	if errors.As(err, &short) || errors.As(err, &wrong) && wrong.Unsupported {
		return infeasible(err)
	}
	return usage(err)
}

// input reads what the flags say.
func (f *allocationFlags) input() (devices []allocation.Device, blocks allocation.Blocks, mode allocation.Mode, err error) {
	mode = allocation.Default
	if f.compat != "" {
		if err := chosen("compat", f.compat); err != nil {
			return nil, blocks, "", usage(err)
		}
		mode = allocation.Distorch2
	}
	if f.devices == "" {
		return nil, blocks, "", usage(errors.New("--devices is missing: name the devices with their memory, such as cpu=64GB,cuda:0=24GB"))
	}
	if devices, err = allocation.ParseDevices(f.devices); err != nil {
		return nil, blocks, "", usage(fmt.Errorf("--devices: %w", err))
	}
	switch {
	case (f.blocks == "") == (f.model == ""):
		return nil, blocks, "", usage(errors.New("one of --blocks and --model is wanted: the model's blocks, such as 40x0.5GB, or its file"))
	case f.model != "":
		blocks, err = storedBlocks(f.model)
		return devices, blocks, mode, err
	}
	if blocks.Runs, err = allocation.ParseBlocks(f.blocks); err != nil {
		return nil, blocks, "", usage(fmt.Errorf("--blocks: %w", err))
	}
	return devices, blocks, mode, nil
}

// storedBlocks are a checkpoint's blocks with the bytes that they have in the file.
func storedBlocks(path string) (b allocation.Blocks, err error) {
	f, err := openCheckpoint(path)
	if err != nil {
		return b, err
	}
	defer f.Close()
	r, err := recognise(f)
	if err != nil {
		return b, fmt.Errorf("%s: %w", path, err)
	}
	m := r.Params.Build(arch.Options{})
	words, _, err := parseWorkload("1024x1024") // stored bytes do not depend on it
	if err != nil {
		return b, err
	}
	dims, err := m.Request(words)
	if err != nil {
		return b, fmt.Errorf("%s: %w", path, err)
	}
	p, err := graph.Specialise(m, dims, r.ComputeDType())
	if err != nil {
		return b, fmt.Errorf("%s: %w", path, err)
	}
	t, err := p.Table(r.Stored)
	if err != nil {
		return b, fmt.Errorf("%s: %w", path, err)
	}
	for _, part := range t.Blocks {
		b.Runs = append(b.Runs, allocation.Run{Count: 1, Bytes: allocation.Bytes(part.Stored)})
	}
	b.Fixed = allocation.Bytes(t.Head.Stored + t.Tail.Stored)
	return b, nil
}

// assign reads and applies a string. Over is the error of one that is applied by distorch2's rules and does not fit.
func (f *allocationFlags) assign(text string) (v *allocationView, over, err error) {
	devices, blocks, mode, err := f.input()
	if err != nil {
		return nil, nil, err
	}
	e, err := allocation.Parse(text, mode)
	if err != nil {
		return nil, nil, allocationError(err)
	}
	r, err := allocation.Assign(e, devices, blocks)
	if err != nil {
		return nil, nil, allocationError(err)
	}
	layout := r.Layout()
	v = &allocationView{
		String: text, Mode: string(r.Mode), Compute: string(layout.Compute), Fits: true, Contiguous: layout.Contiguous, ModelBytes: int64(r.Bytes),
		FixedBytes: int64(blocks.Fixed), Blocks: r.Blocks, Warnings: append([]string{}, r.Warnings...),
	}
	for _, s := range layout.Spans {
		v.Assignment = append(v.Assignment, segmentView{string(s.Device), s.First, s.Blocks})
	}
	for _, u := range r.Devices {
		v.Devices = append(v.Devices, allocationDeviceView{
			string(u.ID), u.Named, u.Asked, int64(u.Limit), int64(u.Given), u.Blocks, int64(u.Free), int64(u.Total), u.Why,
		})
	}
	if u, ok := r.Over(); ok {
		v.Fits = false
		over = infeasible(fmt.Errorf("by distorch2's rules %s would hold %s and has %s free, %s short; %q writes a string that fits",
			u.ID, u.Given+u.Fixed, u.Free, u.Over(), "distorch allocation generate --compat distorch2"))
	}
	return v, over, nil
}

func (v *allocationView) print(a *app, format output.Format, explained bool) error {
	if format != output.Table {
		return output.Write(a.stdout, format, v)
	}
	state := "fits"
	if !v.Fits {
		state = "does not fit"
	}
	if _, err := fmt.Fprintf(a.stdout, "%s: %s in %s, computed on %s\n", state, counted(v.Blocks, "block"), allocation.Bytes(v.ModelBytes), v.Compute); err != nil {
		return err
	}
	if err := v.table(a, explained); err != nil {
		return err
	}
	for _, w := range v.Warnings {
		if _, err := fmt.Fprintf(a.stdout, "warning: %s\n", output.Clean(w)); err != nil {
			return err
		}
	}
	return nil
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// table lists the ranges of blocks from head to tail, and with explained also the devices.
func (v *allocationView) table(a *app, explained bool) error {
	rows := [][]string{}
	for _, s := range v.Assignment {
		span := fmt.Sprint(s.First)
		if s.Blocks > 1 {
			span = fmt.Sprintf("%d-%d", s.First, s.First+s.Blocks-1)
		}
		rows = append(rows, []string{span, s.Device})
	}
	if err := output.WriteTable(a.stdout, []string{"BLOCKS", "DEVICE"}, rows); err != nil || !explained {
		return err
	}
	rows = [][]string{}
	for _, d := range v.Devices {
		asked, limit := d.Asked, ""
		if d.Named {
			limit = allocation.Bytes(d.Limit).String()
		}
		rows = append(rows, []string{d.Device, asked, limit, allocation.Bytes(d.Given).String(), fmt.Sprint(d.Blocks), allocation.Bytes(d.Free).String(), d.Why})
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	return output.WriteTable(a.stdout, []string{"DEVICE", "ASKED", "UP TO", "GIVEN", "BLOCKS", "FREE", "WHY"}, rows)
}
