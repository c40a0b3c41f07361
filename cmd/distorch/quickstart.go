// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/cmd/internal/picture"
	"github.com/distorch/distorch/model/demo"
	"github.com/distorch/distorch/model/sampling"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// The demo checkpoint and what the quickstart asks of it.
const (
	demoFile     = "demo.safetensors"
	demoWorkload = "128x128,tokens=5"
	demoPrompt   = "large red circle on blue"
	demoSide     = 128
	demoSteps    = 20
	demoBlocks   = 6 // 2 double, 4 single
	sheetColumns = 3
	sheetGap     = 16
)

type quickstartFlags struct {
	netns  bool
	keep   string
	agents int
	models string
	out    string
}

func newQuickstart(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "quickstart",
		Short: "Make pictures on three agents of this machine, then on one, and compare the bits",
		Long: `Starts a coordinator and three agents as processes of their own, each agent with
another instruction set and another number of threads, cuts the demo model over
them, samples "large red circle on blue" (out.png) and eight more prompts
(sheet.png), and then does the same on one fresh agent: the digests are equal.
Everything that it starts it stops again.`,
		Args: arguments(0),
	}
	var f quickstartFlags
	flags := cmd.Flags()
	flags.BoolVar(&f.netns, "netns", false, "each process in a network namespace of its own (Linux, as root)")
	flags.StringVar(&f.keep, "keep", "", "folder for state and logs, which stay there (default: a temporary one)")
	flags.IntVar(&f.agents, "agents", 3, fmt.Sprintf("agents that share the model, 1 to %d", demoBlocks))
	flags.StringVar(&f.models, "models", "", "folder with "+demoFile+" (default: demo/ of the repository)")
	flags.StringVar(&f.out, "out", "out", "folder for the pictures")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.agents < 1 || f.agents > demoBlocks {
			return usage(fmt.Errorf("--agents %d: want 1 to %d, as the demo model has %d blocks", f.agents, demoBlocks, demoBlocks))
		}
		return a.quickstart(cmd.Context(), f)
	}
	return cmd
}

// demoFolder finds the demo checkpoint: the folder given, or demo/ here or
// above the binary.
func demoFolder(given string) (string, error) {
	if given != "" {
		if _, err := os.Stat(filepath.Join(given, demoFile)); err != nil {
			return "", notFound(fmt.Errorf("--models: %w", err))
		}
		return filepath.Abs(given)
	}
	candidates := []string{"demo"}
	if exe, err := os.Executable(); err == nil {
		dir := filepath.Dir(exe)
		candidates = append(candidates, filepath.Join(dir, "demo"), filepath.Join(dir, "..", "demo"))
	}
	for _, dir := range candidates {
		if _, err := os.Stat(filepath.Join(dir, demoFile)); err == nil {
			return filepath.Abs(dir)
		}
	}
	return "", notFound(fmt.Errorf("%s is not in demo/ here or beside the binary; run this in the repository, or name its folder with --models", demoFile))
}

func (a *app) quickstart(ctx context.Context, f quickstartFlags) (err error) {
	models, err := demoFolder(f.models)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.out, 0o777); err != nil {
		return err
	}
	files := make([]*outFile, 2)
	for i, name := range []string{"out.png", "sheet.png"} {
		if files[i], err = reserve(filepath.Join(f.out, name), 4<<20, 0o666); err != nil {
			return err
		}
		defer files[i].abort()
	}
	// Ctrl-C ends the reader of a pipe too; a write to it must not end this
	// process before what it has started.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	defer signal.Stop(broken)
	s, err := newShow(a, f, models)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.explain()
		}
		if stopErr := s.stop(f.keep == ""); err == nil {
			err = stopErr
		}
	}()
	if err := s.startCoordinator(ctx); err != nil {
		return err
	}
	shared, err := s.perform(ctx, performers(f.agents))
	if err != nil {
		return err
	}
	if err := commitPictures(files, shared); err != nil {
		return err
	}
	alone, err := s.perform(ctx, []performer{soloist(f.agents)})
	if err != nil {
		return err
	}
	p := &printer{w: a.stdout}
	p.line("")
	p.line("pictures: %s, %s", files[0].path, files[1].path)
	p.line("digest agents=%d %s", f.agents, digestOf(shared))
	p.line("digest agents=1 %s", digestOf(alone))
	if p.err == nil && digestOf(shared) != digestOf(alone) {
		return fmt.Errorf("the pictures of %d agents and of one differ, which must never be: digest %s and %s; `distorch verify` on golden cases finds the operation",
			f.agents, digestOf(shared), digestOf(alone))
	}
	return p.err
}

