// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestOutputsComeOnce: a node that ran on a worker that was lost runs again, and the
// client gets its first picture alone.
func TestOutputsComeOnce(t *testing.T) {
	try := 0
	s, base := serve(t, Config{Backend: newFake(t, 1, func(_ context.Context, p *Prompt, sink Sink, _ <-chan struct{}) error {
		try++
		send := func(kind, data string) {
			sink.Text(Message{Type: kind, Data: json.RawMessage(fmt.Sprintf(`{"prompt_id":%q,%s}`, p.ID, data))})
		}
		send("execution_start", `"timestamp":1`)
		send("executed", fmt.Sprintf(`"node":"2","display_node":"2","output":{"images":[{"filename":"try%d.png","subfolder":"","type":"output"}]}`, try))
		if try == 1 {
			return ErrWorkerLost
		}
		send("execution_success", `"timestamp":2`)
		return nil
	})})
	c := connect(t, base, "me", false)
	post(t, base+"/prompt", imagePrompt("a", `,"client_id":"me"`), http.StatusOK)
	r := waitRecord(t, s, "a")
	if out := string(r.outputs); !strings.Contains(out, "try1.png") || strings.Contains(out, "try2.png") {
		t.Errorf("outputs of the history: %s", out)
	}
	executed := 0
	for {
		_, raw := c.next()
		if strings.HasPrefix(string(raw), `{"type":"executed"`) {
			executed++
		}
		if strings.HasPrefix(string(raw), `{"type":"executing","data":{"node":null`) {
			break
		}
	}
	if executed != 1 || try != 2 {
		t.Errorf("the client heard of %d outputs in %d tries", executed, try)
	}
}
