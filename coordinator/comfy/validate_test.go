// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
)

// testClasses are classes with what the recorded ones do not have.
func testClasses() map[string]json.RawMessage {
	class := func(required, optional, output, rest string) json.RawMessage {
		return json.RawMessage(fmt.Sprintf(`{"input":{"required":%s,"optional":%s},"output":%s,"name":"x"%s}`, required, optional, output, rest))
	}
	return map[string]json.RawMessage{
		"Source":    class(`{}`, `{}`, `["INT","STRING,FLOAT","*",["a","b"],"MODEL"]`, ``),
		"Sink":      class(`{}`, `{"int":["INT",{"min":0,"max":10}],"float":["FLOAT",{"min":-1.5,"max":1e-05}],"text":["STRING"],"flag":["BOOLEAN"],"any":["*"],"either":["INT,STRING"],"model":["MODEL"],"list":[["a","b",3,true]],"combo":["COMBO",{"options":["x","y"]}],"several":["COMBO",{"options":["x","y"],"multiselect":true}],"remote":["COMBO",{"remote":{"route":"/x"}}],"odd":["THING",{"min":1}]}`, `[]`, `,"output_node":true`),
		"Custom":    class(`{"file":[["a.png"]]}`, `{}`, `["INT"]`, `,"output_node":true,"python_module":"custom_nodes.pack"`),
		"Model3D":   class(`{"file":[["a.obj"],{"file_upload":true}]}`, `{}`, `[]`, `,"output_node":true`),
		"LoadImage": class(`{"image":[["a.png"],{"image_upload":true}]}`, `{}`, `["IMAGE"]`, `,"output_node":true`),
		"Dynamic":   class(`{"mode":["COMFY_DYNAMICCOMBO_V3",{"options":[]}],"images":["COMFY_AUTOGROW_V3",{}]}`, `{}`, `["COMFY_MATCHTYPE_V3"]`, `,"output_node":true`),
		"Broken":    json.RawMessage(`{"input":7}`),
	}
}

func testValidation(classes map[string]json.RawMessage) *validation {
	known := map[string]*class{}
	return &validation{
		class: func(name string) (c *class, err error) {
			if c, ok := known[name]; ok {
				return c, nil
			}
			if info, ok := classes[name]; ok {
				c, err = readClass(name, info)
				known[name] = c
			}
			return c, err
		},
		hasFile: func(f FileRef) bool {
			return f == FileRef{"up.png", "sub", "input"} || f == FileRef{"made.png", "", "output"}
		},
	}
}

// outcome is what validation says of a prompt, in one line an error.
func outcome(t testing.TB, prompt string) string {
	t.Helper()
	c, refused, err := testValidation(testClasses()).check(mustCompact(t, []byte(prompt)), func(string) bool { return true })
	if err != nil {
		return "500 " + err.Error()
	}
	var b strings.Builder
	errors := &object{}
	if refused != nil {
		fmt.Fprintf(&b, "400 %s: %s [%s]", refused.kind, refused.message, refused.details)
		if refused.nodes != nil {
			errors = refused.nodes
		}
	} else {
		fmt.Fprintf(&b, "200 %s outputs %v", c.shown, c.outputs)
		if string(c.graph) != string(c.shown) {
			fmt.Fprintf(&b, " worker's %s", c.graph)
		}
		for _, ch := range c.choices {
			fmt.Fprintf(&b, " %s.%s=%s", ch.Class, ch.Input, ch.Value)
		}
		errors = c.nodeErrors
	}
	for _, n := range errors.members {
		o, _ := readObject(n.value)
		all, _ := elements(firstOf(o, "errors"))
		for _, e := range all {
			o, _ := readObject(e)
			kind, _ := asText(firstOf(o, "type"))
			details, _ := asText(firstOf(o, "details"))
			fmt.Fprintf(&b, "\n%s %s: %s", n.name, kind, details)
		}
	}
	return b.String()
}

// sink is a prompt of one Sink with some inputs, and a Source.
func sink(inputs string) string {
	return `{"s":{"class_type":"Source","inputs":{}},"k":{"class_type":"Sink","inputs":{` + inputs + `}}}`
}

