// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/cmd/internal/picture"
	"github.com/distorch/distorch/model/arch"
	"github.com/distorch/distorch/model/sampling"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// runFlags are what `distorch run` can be told.
type runFlags struct {
	prompt, conditioning string
	seed                 uint64
	steps, repeat        int
	cfg, guidance, shift float64
	width, height        int
	scheduler            string
	out, saveLatent      string
	saveSteps            string
	checkEvery           int
	references           []string
	refMethod, input     string
	loras                []string
}

func newRun(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run DEPLOYMENT",
		Short: "Sample a picture with a deployment",
		Long: `Samples a picture as ComfyUI does (Euler; a seed means the same noise as there),
and prints the plan and the forecast before the first step, the measured time
beside the forecast after the last, what each agent ran, and the BLAKE3 digest of
the final latent.

The text is a --prompt for the demo model, which knows a few words, and a
--conditioning file for every other: a safetensors file with the tensors context
[1,tokens,width] and y [1,width], and negative.context and negative.y when --cfg
is not 1.

Sizes are in pixels, 8 for each cell of the latent, and at most those that the
deployment is placed for. The demo model makes latents of 16x16 cells, so its
size is 128x128, though it draws a picture of 32x32 dots, shown 8 times as large.

Images come as files of latents, as ComfyUI's SaveLatent and --save-latent write
them: --reference, up to four times, for FLUX.1 Kontext (the deployment must be
placed for them: --workload 1024x1024,ref=1024x1024), --input for Control and
Fill models; Fill's file also holds mask [1,1,height,width], 1 where the picture
is to be made anew. The conditioning may hold attention_mask [1,tokens,tokens],
which is added to the scores of attention (--workload 1024x1024,mask=1).

--save-latent writes the tensors latent (the model's space, what the digest is
of) and latent_tensor (what ComfyUI's LoadLatent reads). --save-steps does so
after each step, for ` + "`distorch compare`" + `.

--check-every N loads the model on one device besides, whole, computes every N-th
step there as well, reports how far the predictions are apart, and removes it
again. The exit code is 1 when the plan's numerics class promises equal bits and
they differ, 4 when the model fits on no device alone.`,
		Args: arguments(1, "DEPLOYMENT"),
	}
	var f runFlags
	f.add(cmd)
	operatorFlags(cmd)
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.check(); err != nil {
			return usage(err)
		}
		if cmd.Flags().Changed("reference-method") && len(f.references) == 0 {
			return usage(errors.New("--reference-method needs a --reference"))
		}
		o, err := a.connect(cmd)
		if err != nil {
			return err
		}
		defer o.close()
		return a.sample(cmd, o, args[0], f, *format)
	}
	return cmd
}

func (f *runFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.prompt, "prompt", "", `text for the demo model, such as "large red circle on blue"`)
	flags.StringVar(&f.conditioning, "conditioning", "", "safetensors file with the text's tensors")
	flags.Uint64Var(&f.seed, "seed", 0, "seed of the noise")
	flags.IntVar(&f.steps, "steps", 20, "Euler steps")
	flags.Float64Var(&f.cfg, "cfg", 1, "weight of the text against the negative one; 1 leaves that out")
	flags.Float64Var(&f.guidance, "guidance", 3.5, "guidance value, where the model takes one")
	flags.Float64Var(&f.shift, "shift", sampling.DefaultFluxShift, "shift of FLUX.1 dev's noise levels")
	flags.IntVar(&f.width, "width", 0, "pixels; 0: as the deployment is placed for")
	flags.IntVar(&f.height, "height", 0, "pixels; 0: as the deployment is placed for")
	flags.StringVar(&f.scheduler, "scheduler", string(sampling.Simple), "which noise levels the steps visit, by ComfyUI's names")
	flags.StringVar(&f.out, "out", "", "PNG file to write; for the demo model, as there is no VAE")
	flags.StringVar(&f.saveLatent, "save-latent", "", "safetensors file to write the final latent to")
	flags.StringVar(&f.saveSteps, "save-steps", "", "empty or new folder to write the latent after each step to")
	flags.IntVar(&f.checkEvery, "check-every", 0, "compute every so many-th step on one device as well, where the model fits, and compare; 0: none")
	flags.StringArrayVar(&f.references, "reference", nil, "file with a reference latent, for FLUX.1 Kontext; may be given again")
	flags.StringVar(&f.refMethod, "reference-method", picture.RefMethods()[0], "how references are placed: "+strings.Join(picture.RefMethods(), ", "))
	flags.StringVar(&f.input, "input", "", "file with the latent, and for Fill the mask, that a Control or Fill model takes")
	flags.StringArrayVar(&f.loras, "lora", nil, "NAME:STRENGTH or NAME:FIRST:LAST of a LoRA of the deployment: its strength in this run, or in the first and the last step; may be given several times")
	flags.IntVar(&f.repeat, "repeat", 1, "make the same picture so many times; their digests must be equal")
}

// maxWeight bounds cfg and guidance: pictures are noise long before.
const maxWeight = 1000.0

