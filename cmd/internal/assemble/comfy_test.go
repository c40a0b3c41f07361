// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/distorch/distorch/internal/comfyworker"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

const comfyPrompt = `{"prompt": {
 "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 0}},
 "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "here"}}}}`

// TestComfyWorkerIsRegistered: from `comfy add` to the picture of a prompt.
func TestComfyWorkerIsRegistered(t *testing.T) {
	w, err := comfyworker.Start(comfyworker.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Kill)
	cfg := testConfig(t.TempDir())
	cfg.Comfy.Listen = "127.0.0.1:0"
	control := pb.NewControlClient(operator(t, startCoordinator(t, cfg)))
	added, err := control.AddComfyWorker(t.Context(), &pb.AddComfyWorkerRequest{Name: "den", Url: w.URL() + "/"})
	if err != nil {
		t.Fatal(err)
	}
	if added.Worker.Version != "0.3.64" || added.Worker.Record.Url != w.URL() {
		t.Errorf("added %v", added.Worker)
	}
	var list *pb.ListComfyWorkersResponse
	within(t, "the worker is live", func() bool {
		if list, err = control.ListComfyWorkers(t.Context(), &pb.ListComfyWorkersRequest{}); err != nil {
			t.Fatal(err)
		}
		return len(list.Workers) == 1 && list.Workers[0].Live
	})
	base := "http://" + list.Listen
	var queued struct {
		PromptID string `json:"prompt_id"`
	}
	if err := json.Unmarshal(fetched(t, "POST", base+"/prompt", comfyPrompt), &queued); err != nil || queued.PromptID == "" {
		t.Fatalf("POST /prompt: %v", err)
	}
	var history map[string]struct {
		Outputs map[string]struct {
			Images []struct{ Filename, Type string }
		}
	}
	within(t, "the prompt has run", func() bool {
		if err := json.Unmarshal(fetched(t, "GET", base+"/history/"+queued.PromptID, ""), &history); err != nil {
			t.Fatal(err)
		}
		return len(history) == 1
	})
	images := history[queued.PromptID].Outputs["9"].Images
	if len(images) != 1 || images[0].Filename != "here_00001_.png" {
		t.Fatalf("history %v", history)
	}
	w.Kill()
	if png := fetched(t, "GET", base+"/view?filename=here_00001_.png&type=output", ""); !bytes.HasPrefix(png, []byte("\x89PNG")) {
		t.Errorf("picture %.20q", png)
	}
	if _, err := control.RemoveComfyWorker(t.Context(), &pb.RemoveComfyWorkerRequest{Name: "den"}); err != nil {
		t.Error(err)
	}
}

func fetched(t *testing.T, method, url, body string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %d %s %v", method, url, resp.StatusCode, raw, err)
	}
	return raw
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		if ok() {
			return
		}
		<-tick.C
	}
	t.Fatalf("%s: not so after 20 seconds", what)
}
