// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
)

const apiFile = "openapi.json"

// api is openapi.yaml, and which of its answers tests have seen.
type api struct {
	compiler *jsonschema.Compiler
	paths    map[string]map[string]operation
	document map[string]any

	mu   sync.Mutex
	seen map[string]bool // METHOD PATH STATUS
}

type operation struct {
	body      string         // pointer to the request's JSON schema
	responses map[int]string // pointers to JSON schemas; empty: no JSON
}

func readAPI(t testing.TB) *api {
	t.Helper()
	var raw any
	if err := yaml.Unmarshal(openAPIText, &raw); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	a := &api{compiler: jsonschema.NewCompiler(), paths: map[string]map[string]operation{}, seen: map[string]bool{}}
	a.document = document.(map[string]any)
	if err := a.compiler.AddResource(apiFile, document); err != nil {
		t.Fatal(err)
	}
	for path, item := range a.at(t, "/paths") {
		a.paths[path] = map[string]operation{}
		for method := range item.(map[string]any) {
			if method == "parameters" {
				continue
			}
			base := "/paths/" + escape(path) + "/" + method
			op := operation{responses: map[int]string{}}
			if _, ok := a.at(t, base)["requestBody"]; ok {
				op.body = a.schema(t, base+"/requestBody")
			}
			for code := range a.at(t, base+"/responses") {
				n, err := strconv.Atoi(code)
				if err != nil {
					t.Fatalf("%s %s: response %q", method, path, code)
				}
				op.responses[n] = a.schema(t, base+"/responses/"+code)
			}
			a.paths[path][strings.ToUpper(method)] = op
		}
	}
	return a
}

func escape(s string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(s) }

// at is the object at a JSON pointer, references followed.
func (a *api) at(t testing.TB, pointer string) map[string]any {
	t.Helper()
	v := a.document
	for part := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		next, ok := v[strings.NewReplacer("~1", "/", "~0", "~").Replace(part)].(map[string]any)
		if !ok {
			t.Fatalf("openapi.yaml has no object at %s", pointer)
		}
		if ref, ok := next["$ref"].(string); ok {
			next = a.at(t, strings.TrimPrefix(ref, "#"))
		}
		v = next
	}
	return v
}

// schema is the pointer to the JSON schema of a body, empty if it is no JSON.
func (a *api) schema(t testing.TB, pointer string) string {
	t.Helper()
	v := a.document
	at := ""
	for part := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		at += "/" + part
		v = v[strings.NewReplacer("~1", "/", "~0", "~").Replace(part)].(map[string]any)
		if ref, ok := v["$ref"].(string); ok {
			at = strings.TrimPrefix(ref, "#")
			v = a.at(t, at)
		}
	}
	content, _ := v["content"].(map[string]any)
	if _, ok := content["application/json"]; !ok {
		return ""
	}
	return at + "/content/application~1json/schema"
}

// find is the path of openapi.yaml that a request's is of.
func (a *api) find(method, path string) (string, operation, bool) {
	parts := strings.Split(path, "/")
	for _, exact := range []bool{true, false} {
		for pattern, ops := range a.paths {
			op, ok := ops[method]
			want := strings.Split(pattern, "/")
			if ok && len(want) == len(parts) && (pattern == path) == exact && matches(want, parts) {
				return pattern, op, true
			}
		}
	}
	return "", operation{}, false
}

func matches(pattern, path []string) bool {
	for i, w := range pattern {
		if w != path[i] && !strings.HasPrefix(w, "{") {
			return false
		}
	}
	return true
}

func (a *api) validate(pointer string, body []byte) error {
	s, err := a.compiler.Compile(apiFile + "#" + pointer)
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

// check holds an answer of a documented route against what is documented.
func (a *api) check(t testing.TB, method, path string, r reply) {
	t.Helper()
	pattern, op, ok := a.find(method, path)
	if !ok {
		return // a request for what is not there
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen[fmt.Sprintf("%s %s %d", method, pattern, r.status)] = true
	pointer, ok := op.responses[r.status]
	switch {
	case !ok:
		t.Errorf("%s %s answered %d, which openapi.yaml does not have: %.300s", method, pattern, r.status, r.body)
	case pointer != "":
		if err := a.validate(pointer, r.body); err != nil {
			t.Errorf("%s %s %d: %v\n%.1000s", method, pattern, r.status, err, r.body)
		}
		if kind := r.header.Get("Content-Type"); kind != "application/json" {
			t.Errorf("%s %s %d: Content-Type %q", method, pattern, r.status, kind)
		}
	}
}

// TestRoutesAreDocumented: the server and openapi.yaml have the same routes.
func TestRoutesAreDocumented(t *testing.T) {
	r := newRig(t)
	var served, documented []string
	for _, rt := range r.server.routes() {
		served = append(served, rt.method+" "+rt.pattern)
	}
	for path, ops := range r.api.paths {
		for method, op := range ops {
			documented = append(documented, method+" "+path)
			_, unauthenticated := op.responses[http.StatusUnauthorized]
			if unauthenticated != (path != "/healthz") {
				t.Errorf("%s %s: 401 is documented: %v", method, path, unauthenticated)
			}
		}
	}
	slices.Sort(served)
	slices.Sort(documented)
	if d := cmp.Diff(served, documented); d != "" {
		t.Errorf("served (-) and documented (+):\n%s", d)
	}
	// The codes have the statuses that are documented.
	codes := r.api.at(t, "/components/schemas/Error/properties/error/properties/code")["enum"].([]any)
	for _, c := range codes {
		if Code(c.(string)).Status() == http.StatusInternalServerError && c != string(CodeInternal) {
			t.Errorf("code %s has no status", c)
		}
	}
	if v := r.do("all", "GET", "/v1/openapi.yaml", nil); !bytes.Equal(v.body, openAPIText) {
		t.Error("the file that is served is another")
	}
}

// TestExamplesOfMetadata: the JSON in a forward's answer is of its schemas.
func TestExamplesOfMetadata(t *testing.T) {
	r := newRig(t)
	a := r.forward(map[string]string{"run": "r", "step": "3"})
	m := a.metadata(t)
	for key, schema := range map[string]string{"timing": "Timing", "forecast": "Forecast"} {
		if err := r.api.validate("/components/schemas/"+schema, []byte(m[key])); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	want := []string{"attempt", "epoch", "forecast", "numerics", "timing"}
	if d := cmp.Diff(want, slices.Sorted(maps.Keys(m))); d != "" {
		t.Error(d)
	}
}