// check checks what can be checked without a coordinator.
func (f *runFlags) check() error {
	switch {
	case f.prompt == "" && f.conditioning == "":
		return errors.New("--prompt (for the demo model) or --conditioning is missing")
	case f.prompt != "" && f.conditioning != "":
		return errors.New("--prompt and --conditioning are both given; use one")
	case f.steps < 1 || f.steps > 10_000:
		return fmt.Errorf("--steps %d: want 1 to 10000", f.steps)
	case f.checkEvery < 0:
		return fmt.Errorf("--check-every %d: want 1 for every step, or more; 0 for none", f.checkEvery)
	case f.checkEvery > f.steps:
		return fmt.Errorf("--check-every %d: of %d steps (--steps) none would be checked", f.checkEvery, f.steps)
	case f.repeat < 1:
		return fmt.Errorf("--repeat %d: want 1 or more", f.repeat)
	case !(f.cfg >= 0 && f.cfg <= maxWeight):
		return fmt.Errorf("--cfg %g: want 0 to %g", f.cfg, maxWeight)
	case !(f.guidance >= 0 && f.guidance <= maxWeight):
		return fmt.Errorf("--guidance %g: want 0 to %g", f.guidance, maxWeight)
	case !(math.Abs(f.shift) <= picture.MaxShift):
		return fmt.Errorf("--shift %g: want -%d to %[2]d", f.shift, picture.MaxShift)
	case f.width < 0 || f.height < 0 || f.width > 1<<16 || f.height > 1<<16:
		return fmt.Errorf("--width %d --height %d: want 1 to %d pixels, or 0", f.width, f.height, 1<<16)
	}
	if !slices.Contains(picture.RefMethods(), f.refMethod) {
		return fmt.Errorf("--reference-method %q: want one of %s", f.refMethod, strings.Join(picture.RefMethods(), ", "))
	}
	return chosen("scheduler", f.scheduler)
}

// sample makes the picture that the flags ask for.
func (a *app) sample(cmd *cobra.Command, o *operator, deployment string, f runFlags, format output.Format) (err error) {
	request, status, err := f.request(cmd, o, deployment)
	if err != nil {
		return err
	}
	files, err := f.reserve(request)
	if err != nil {
		return err
	}
	defer files.abort()
	names, err := nodeNames(cmd, o)
	if err != nil {
		return err
	}
	progress := output.NewProgress(a.stderr)
	defer progress.Done()
	if request.State, err = f.stepFiles(request); err != nil {
		return err
	}
	var one *oneDevice
	if f.checkEvery > 0 {
		if one, err = alone(cmd.Context(), o, status, request, progress); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, one.end()) }()
		request.Check = &picture.Checking{Every: f.checkEvery, Deployment: one.spec.Name}
	}
	planned := false
	var printing error
	request.Planned = func(p *pb.Plan) {
		if planned || format != output.Table {
			return
		}
		planned = true
		printing = newPlanView(p, names).write(a.stdout)
	}
	request.Stepped = func(step, steps int, took time.Duration) {
		progress.Step("sampling", int64(step), int64(steps), output.Duration(took)+"/it")
	}
	views := []*runView{}
	var last *picture.Result
	var broken error
	for range f.repeat {
		result, err := picture.Sample(cmd.Context(), o.Endpoint, request)
		progress.Done()
		if err := errors.Join(err, printing); err != nil {
			return fromRPC("", err)
		}
		if last != nil && last.Digest != result.Digest {
			return fmt.Errorf("deployment %s: the same request gave two pictures: digest %s, then %s", deployment, last.Digest, result.Digest)
		}
		last, request.State = result, nil
		v := newRunView(request, result, names)
		if one != nil {
			v.Check = newCheckView(f.checkEvery, one, result)
			broken = errors.Join(broken, v.Check.broken(deployment))
		}
		views = append(views, v)
		if format == output.Table {
			if err := v.write(a.stdout); err != nil {
				return err
			}
		}
	}
	if err := files.commit(request, last); err != nil {
		return err
	}
	if format != output.Table {
		if err := output.Write(a.stdout, format, views); err != nil {
			return err
		}
	}
	return broken
}

// request finds the deployment and its model and reads the text.
func (f *runFlags) request(cmd *cobra.Command, o *operator, deployment string) (picture.Request, *pb.DeploymentStatus, error) {
	var none picture.Request
	answer, err := ask(cmd.Context(), o, "", o.Control.Status, &pb.StatusRequest{Name: deployment})
	if err != nil {
		return none, nil, err
	}
	if len(answer.Deployments) != 1 {
		return none, nil, notFound(fmt.Errorf("no deployment %q here (`distorch deployments` lists them)", deployment))
	}
	d := answer.Deployments[0]
	r, err := f.of(cmd, o, d)
	return r, d, err
}