func TestValidation(t *testing.T) {
	bad := "400 prompt_outputs_failed_validation: Prompt outputs failed validation "
	good := func(inputs string) string { return "200 " + sink(inputs) + " outputs [k]" }
	for _, tc := range []struct{ name, prompt, want string }{
		{"nothing", `{}`, "400 prompt_no_outputs: Prompt has no outputs []"},
		{"an empty text", `""`, "400 prompt_no_outputs: Prompt has no outputs []"},
		{"a text", `"x"`, "500 prompt is a text, not an object"},
		{"a list", `[1]`, "500 prompt is a list, not an object"},
		{"a number", `7`, "500 prompt is a number, not an object"},
		{"a node that is a number", `{"1":5}`, "500 node 1 is a number, not an object"},
		{"a node that is a list", `{"1":[]}`, "400 invalid_prompt: Cannot execute because a node is missing the class_type property. [Node ID '#1']"},
		{"a class that is a number", `{"1":{"class_type":5}}`, "400 invalid_prompt: Cannot execute because node 5 does not exist. [Node ID '#1': no ComfyUI worker has 5; add one that does with `distorch comfy add URL`]"},
		{"a class that is a list", `{"1":{"class_type":[]}}`, "500 class_type of node 1 is a list, not a text"},
		{"a class that cannot be read", `{"1":{"class_type":"Broken"}}`, "400 invalid_prompt: Cannot execute because node Broken does not exist. [Node ID '#1': its worker describes it in a way that cannot be read: object_info of Broken: input: a number where an object is expected]"},
		{"no output node", `{"1":{"class_type":"Source","inputs":{}}}`, "400 prompt_no_outputs: Prompt has no outputs []"},
		{"an output without inputs", `{"1":{"class_type":"Sink"}}`, bad + "[Exception when validating node: 'inputs']\n1 exception_during_validation: 'inputs'"},
		{"inputs that are null", `{"1":{"class_type":"Sink","inputs":null}}`, bad + "[Exception when validating node: argument of type 'NoneType' is not iterable]\n1 exception_during_validation: argument of type 'NoneType' is not iterable"},
		{"inputs that are a list", `{"1":{"class_type":"LoadImage","inputs":[]}}`, bad + "[Required input is missing: image]\n1 required_input_missing: image"},

		{"conversions", sink(`"int":"7","float":0,"text":5,"flag":"false"`), good(`"int":7,"float":0.0,"text":"5","flag":true`)},
		{"the rest is left as it is", sink(`"unknown":1.50,"any":{"a":1}`), good(`"unknown":1.50,"any":{"a":1}`)},
		{"bounds are included", sink(`"int":10,"float":-1.5`), good(`"int":10,"float":-1.5`)},
		{"too small", sink(`"float":-1.6`), bad + "[Value -1.6 smaller than min of -1.5: float]\nk value_smaller_than_min: float"},
		{"too big", sink(`"float":"1e-4"`), bad + "[Value 0.0001 bigger than max of 1e-05: float]\nk value_bigger_than_max: float"},
		{"far too big", sink(`"int":18446744073709551616`), bad + "[Value 18446744073709551616 bigger than max of 10: int]\nk value_bigger_than_max: int"},
		{"a bound of what is no number", sink(`"odd":"x"`), bad + "[Exception when validating node: '<' not supported between instances of 'str' and 'int']\nk exception_during_validation: '<' not supported between instances of 'str' and 'int'"},
		{"no finite number", sink(`"float":"inf"`), bad + "[Failed to convert an input value to a FLOAT value: float, inf, 'inf' is not a finite number]\nk invalid_input_type: float, inf, 'inf' is not a finite number"},

		{"in a list", sink(`"list":"b","combo":"y"`), good(`"list":"b","combo":"y"`) + " Sink.list=b Sink.combo=y"},
		{"as equal as Python has it", sink(`"list":1`), good(`"list":1`)},
		{"not in a list", sink(`"list":"c"`), bad + "[Value not in list: list: 'c' not in ['a', 'b', 3, True]]\nk value_not_in_list: list: 'c' not in ['a', 'b', 3, True]"},
		{"not in a combo", sink(`"combo":5`), bad + "[Value not in list: combo: '5' not in ['x', 'y']]\nk value_not_in_list: combo: '5' not in ['x', 'y']"},
		{"several of a list", sink(`"several":{"__value__":["x","y"]}`), "200 " + sink(`"several":["x","y"]`) + " outputs [k] worker's " + sink(`"several":{"__value__":["x","y"]}`) + " Sink.several=x Sink.several=y"},
		{"a list that the client fetches", sink(`"remote":"whatever"`), good(`"remote":"whatever"`)},
		{"a wrapped text", sink(`"text":{"__value__":["s",0]}`), good(`"text":"['s', 0]"`)},

		{"a link of the same type", sink(`"int":["s",0]`), good(`"int":["s",0]`)},
		{"one of two types", sink(`"text":["s",1],"float":["s",1],"either":["s",1]`), good(`"text":["s",1],"float":["s",1],"either":["s",1]`)},
		{"any type", sink(`"model":["s",2],"any":["s",4]`), good(`"model":["s",2],"any":["s",4]`)},
		{"a list's type", sink(`"combo":["s",3]`), good(`"combo":["s",3]`)},
		{"a slot from the end", sink(`"model":["s",-1]`), good(`"model":["s",-1]`)},
		{"a slot that is true", sink(`"text":["s",true]`), good(`"text":["s",true]`)},
		{"a slot that is no integer", sink(`"text":["s",1.0]`), bad + "[Exception when validating node: tuple indices must be integers or slices, not float]\nk exception_during_validation: tuple indices must be integers or slices, not float"},
		{"a slot far out", sink(`"text":["s",99999999999999999999]`), bad + "[Exception when validating node: tuple index out of range]\nk exception_during_validation: tuple index out of range"},
		{"another type", sink(`"model":["s",3]`), bad + "[Return type mismatch between linked nodes: model, received_type(['a', 'b']) mismatch input_type(MODEL)]\nk return_type_mismatch: model, received_type(['a', 'b']) mismatch input_type(MODEL)"},
		{"a link to a number", sink(`"any":[7,0]`), bad + "[Exception when validating node: 7]\nk exception_during_validation: 7"},
		{"a link to a list", sink(`"any":[[],0]`), bad + "[Exception when validating node: unhashable type: 'list']\nk exception_during_validation: unhashable type: 'list'"},
		{"an empty link", sink(`"any":[]`), bad + "[Bad linked input, must be a length-2 list of [node_id, slot_index]: any]\nk bad_linked_input: any"},

		{"a file of the list", `{"1":{"class_type":"LoadImage","inputs":{"image":"a.png"}}}`, `200 {"1":{"class_type":"LoadImage","inputs":{"image":"a.png"}}} outputs [1] LoadImage.image=a.png`},
		{"an uploaded file", `{"1":{"class_type":"LoadImage","inputs":{"image":"sub/up.png"}}}`, `200 {"1":{"class_type":"LoadImage","inputs":{"image":"sub/up.png"}}} outputs [1] LoadImage.image=sub/up.png`},
		{"a file made before", `{"1":{"class_type":"LoadImage","inputs":{"image":"made.png [output]"}}}`, `200 {"1":{"class_type":"LoadImage","inputs":{"image":"made.png [output]"}}} outputs [1] LoadImage.image=made.png [output]`},
		{"a file outside", `{"1":{"class_type":"LoadImage","inputs":{"image":"../up.png"}}}`, bad + "[Custom validation failed for node: image - Invalid image file: ../up.png]\n1 custom_validation_failed: image - Invalid image file: ../up.png"},
		{"a file that a class leaves to the list", `{"1":{"class_type":"Model3D","inputs":{"file":"b.obj"}}}`, bad + "[Value not in list: file: 'b.obj' not in ['a.obj']]\n1 value_not_in_list: file: 'b.obj' not in ['a.obj']"},
		{"such a file, uploaded", `{"1":{"class_type":"Model3D","inputs":{"file":"sub/up.png"}}}`, `200 {"1":{"class_type":"Model3D","inputs":{"file":"sub/up.png"}}} outputs [1] Model3D.file=sub/up.png`},
		{"a node pack checks for itself", `{"1":{"class_type":"Custom","inputs":{"file":"b.png"}}}`, `200 {"1":{"class_type":"Custom","inputs":{"file":"b.png"}}} outputs [1]`},
		{"dynamic inputs", `{"s":{"class_type":"Source","inputs":{}},"1":{"class_type":"Dynamic","inputs":{"mode":"a","mode.x":["s",0]}}}`, `200 {"s":{"class_type":"Source","inputs":{}},"1":{"class_type":"Dynamic","inputs":{"mode":"a","mode.x":["s",0]}}} outputs [1]`},
		{"a dynamic input that leads nowhere", `{"1":{"class_type":"Dynamic","inputs":{"images.0":["s",0]}}}`, bad + "[Exception when validating node: 's']\n1 exception_during_validation: 's'"},
		{"a node that is its own input", `{"1":{"class_type":"Dynamic","inputs":{"x":["1",0]}}}`, bad + "[]"},
		{"one output of two", `{"s":{"class_type":"Source","inputs":{}},"1":{"class_type":"Custom","inputs":{"file":"a.png"}},"2":{"class_type":"Custom","inputs":{}}}`,
			`200 {"s":{"class_type":"Source","inputs":{}},"1":{"class_type":"Custom","inputs":{"file":"a.png"}},"2":{"class_type":"Custom","inputs":{}}} outputs [1] Custom.file=a.png` + "\n2 required_input_missing: file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, outcome(t, tc.prompt)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// chain is n nodes in a row, the last an output.
func chain(n int, closed bool) string {
	var b strings.Builder
	b.WriteByte('{')
	for i := range n {
		inputs := `{}`
		if i > 0 {
			inputs = fmt.Sprintf(`{"x":["%d",0]}`, i-1)
		} else if closed {
			inputs = fmt.Sprintf(`{"x":["%d",0]}`, n-1)
		}
		fmt.Fprintf(&b, `"%d":{"class_type":"Dynamic","inputs":%s},`, i, inputs)
	}
	return strings.TrimSuffix(b.String(), ",") + "}"
}

// TestChainsAndCycles: a chain of any length that a stack holds is valid, a longer
// one and a cycle are not, and no node is said to be wrong.
func TestChainsAndCycles(t *testing.T) {
	const nothing = "400 prompt_outputs_failed_validation: Prompt outputs failed validation [" // then a line for each output
	for _, tc := range []struct {
		n      int
		closed bool
		want   string
	}{{1000, false, "200 "}, {3, true, nothing}, {1000, true, nothing}} {
		if got := outcome(t, chain(tc.n, tc.closed)); !strings.HasPrefix(got, tc.want) || strings.Contains(got, "\n") {
			t.Errorf("chain of %d, closed %v: %.200s", tc.n, tc.closed, got)
		}
	}
	// Asked for from its far end first, as a map of Python may have it.
	v := testValidation(testClasses())
	_, refused, err := v.check(mustCompact(t, []byte(chain(3*deepest, false))), func(id string) bool { return id == fmt.Sprint(3*deepest-1) })
	if err != nil || refused == nil || refused.kind != "prompt_outputs_failed_validation" {
		t.Errorf("a chain of %d: %v, %v", 3*deepest, refused, err)
	}
}

// TestManyErrorsAreBounded: every output with every node before it would be more
// than a machine holds.
func TestManyErrorsAreBounded(t *testing.T) {
	const n = 20_000
	var b strings.Builder
	b.WriteString(`{"bad":{"class_type":"Custom","inputs":{}}`)
	for i := range n {
		fmt.Fprintf(&b, `,"%d":{"class_type":"Custom","inputs":{"file":["bad",0]}}`, i)
	}
	b.WriteByte('}')
	_, refused, err := testValidation(testClasses()).check(mustCompact(t, []byte(b.String())), func(string) bool { return true })
	if err != nil || refused == nil {
		t.Fatal(refused, err)
	}
	if size := len(refused.body()); size > 10<<20 {
		t.Errorf("an answer of %d bytes", size)
	}
}

func TestPartialTargets(t *testing.T) {
	prompt := mustCompact(t, []byte(`{"12":{"class_type":"Sink","inputs":{}},"3":{"class_type":"Sink","inputs":{}}}`))
	for targets, want := range map[string]string{
		`["3"]`: "[3]", `["3","12","9"]`: "[12 3]", `"123"`: "[12 3]", `{"12":0}`: "[12]", `[]`: "none", `[3]`: "none", `5`: "err", `true`: "err",
	} {
		got := "none"
		choose, err := wanted(jsontext.Value(targets))
		if err != nil {
			got = "err"
		} else if c, _, _ := testValidation(testClasses()).check(prompt, choose); c != nil {
			got = fmt.Sprint(c.outputs)
		}
		if got != want {
			t.Errorf("targets %s: %s, want %s", targets, got, want)
		}
	}
}
