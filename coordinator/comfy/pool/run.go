// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/distorch/distorch/coordinator/comfy"
)

const (
	submitTimeout = 2 * time.Minute // a worker that loads a model answers late
	// quietPolls of silence make a run look whether its prompt is still there.
	quietPolls = 5
	// absences in a row that mean that the worker forgot the prompt.
	absences = 2
)

// run is one prompt on one worker. Only the goroutine of Run uses it.
type run struct {
	*lease
	api   api
	sink  comfy.Sink
	alias aliases

	cached    map[string]bool // nodes that the worker did not run again
	delivered map[string]bool // nodes whose outputs went to the sink
	started   bool
	quiet     int // polls without a frame
	absent    int // times in a row that the worker did not know the prompt
}

// errDone ends a run that was executed.
var errDone = errors.New("executed")

// Run implements comfy.Lease.
func (l *lease) Run(ctx context.Context, sink comfy.Sink) error {
	r := &run{lease: l, api: l.worker.api, sink: sink, cached: map[string]bool{}, delivered: map[string]bool{}}
	if l.isInterrupted() {
		return comfy.ErrInterrupted
	}
	g, err := parseGraph(l.prompt.Graph)
	if err != nil {
		return &comfy.PromptError{Type: "invalid_prompt", Message: err.Error()}
	}
	g, r.alias = l.pool.replaced(l.worker, g)
	if err := r.submit(ctx, g); err != nil {
		return r.ended(ctx, err)
	}
	return r.ended(ctx, r.follow(ctx))
}

// ended sorts out how a run ended. What the worker may still be doing for it is
// withdrawn, now or when it is back.
func (r *run) ended(ctx context.Context, err error) error {
	if errors.Is(err, errDone) {
		return nil
	}
	if failed, ok := errors.AsType[*comfy.PromptError](err); ok {
		return failed
	}
	id := r.promptID()
	switch {
	case errors.Is(err, comfy.ErrInterrupted):
		return comfy.ErrInterrupted
	case ctx.Err() != nil:
		if id != "" {
			r.withdraw(context.WithoutCancel(ctx))
		}
		return context.Cause(ctx)
	}
	r.worker.abandon(id)
	if id != "" && r.removed() { // nobody connects to it again to do so
		r.withdraw(ctx)
	}
	r.worker.log.Warn("comfyui worker lost a prompt", "prompt_id", r.prompt.ID, "error", err)
	return fmt.Errorf("%w: %s: %w", comfy.ErrWorkerLost, r.Worker(), err)
}

// removed reports whether the worker is no longer registered, or under another URL.
func (r *run) removed() bool {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	return r.pool.workers[r.Worker()] != r.worker
}

func (r *run) withdraw(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := r.api.withdraw(ctx, r.promptID()); err != nil {
		r.worker.log.Warn("withdraw prompt", "prompt_id", r.prompt.ID, "error", err)
	}
}

// uuid is random, in the form that ComfyUI takes for a prompt.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) //nolint:errcheck // it does not fail
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (l *lease) name(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id = id
}

// submit gives the worker the input files and the prompt. Each try has an id of its
// own, so that nothing of an earlier one is taken for it.
func (r *run) submit(ctx context.Context, g graph) error {
	for try := range 2 {
		ready, err := r.bring(ctx, g)
		if err != nil {
			return refusal(err)
		}
		err = r.post(ctx, ready)
		if err == nil {
			return nil
		}
		refused, ok := errors.AsType[*statusError](err)
		if !ok || refused.status != http.StatusBadRequest || try > 0 || !r.forgetFiles() {
			if ok {
				r.name("") // it was not queued
				r.worker.again()
			}
			return refusal(err)
		}
	}
	return nil
}

func (r *run) post(ctx context.Context, g graph) error {
	extra := r.prompt.ExtraData
	if len(extra) == 0 {
		extra = json.RawMessage("{}")
	}
	r.name(uuid())
	body := struct {
		Prompt    json.RawMessage `json:"prompt"`
		ClientID  string          `json:"client_id"`
		PromptID  string          `json:"prompt_id"`
		ExtraData json.RawMessage `json:"extra_data"`
		Targets   []string        `json:"partial_execution_targets,omitempty"`
	}{g.raw(), r.worker.client, r.promptID(), extra, r.prompt.Outputs}
	p := r.pool
	p.mu.Lock()
	r.session = r.worker.session
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	id, err := r.api.prompt(ctx, body)
	if err == nil {
		r.name(id) // an old ComfyUI chooses its own
	}
	return err
}

