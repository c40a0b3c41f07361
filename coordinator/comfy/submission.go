// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"fmt"
	"math/big"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// secrets are the keys of extra_data that go to a worker and are shown to no one.
func secrets() []string {
	return []string{"auth_token_comfy_org", "api_key_comfy_org"}
}

// submission is the body of POST /prompt.
type submission struct {
	prompt    jsontext.Value // absent: nil
	id        string         // "": the server makes one
	number    jsontext.Value // absent: nil
	front     bool
	targets   jsontext.Value // partial_execution_targets; absent: nil
	extra     *object
	client    string
	hasClient bool
}

// readSubmission errs where ComfyUI answers 500.
func readSubmission(body []byte) (s submission, err error) {
	v, err := compact(body)
	if err != nil {
		return s, fmt.Errorf("the body is not JSON: %w", err)
	}
	if k := v.Kind(); k == '[' || k == '"' { // Python looks for keys in these and finds none
		return s, nil
	}
	o, err := readObject(v)
	if err != nil {
		return s, fmt.Errorf("the body is %s, not an object", kindName(v))
	}
	s.prompt, _ = o.at("prompt")
	if number, ok := o.at("number"); ok {
		if s.number, err = queueNumber(number); err != nil {
			return s, err
		}
	}
	if front, ok := o.at("front"); ok {
		value, err := parse(front)
		if err != nil {
			return s, err
		}
		s.front = pyBool(value)
	}
	if id, ok := o.at("prompt_id"); ok {
		value, err := parse(id)
		if err != nil {
			return s, err
		}
		s.id = pyStr(value)
	}
	if t, ok := o.at("partial_execution_targets"); ok && t.Kind() != 'n' {
		s.targets = t
	}
	s.extra = &object{}
	if extra, ok := o.at("extra_data"); ok {
		if s.extra, err = readObject(extra); err != nil {
			return s, fmt.Errorf("extra_data is %s, not an object", kindName(extra))
		}
	}
	if client, ok := o.at("client_id"); ok {
		s.extra.set("client_id", client)
	}
	if client, ok := s.extra.at("client_id"); ok && client.Kind() != 'n' {
		s.client, s.hasClient = pyClient(client), true
	}
	return s, nil
}

// pyClient is the socket that a client_id names; one that is no text names none.
func pyClient(v jsontext.Value) string {
	s, _ := asText(v)
	return s
}

// queueNumber is float(number) as JSON.
func queueNumber(v jsontext.Value) (jsontext.Value, error) {
	value, err := parse(v)
	if err != nil {
		return nil, err
	}
	f, raised := toFloat(value)
	if raised != nil {
		return nil, fmt.Errorf("number: %w", raised)
	}
	return jsontext.Value(pyFloat(f)), nil
}

// numberOrder is the number that the queue is ordered by.
func numberOrder(v jsontext.Value) float64 {
	value, err := parse(v)
	if err != nil {
		return 0
	}
	switch x := value.(type) {
	case *big.Int:
		f, _ := new(big.Float).SetInt(x).Float64()
		return f
	case float64:
		return x
	}
	return 0
}

// wanted says whether an output node is among the targets.
func wanted(targets jsontext.Value) (func(id string) bool, error) {
	if targets == nil {
		return func(string) bool { return true }, nil
	}
	value, err := parse(targets)
	if err != nil {
		return nil, err
	}
	switch x := value.(type) {
	case string: // Python's in
		return func(id string) bool { return strings.Contains(x, id) }, nil
	case *pyDict:
		return func(id string) bool { _, ok := x.values[id]; return ok }, nil
	case []any:
		ids := make(map[string]bool, len(x))
		for _, e := range x {
			if s, ok := e.(string); ok {
				ids[s] = true
			}
		}
		return func(id string) bool { return ids[id] }, nil
	default:
		return nil, fmt.Errorf("partial_execution_targets is %s, not a list", kindName(targets))
	}
}