func digestOf(results []*picture.Result) string {
	latents := make([][]float32, len(results))
	for i, r := range results {
		latents[i] = r.Latent
	}
	return picture.Digest(latents...)
}

// commitPictures writes the first picture, and the others as a sheet.
func commitPictures(files []*outFile, results []*picture.Result) error {
	first, err := encodePicture(results[0])
	if err != nil {
		return err
	}
	sheet, err := encodeSheet(results[1:])
	if err != nil {
		return err
	}
	return errors.Join(files[0].commit(first), files[1].commit(sheet))
}

// perform starts the agents one after another, deploys the demo over them,
// makes one picture and then the sheet's, and stops them again.
func (s *show) perform(ctx context.Context, agents []performer) (results []*picture.Result, err error) {
	for _, g := range agents {
		if err := s.startAgent(ctx, g); err != nil {
			return nil, err
		}
	}
	name := fmt.Sprintf("demo-%d", len(agents))
	if err := s.deploy(ctx, name, agents); err != nil {
		return nil, err
	}
	results, err = s.pictures(ctx, name)
	if err != nil {
		return nil, fromRPC("", err)
	}
	if _, err := ask(ctx, s.operator, "", s.operator.Control.Undeploy, &pb.UndeployRequest{Name: name}); err != nil {
		return nil, err
	}
	return results, s.stopAgents()
}

func (s *show) deploy(ctx context.Context, name string, agents []performer) error {
	load, err := workload(demoWorkload)
	if err != nil {
		return err
	}
	spec := &pb.DeploymentSpec{Name: name, Model: s.modelID, Workload: load, Objective: "latency"}
	at := 0
	for _, g := range agents {
		spec.Pins = append(spec.Pins, &pb.Pin{Node: g.name, FirstBlock: uint32(at), Blocks: uint32(g.blocks)})
		at += g.blocks
	}
	if spec, err = deploy(ctx, s.operator, spec); err != nil {
		return err
	}
	_, err = awaitReady(ctx, s.operator, spec, s.progress)
	return err
}

// pictures makes the quickstart's pictures: the first, then the sheet's nine.
func (s *show) pictures(ctx context.Context, deployment string) ([]*picture.Result, error) {
	prompts := append([]string{demoPrompt}, demo.SheetPrompts()...)
	var results []*picture.Result
	var request picture.Request
	for i, prompt := range prompts {
		positive, negative, err := picture.Prompt(prompt)
		if err != nil {
			return nil, err
		}
		request = picture.Request{
			Deployment: deployment, Model: s.model, Width: demoSide, Height: demoSide, Steps: demoSteps, Seed: uint64(max(i-1, 0)),
			CFG: 1, Guidance: 3.5, Scheduler: sampling.Simple, Shift: sampling.DefaultFluxShift, Text: positive, Negative: &negative,
		}
		var printing error
		if i == 0 {
			request.Planned = func(p *pb.Plan) { printing = newPlanView(p, nil).write(s.app.stdout) }
		}
		label, before, all := demoPrompt, 0, demoSteps
		if i > 0 {
			label, before, all = "sheet", (i-1)*demoSteps, (len(prompts)-1)*demoSteps
		}
		request.Stepped = func(step, _ int, took time.Duration) {
			s.progress.Step(label, int64(before+step), int64(all), output.Duration(took)+"/it")
		}
		r, err := picture.Sample(ctx, s.operator.Endpoint, request)
		if i == 0 || i == len(prompts)-1 {
			s.progress.Done()
		}
		if err := errors.Join(err, printing); err != nil {
			return nil, err
		}
		results = append(results, r)
	}
	if results[0].Digest != results[1].Digest {
		return nil, fmt.Errorf("the same request gave two pictures: digest %s, then %s", results[0].Digest, results[1].Digest)
	}
	return results, s.report(request, results)
}

// report prints the times of all pictures together and what the agents counted
// up to the last.
func (s *show) report(request picture.Request, results []*picture.Result) error {
	last := *results[len(results)-1]
	for _, r := range results[:len(results)-1] {
		last.Steps = append(last.Steps, r.Steps...)
	}
	v := newRunView(request, &last, nil)
	p := &printer{w: s.app.stdout}
	v.writeTimes(p)
	v.writeAgents(p)
	return p.err
}

// readyFile is what `up` and `agent` write when they serve.
type readyFile struct {
	Address string `json:"address"`
	DataDir string `json:"data_dir"`
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
