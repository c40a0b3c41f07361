// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/model/lora"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

// fakeComfy has one ComfyUI, at http://den:8188.
type fakeComfy struct{}

func (fakeComfy) Parse(url string) (string, error) {
	if !strings.HasPrefix(url, "http://") {
		return "", errors.New("worker URL: no http")
	}
	return url, nil
}

func (fakeComfy) Probe(_ context.Context, url string) (string, error) {
	if url != "http://den:8188" {
		return "", errors.New("connection refused")
	}
	return "0.3.64", nil
}

func (fakeComfy) States() (map[string]*pb.ComfyWorker, string) {
	return map[string]*pb.ComfyWorker{"den": {Record: &pb.ComfyWorkerRecord{Name: "den", Url: "http://den:8188"}, Live: true, Version: "0.3.64"}}, "127.0.0.1:8188"
}

func TestComfyWorkers(t *testing.T) {
	c := newCluster(t)
	co, op := c.new("one:1"), c.as(identity.RoleOperator)
	if _, err := co.AddComfyWorker(op, &pb.AddComfyWorkerRequest{Url: "http://den:8188"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without ComfyUI: %v", err)
	}
	co.cfg.Comfy = fakeComfy{}
	for i, step := range []struct {
		name, url string
		unchecked bool
		code      codes.Code
		says      string // of the error, or the name that it got
	}{
		{"", "den:8188", false, codes.InvalidArgument, "no http"},
		{"", "http://loft:8188", false, codes.InvalidArgument, "no ComfyUI answers at http://loft:8188"},
		{"a/b", "http://den:8188", false, codes.InvalidArgument, "--name"},
		{"den", "http://den:8188", false, codes.OK, "den"},
		{"den", "http://loft:8188", true, codes.InvalidArgument, "there is a ComfyUI worker den already"},
		{"other", "http://den:8188", true, codes.InvalidArgument, "is worker den already"},
		{"", "http://[::1]:8188/x/", true, codes.OK, "1-8188-x"},
	} {
		answer, err := co.AddComfyWorker(op, &pb.AddComfyWorkerRequest{Name: step.name, Url: step.url, Unchecked: step.unchecked})
		text := answer.GetWorker().GetRecord().GetName()
		if err != nil {
			text = err.Error()
		}
		if status.Code(err) != step.code || !strings.Contains(text, step.says) {
			t.Errorf("step %d: %v %s, want %v %s", i, status.Code(err), text, step.code, step.says)
		}
	}
	list, err := co.ListComfyWorkers(op, &pb.ListComfyWorkersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range list.Workers {
		got = append(got, fmt.Sprint(w.Record.Name, " ", w.Record.Url, " ", w.Live, " ", w.Version))
	}
	if d := cmp.Diff([]string{"1-8188-x http://[::1]:8188/x/ false ", "den http://den:8188 true 0.3.64"}, got); d != "" || list.Listen != "127.0.0.1:8188" {
		t.Errorf("%s, listen %s", d, list.Listen)
	}
	if _, err := co.RemoveComfyWorker(op, &pb.RemoveComfyWorkerRequest{Name: "dem"}); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), `did you mean "den"`) {
		t.Errorf("an unknown one: %v", err)
	}
	if _, err := co.RemoveComfyWorker(op, &pb.RemoveComfyWorkerRequest{Name: "den"}); err != nil {
		t.Error(err)
	}
	if list, err = co.ListComfyWorkers(op, &pb.ListComfyWorkersRequest{}); err != nil || len(list.Workers) != 1 {
		t.Errorf("after it: %v %v", list, err)
	}
}

func TestModelFiles(t *testing.T) {
	c := newCluster(t)
	put(c, store.ModelKey("m1"), modelRecord("m1", "flux.safetensors", tiny, tensor.F32))
	put(c, store.ModelKey("m2"), modelRecord("m2", "other.safetensors", tiny, tensor.F32))
	put(c, store.ModelKey("m3"), &pb.ModelRecord{Id: "m3", Name: "style.safetensors", Architecture: lora.Architecture})
	for _, name := range []string{"b", "a"} {
		put(c, store.SpecKey(name), &pb.DeploymentSpec{Name: name, Model: "m1"})
		put(c, store.PlanKey(name), &pb.Plan{})
	}
	put(c, store.SpecKey("unplanned"), &pb.DeploymentSpec{Name: "unplanned", Model: "m2"})
	co := c.new("one:1")
	if got := co.ModelFiles(); got != nil {
		t.Errorf("before the state is known: %v", got)
	}
	st, err := c.store.ReadState(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := co.take(st); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]ModelFile{{"flux.safetensors", "a"}, {"other.safetensors", ""}}, co.ModelFiles()); d != "" {
		t.Error(d)
	}
}
