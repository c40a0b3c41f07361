// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// submit is POST /prompt.
func (s *Server) submit(w http.ResponseWriter, r *http.Request) {
	body, ok := s.body(w, r)
	if !ok {
		return
	}
	e, answered, refused, err := s.read(body)
	switch {
	case err != nil:
		s.trouble(w, r, err)
		return
	case refused != nil:
		answer(w, http.StatusBadRequest, refused.body())
		return
	}
	if err := s.enqueue(e); err != nil {
		refused := &refusal{kind: "queue_full", message: "The queue has no room", details: err.Error()}
		answer(w, http.StatusTooManyRequests, refused.body())
		return
	}
	answer(w, http.StatusOK, answered)
}

// read makes an entry of a body, and the answer that it gets once it is queued. It
// errs where ComfyUI answers 500.
func (s *Server) read(body []byte) (*entry, []byte, *refusal, error) {
	sub, err := readSubmission(body)
	if err != nil {
		return nil, nil, nil, err
	}
	number := s.numberOf(sub)
	if sub.prompt == nil {
		return nil, nil, &refusal{kind: "no_prompt", message: "No prompt provided", details: "No prompt provided"}, nil
	}
	want, err := wanted(sub.targets)
	if err != nil {
		return nil, nil, nil, err
	}
	v := &validation{class: s.cat.class, hasFile: s.cfg.Backend.HasFile}
	c, refused, err := v.check(sub.prompt, want)
	if refused != nil || err != nil {
		return nil, nil, refused, err
	}
	p := &Prompt{
		ID: sub.id, Graph: []byte(c.graph), Classes: c.classes, Choices: c.choices, Outputs: c.outputs,
		ExtraData: []byte(sub.extra.value()),
	}
	if p.ID == "" {
		p.ID = newUUID()
	}
	if err := s.cfg.Backend.Check(p); err != nil {
		none := (*NoWorkerError)(nil)
		if !errors.As(err, &none) {
			return nil, nil, nil, err
		}
		return nil, nil, &refusal{kind: "invalid_prompt", message: "Cannot execute because no worker has all of what the prompt needs.", details: none.Error()}, nil
	}
	e := &entry{
		prompt: p, number: number, order: numberOrder(number), shown: c.shown,
		extra: sub.extra.without(secrets()...).value(), client: sub.client, hasClient: sub.hasClient, created: time.Now(),
	}
	e.size = int64(len(p.Graph) + len(p.ExtraData) + len(e.extra) + len(p.ID) + 1024) // and a round sum for the rest
	if len(c.shown) != len(c.graph) {
		e.size += int64(len(c.shown))
	}
	return e, fields("prompt_id", p.ID, "number", number, "node_errors", c.nodeErrors).value(), nil, nil
}

// numberOf is the prompt's place in the queue: its own number, or the next one,
// negative when it goes to the front.
func (s *Server) numberOf(sub submission) jsontext.Value {
	if sub.number != nil {
		return sub.number
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.number
	s.number++
	if sub.front {
		n = -n
	}
	return jsontext.Value(strconv.FormatInt(n, 10))
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
