// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// comfyWorkerView is a registered ComfyUI worker.
type comfyWorkerView struct {
	Name     string   `json:"name"`
	URL      string   `json:"url"`
	Added    string   `json:"added,omitempty"` // RFC 3339
	State    string   `json:"state"`           // idle, busy, unreachable, unknown
	Problem  string   `json:"problem,omitempty"`
	Version  string   `json:"version,omitempty"` // of ComfyUI
	Classes  uint32   `json:"classes"`
	Queued   uint32   `json:"queued"`  // prompts of others in its own queue
	Prompts  uint64   `json:"prompts"` // given to it since the coordinator started
	Lost     uint64   `json:"lost"`
	Replaces bool     `json:"replaces_loaders"` // models of the cluster run on the cluster
	Devices  []string `json:"devices"`
}

// comfyListView is what `comfy list` shows.
type comfyListView struct {
	Listen  string            `json:"listen"` // where ComfyUI's API is served; empty: nowhere
	Workers []comfyWorkerView `json:"workers"`
}

func newComfy(a *app) *cobra.Command {
	root := group(&cobra.Command{Use: "comfy", Short: "Register the ComfyUI workers behind the coordinator's ComfyUI API"})
	root.AddCommand(newComfyAdd(a), newComfyList(a), newComfyRemove(a))
	return root
}

func newComfyAdd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add URL",
		Short: "Register a ComfyUI, such as http://192.168.1.20:8188",
		Long: `Registers a ComfyUI that the coordinator reaches at URL, such as
http://192.168.1.20:8188. Whole prompts that clients send to the coordinator's own
ComfyUI API (comfy.listen) go to the registered workers. The coordinator asks the
URL for its version first; --no-check registers one that does not run yet.

A worker sees every prompt and picture that it is given.`,
		Args: arguments(1, "URL"),
	}
	operatorFlags(cmd)
	format := outputFlag(cmd)
	name := cmd.Flags().String("name", "", "name of the worker (default: its host and port)")
	unchecked := cmd.Flags().Bool("no-check", false, "register it although it may not answer yet")
	cmd.RunE = a.connected(func(cmd *cobra.Command, o *operator, args []string) error {
		answer, err := ask(cmd.Context(), o, "", o.Control.AddComfyWorker, &pb.AddComfyWorkerRequest{Name: *name, Url: args[0], Unchecked: *unchecked})
		if err != nil {
			return err
		}
		v := newComfyWorkerView(answer.GetWorker())
		if *format != output.Table {
			return output.Write(a.stdout, *format, v)
		}
		what := "not asked"
		if v.Version != "" {
			what = "ComfyUI " + v.Version
		}
		_, err = fmt.Fprintf(a.stdout, "worker %s: %s, %s\n", v.Name, v.URL, what)
		return err
	})
	return cmd
}

func newComfyList(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the registered ComfyUI workers", Args: arguments(0)}
	operatorFlags(cmd)
	format := outputFlag(cmd)
	cmd.RunE = a.connected(func(cmd *cobra.Command, o *operator, _ []string) error {
		answer, err := ask(cmd.Context(), o, "list ComfyUI workers", o.Control.ListComfyWorkers, &pb.ListComfyWorkersRequest{})
		if err != nil {
			return err
		}
		v := comfyListView{Listen: answer.GetListen(), Workers: []comfyWorkerView{}}
		for _, w := range answer.GetWorkers() {
			view := newComfyWorkerView(w)
			if v.Listen == "" {
				view.State = "unknown"
			}
			v.Workers = append(v.Workers, view)
		}
		if *format != output.Table {
			return output.Write(a.stdout, *format, v)
		}
		return writeComfyWorkers(a, v)
	})
	return cmd
}

func newComfyWorkerView(w *pb.ComfyWorker) comfyWorkerView {
	v := comfyWorkerView{
		Name: w.GetRecord().GetName(), URL: w.GetRecord().GetUrl(), State: "idle", Problem: w.GetProblem(), Version: w.GetVersion(), Classes: w.GetClasses(),
		Queued: w.GetQueued(), Prompts: w.GetPrompts(), Lost: w.GetLost(), Replaces: w.GetReplaces(), Devices: append([]string{}, w.GetDevices()...),
	}
	if at := w.GetRecord().GetAddedUnix(); at > 0 {
		v.Added = time.Unix(at, 0).UTC().Format(time.RFC3339)
	}
	switch {
	case !w.GetLive():
		v.State = "unreachable"
	case w.GetBusy():
		v.State = "busy"
	}
	return v
}

func writeComfyWorkers(a *app, v comfyListView) error {
	served := "ComfyUI's API is at http://" + v.Listen
	if v.Listen == "" {
		served = "ComfyUI's API is off at this coordinator: start it with --comfy-listen 127.0.0.1:8188"
	}
	if _, err := fmt.Fprintln(a.stdout, served); err != nil {
		return err
	}
	if len(v.Workers) == 0 {
		_, err := fmt.Fprintln(a.stdout, "no worker is registered; `distorch comfy add URL` adds one")
		return err
	}
	var rows [][]string
	for _, w := range v.Workers {
		loaders := ""
		if w.Replaces {
			loaders = "on the cluster"
		}
		rows = append(rows, []string{
			w.Name, w.URL, w.State, w.Version, fmt.Sprint(w.Classes), fmt.Sprint(w.Prompts), fmt.Sprint(w.Lost), fmt.Sprint(w.Queued), loaders, strings.TrimSpace(w.Problem),
		})
	}
	return output.WriteTable(a.stdout, []string{"NAME", "URL", "STATE", "COMFYUI", "CLASSES", "PROMPTS", "LOST", "OTHERS", "MODELS", "PROBLEM"}, rows)
}

func newComfyRemove(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a ComfyUI worker off the list",
		Long:  "Takes a ComfyUI worker off the list. A prompt that it runs is queued again.",
		Args:  arguments(1, "NAME"),
	}
	operatorFlags(cmd)
	cmd.RunE = a.connected(func(cmd *cobra.Command, o *operator, args []string) error {
		if _, err := ask(cmd.Context(), o, "", o.Control.RemoveComfyWorker, &pb.RemoveComfyWorkerRequest{Name: args[0]}); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.stdout, "worker %s removed\n", args[0])
		return err
	})
	return cmd
}