// of is the request to a deployment.
func (f *runFlags) of(cmd *cobra.Command, o *operator, d *pb.DeploymentStatus) (picture.Request, error) {
	var none picture.Request
	spec := d.GetSpec()
	model, err := findModel(cmd, o, d)
	if err != nil {
		return none, err
	}
	strengths, err := runStrengths(cmd, o, spec, f.loras)
	if err != nil {
		return none, err
	}
	r := picture.Request{
		LoRAs:      strengths,
		Deployment: spec.GetName(), Model: model, Width: f.width, Height: f.height, Seed: f.seed, Steps: f.steps,
		CFG: f.cfg, Guidance: f.guidance, Scheduler: sampling.Scheduler(f.scheduler), Shift: f.shift,
	}
	if r.Width == 0 {
		r.Width = int(spec.GetWorkload().GetDims()["width"])
	}
	if r.Height == 0 {
		r.Height = int(spec.GetWorkload().GetDims()["height"])
	}
	if w, h := picture.Cells(r.Width, r.Height); w != r.Width || h != r.Height {
		fmt.Fprintf(cmd.ErrOrStderr(), "distorch: %dx%d pixels become %dx%d: a latent has whole cells of 8x8\n", r.Width, r.Height, w, h)
	}
	if err := f.text(&r); err != nil {
		return none, err
	}
	if err := f.images(&r); err != nil {
		return none, err
	}
	return r, placedFor(spec, r)
}

// placedFor refuses references and a mask that the deployment has no room for,
// with the workload that has.
func placedFor(spec *pb.DeploymentSpec, r picture.Request) error {
	placed := spec.GetWorkload().GetDims()
	needed, larger := maps.Clone(placed), false
	for word, n := range r.Dims() {
		if image := word == "attention_mask" || strings.HasPrefix(word, "ref") && word != "ref_method"; image && n > placed[word] {
			needed[word], larger = n, true
		}
	}
	if !larger {
		return nil
	}
	return usage(fmt.Errorf("deployment %s is placed for %s; for this request deploy it again with --workload %s", spec.GetName(), showWorkload(placed), showWorkload(needed)))
}

// images reads the files of latents.
func (f *runFlags) images(r *picture.Request) error {
	r.RefMethod = f.refMethod
	for _, path := range f.references {
		l, err := picture.ReadLatent(path, r.Model.Channels)
		if err != nil {
			return err
		}
		r.References = append(r.References, l)
	}
	if len(f.references) > 0 && r.Model.Concat > 0 {
		return usage(fmt.Errorf("--reference: %s takes none; Kontext does", r.Model.Variant))
	}
	if len(f.references) > arch.FluxRefs {
		return usage(fmt.Errorf("%d times --reference: at most %d are taken", len(f.references), arch.FluxRefs))
	}
	switch {
	case f.input == "" && r.Model.Concat > 0:
		return usage(fmt.Errorf("%s takes an image beside the noise; give --input FILE", r.Model.Variant))
	case f.input == "":
		return nil
	case r.Model.Concat == 0:
		return usage(fmt.Errorf("--input: %s takes none; Fill and Control models do", r.Model.Variant))
	}
	l, err := picture.ReadInput(f.input, r.Model, r.Width, r.Height)
	r.Input = &l
	return err
}

func (f *runFlags) text(r *picture.Request) error {
	if f.out != "" && !r.Model.Demo {
		return usage(fmt.Errorf("--out: distorch has no VAE for %s; use --save-latent and decode that in ComfyUI (LoadLatent, VAEDecode)", r.Model.Name))
	}
	if f.prompt != "" {
		if !r.Model.Demo {
			return usage(fmt.Errorf("--prompt: distorch has no text encoder for %s; give its output with --conditioning FILE.safetensors", r.Model.Name))
		}
		positive, negative, err := picture.Prompt(f.prompt)
		r.Text, r.Negative = positive, &negative
		return usage(err)
	}
	positive, negative, err := picture.Conditioning(f.conditioning)
	if err != nil {
		return err
	}
	r.Text, r.Negative = positive, negative
	if r.NeedsNegative() && negative == nil {
		return usage(fmt.Errorf("--cfg %g needs the tensors negative.context and negative.y in %s", f.cfg, f.conditioning))
	}
	return nil
}

func findModel(cmd *cobra.Command, o *operator, d *pb.DeploymentStatus) (picture.Model, error) {
	spec := d.GetSpec()
	answer, err := ask(cmd.Context(), o, "list models", o.Control.ListModels, &pb.ListModelsRequest{})
	if err != nil {
		return picture.Model{}, err
	}
	for _, m := range answer.Models {
		if m.GetRecord().GetId() == spec.GetModel() {
			if m.Record.HyperParameters == nil {
				m.Record.HyperParameters = map[string]string{}
			}
			for _, l := range d.GetPlan().GetLoras() {
				maps.Copy(m.Record.HyperParameters, l.GetHyperParameters())
			}
			model, err := picture.NewModel(m.Record)
			return model, infeasible(err)
		}
	}
	return picture.Model{}, notFound(fmt.Errorf("deployment %s: its model %s is not known to the cluster any more", spec.GetName(), spec.GetModelName()))
}