// refusal is a worker's answer that another try would get again; a gateway's is
// none.
func refusal(err error) error {
	s, ok := errors.AsType[*statusError](err)
	if !ok || s.status >= http.StatusBadGateway {
		return err
	}
	out := &comfy.PromptError{Type: "worker_refused", Message: "the worker refused the prompt: " + s.Error()}
	var body struct {
		Error struct{ Type, Message, Details string } `json:"error"`
		Nodes map[string]struct {
			Class  string `json:"class_type"`
			Errors []struct{ Type, Message, Details string }
		} `json:"node_errors"`
	}
	if json.Unmarshal(s.body, &body) != nil || body.Error.Message == "" {
		return out
	}
	out.Type, out.Message = body.Error.Type, body.Error.Message
	if body.Error.Details != "" {
		out.Message += ": " + body.Error.Details
	}
	for id, n := range body.Nodes {
		if len(n.Errors) == 0 || out.Node != "" && id > out.Node {
			continue
		}
		out.Node, out.NodeType = id, n.Class
		out.Type, out.Message = n.Errors[0].Type, n.Errors[0].Message+": "+n.Errors[0].Details
	}
	return out
}

// follow relays frames until the prompt has ended or the worker is lost.
func (r *run) follow(ctx context.Context) error {
	poll := time.NewTicker(r.pool.cfg.Poll)
	defer poll.Stop()
	var grace <-chan time.Time
	if r.isInterrupted() {
		r.Interrupt() // it came while the prompt was on its way
	}
	r.wake() // as may the worker have gone
	for {
		var err error
		select {
		case f := <-r.frames:
			r.took(f)
			r.quiet, r.absent = 0, 0
			err = r.take(ctx, f)
		case <-r.stopping:
			err = r.interrupt(ctx)
		case <-r.woken:
			switch live, refused, session := r.connection(); {
			case refused:
				err = errors.New("it is gone")
			case !live && grace == nil:
				t := time.NewTimer(r.pool.cfg.Grace)
				defer t.Stop() //nolint:revive // as many as connections broke in one run
				grace = t.C
			case live:
				grace = nil
				if session != r.session {
					r.session = session
					err = r.look(ctx)
				}
			}
		case <-grace:
			err = fmt.Errorf("not reachable for %v", r.pool.cfg.Grace)
		case <-poll.C:
			if r.quiet++; r.quiet >= quietPolls || r.absent > 0 {
				r.quiet = 0
				err = r.look(ctx)
			}
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
}

func (r *run) connection() (live, refused bool, session int) {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	return r.worker.live, !r.worker.live && r.worker.refused, r.worker.session
}

// interrupt stops the prompt, or takes it out of the queue before it began.
func (r *run) interrupt(ctx context.Context) error {
	r.withdraw(ctx)
	if r.started || ctx.Err() != nil {
		return nil // its last frame comes
	}
	return r.lookFor(ctx, func() error { return comfy.ErrInterrupted })
}

// look asks the worker for the prompt, whose frames may have been missed.
func (r *run) look(ctx context.Context) error {
	return r.lookFor(ctx, func() error {
		if r.absent++; r.absent >= absences {
			return errors.New("it does not know the prompt any more")
		}
		return nil
	})
}

func (r *run) lookFor(ctx context.Context, absent func() error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	q, err := r.api.queue(ctx)
	if err != nil {
		return nil //nolint:nilerr // the connection tells when it is gone
	}
	if q.has(r.promptID()) {
		r.absent = 0
		return nil
	}
	entry, ok, err := r.api.history(ctx, r.promptID())
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	for { // what came before the end
		select {
		case f := <-r.frames:
			r.took(f)
			if err := r.take(ctx, f); err != nil {
				return err
			}
			continue
		default:
		}
		break
	}
	if !ok {
		return absent()
	}
	return r.conclude(ctx, entry)
}

// conclude ends a run whose last frames were missed, by its history.
func (r *run) conclude(ctx context.Context, entry object) error {
	raw, _ := entry.at("outputs")
	outputs, _ := asObject(raw)
	for _, m := range outputs {
		if r.delivered[m.name] {
			continue
		}
		data := object{{"node", quote(m.name)}, {"display_node", quote(m.name)}, {"output", m.value}, {"prompt_id", quote(r.promptID())}}
		if err := r.message(ctx, comfy.Message{Type: "executed", Data: data.raw()}); err != nil {
			return err
		}
	}
	raw, _ = entry.at("status")
	status, _ := asObject(raw)
	raw, _ = status.at("messages")
	messages, _ := asList(raw)
	for _, m := range messages {
		pair, _ := asList(m)
		if len(pair) != 2 {
			continue
		}
		switch kind, _ := asText(pair[0]); kind {
		case "execution_success", "execution_error", "execution_interrupted":
			return r.message(ctx, comfy.Message{Type: kind, Data: pair[1]})
		}
	}
	switch state := status.text("status_str"); state {
	case "success":
		return errDone
	default:
		return &comfy.PromptError{Type: "worker_failed", Message: "the worker's history says " + state + " and no more"}
	}
}
