// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/distorch/distorch/internal/edits"
	"github.com/distorch/distorch/placement"
)

// spot is a place in the file.
type spot struct{ line, column int }

// mapping is a YAML mapping that was read by a table.
type mapping struct {
	at   spot
	keys map[string]spot
	has  map[string]*value
}

// value is what a key holds, by the kind of its field.
type value struct {
	at     spot
	number float64 // of sizes, rates, seconds and numbers
	text   string  // as it was written
	bits   bool    // a rate that counts bits on the line, or a name
	named  *named
	list   []item     // names
	empty  bool       // an empty list
	maps   []*mapping // object, objects
	curves []curve
}

type item struct {
	at   spot
	text string
}

type curve struct {
	dtype  placement.DType
	points []*mapping
}

// reader collects all problems of a file instead of ending at the first.
type reader struct {
	file     string
	problems []Problem
	more     int // problems that were not kept
	visits   int
	figures  map[kind]quantity
}

func (r *reader) bad(at spot, format string, args ...any) {
	if len(r.problems) >= maxKept {
		r.more++
		return
	}
	r.problems = append(r.problems, Problem{r.file, at.line, at.column, fmt.Sprintf(format, args...)})
}

// near is the candidate that was probably meant; it is not looked for where it
// would not be shown.
func (r *reader) near(word string, candidates []string) string {
	if len(r.problems) >= 10*maxShown {
		return ""
	}
	return edits.Nearest(word, candidates)
}

// quantity is the figure that a field holds.
func (r *reader) quantity(f *field) quantity {
	if r.figures == nil {
		r.figures = map[kind]quantity{size: sizes(), rate: rates(), positive: rates(), compute: flops(), seconds: times()}
	}
	return r.figures[f.kind]
}

// failed is the error of all problems in the file's order, one for each text
// and place.
func (r *reader) failed() error {
	if len(r.problems) == 0 {
		return nil
	}
	slices.SortStableFunc(r.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Text, b.Text))
	})
	all := slices.Compact(r.problems)
	shown := all[:min(len(all), maxShown)]
	return &Error{Problems: slices.Clip(shown), More: len(all) - len(shown) + r.more}
}

// yamlPlace finds where the YAML library saw an error, and its text.
var yamlPlace = regexp.MustCompile(`^.* at L(\d+)\.C(\d+)(?:-\S+)?: (.*)$`)

// load is the root of the file's only document, nil when there is none.
func (r *reader) load(data []byte) *yaml.Node {
	if len(data) > MaxFile {
		r.bad(spot{}, "%d bytes: a cluster file has at most %d; ranges (lab-{01..64}) and count save lines", len(data), MaxFile)
		return nil
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithUniqueKeys(false))
	if err != nil {
		r.bad(spot{}, "%v", err)
		return nil
	}
	var doc, second yaml.Node
	err = loader.Load(&doc)
	if errors.Is(err, io.EOF) || err == nil && (doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 || doc.Content[0].Tag == "!!null") {
		r.bad(spot{1, 1}, "the file is empty; it needs at least nodes: [{name: a, devices: [{device: rtx3090}]}]")
		return nil
	}
	if err == nil {
		if more := loader.Load(&second); more == nil {
			r.bad(spot{max(second.Line, 1), max(second.Column, 1)}, "a second document; a cluster file has one")
		} else if !errors.Is(more, io.EOF) {
			err = more
		}
	}
	if err != nil {
		r.syntax(err)
		return nil
	}
	return doc.Content[0]
}

// syntax says in one line what the YAML library said.
func (r *reader) syntax(err error) {
	text := strings.Join(strings.Fields(err.Error()), " ")
	at := spot{1, 1}
	if m := yamlPlace.FindStringSubmatch(text); m != nil {
		line, _ := strconv.Atoi(m[1])
		column, _ := strconv.Atoi(m[2])
		at, text = spot{max(line, 1), max(column, 1)}, m[3]
	}
	r.bad(at, "this is not YAML: %s", text)
}

// follow is the node behind an alias. Nodes behind aliases count each time they
// are met, so that a small file cannot stand for a huge one.
func (r *reader) follow(n *yaml.Node) (*yaml.Node, bool) {
	for depth := 0; ; depth++ {
		r.visits++
		if r.visits > maxVisits || depth > 8 {
			if r.visits == maxVisits+1 || depth > 8 {
				r.bad(place(n), "aliases repeat too much: the file stands for over %d values; use ranges (lab-{01..64}) and count", maxVisits)
				r.visits = max(r.visits, maxVisits+2)
			}
			return n, false
		}
		if n.Kind != yaml.AliasNode || n.Alias == nil {
			return n, true
		}
		n = n.Alias
	}
}

func place(n *yaml.Node) spot { return spot{max(n.Line, 1), max(n.Column, 1)} }

// is says what a node is, for messages.
func is(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!bool":
		return "the truth value " + n.Value
	case "!!int", "!!float":
		return "the number " + n.Value
	}
	return fmt.Sprintf("%.60q", n.Value)
}

// object reads a mapping by a table; nil when it is none.
func (r *reader) object(n *yaml.Node, t *table) *mapping {
	at := place(n)
	n, ok := r.follow(n)
	if !ok {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		r.bad(at, "want a %s with keys such as %s, this is %s", t.name, strings.Join(t.keys()[:2], " and "), is(n))
		return nil
	}
	m := &mapping{at: at, keys: map[string]spot{}, has: map[string]*value{}}
	guessed := map[string]spot{} // keys that are there but misspelt, so that nobody calls them missing
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, v := n.Content[i], n.Content[i+1]
		if r.visits++; r.visits > maxVisits {
			r.follow(key)
			return nil
		}
		where := place(key)
		f := t.field(key.Value)
		switch {
		case key.Kind != yaml.ScalarNode:
			r.bad(where, "a key is a word; this is %s", is(key))
			continue
		case f == nil:
			if meant := r.unknown(where, key.Value, t); meant != "" {
				guessed[meant] = where
			}
			continue
		}
		if first, twice := m.keys[f.key]; twice {
			r.bad(where, "%s is given twice, first in line %d; take one away", f.key, first.line)
			continue
		}
		m.keys[f.key] = where
		if read := r.value(v, f); read != nil {
			m.has[f.key] = read
		}
	}
	for key, where := range guessed {
		if _, given := m.keys[key]; !given {
			m.keys[key] = where
		}
	}
	r.complete(m, t)
	return m
}

// unknown returns the key that was probably meant.
func (r *reader) unknown(at spot, key string, t *table) string {
	if near := r.near(key, t.keys()); near != "" {
		r.bad(at, "unknown key %.60q; did you mean %s?", key, near)
		return near
	}
	if key == "<<" {
		r.bad(at, "merge keys are not read; write the keys out, or use count and ranges (lab-{01..16})")
		return ""
	}
	r.bad(at, "unknown key %.60q; a %s has %s", key, t.name, strings.Join(t.keys(), ", "))
	return ""
}

// complete checks which keys are there.
func (r *reader) complete(m *mapping, t *table) {
	for _, f := range t.fields {
		if _, given := m.keys[f.key]; f.required && !given {
			r.bad(m.at, "this %s has no %s (%s)", t.name, f.key, f.about)
		}
	}
	for _, pair := range t.not {
		_, a := m.keys[pair[0]]
		second, b := m.keys[pair[1]]
		if a && b {
			r.bad(second, "%s and %s exclude each other; take one away", pair[0], pair[1])
		}
	}
	some := len(t.either) == 0
	for _, set := range t.either {
		some = some || !slices.ContainsFunc(set, func(key string) bool { _, given := m.keys[key]; return !given })
	}
	if !some {
		ways := make([]string, len(t.either))
		for i, set := range t.either {
			ways[i] = strings.Join(set, " and ")
		}
		r.bad(m.at, "this %s needs %s", t.name, strings.Join(ways, ", or "))
	}
}

// value reads what a key holds; nil after a problem.
func (r *reader) value(n *yaml.Node, f *field) *value {
	at := place(n)
	n, ok := r.follow(n)
	if !ok {
		return nil
	}
	v := &value{at: at, text: n.Value}
	switch f.kind {
	case object:
		if m := r.object(n, f.of); m != nil {
			v.maps = append(v.maps, m)
			return v
		}
		return nil
	case objects:
		v.empty = n.Kind == yaml.SequenceNode && len(n.Content) == 0
		for _, e := range r.elements(n, at, f) {
			if m := r.object(e, f.of); m != nil {
				v.maps = append(v.maps, m)
			}
		}
		return v
	case names, pair:
		for _, e := range r.elements(n, at, f) {
			where := place(e)
			if e, ok = r.follow(e); ok && r.plain(e, where, f) {
				v.list = append(v.list, item{where, e.Value})
			}
		}
		if f.kind == pair && len(v.list) != 2 {
			r.bad(at, "%s names two nodes: [a, b]", f.key)
			return nil
		}
		return v
	case curves:
		return r.curves(n, at, f)
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		r.bad(at, "%s is %s; %s", f.key, is(n), r.form(f))
		return nil
	}
	if !r.scalar(v, n, f) {
		return nil
	}
	return v
}

// form says how a scalar field is written.
func (r *reader) form(f *field) string {
	switch f.kind {
	case size, rate, positive, compute, seconds:
		q := r.quantity(f)
		if len(f.words) > 0 {
			return fmt.Sprintf("write it like %s, or one of %s", q.example, strings.Join(f.words, ", "))
		}
		return "write it like " + q.example
	case number:
		if f.low == f.high {
			return fmt.Sprintf("it must be %g", f.low)
		}
		if f.whole {
			return fmt.Sprintf("it must be a whole number from %g to %g", f.low, f.high)
		}
		return fmt.Sprintf("it must be a number from %g to %g", f.low, f.high)
	case flag:
		return "it must be true or false"
	case word:
		return "it must be one of " + strings.Join(f.words, ", ")
	}
	return "it must be a text"
}

func (r *reader) scalar(v *value, n *yaml.Node, f *field) bool {
	tag := n.ShortTag()
	switch f.kind {
	case text:
		return r.plain(n, v.at, f)
	case word:
		if !slices.Contains(f.words, n.Value) {
			hint := ""
			if near := r.near(n.Value, f.words); near != "" {
				hint = fmt.Sprintf("; did you mean %s?", near)
			}
			r.bad(v.at, "%s is %s; %s%s", f.key, is(n), r.form(f), hint)
			return false
		}
	case flag:
		if tag != "!!bool" {
			r.bad(v.at, "%s is %s; %s", f.key, is(n), r.form(f))
			return false
		}
		v.number = map[bool]float64{true: 1}[strings.EqualFold(n.Value, "true")]
	case number:
		x, err := strconv.ParseFloat(n.Value, 64)
		whole := !f.whole || x == math.Trunc(x)
		if tag != "!!int" && tag != "!!float" || err != nil || !(x >= f.low && x <= f.high) || !whole {
			r.bad(v.at, "%s is %s; %s", f.key, is(n), r.form(f))
			return false
		}
		v.number = x
	default:
		return r.figure(v, n, f)
	}
	return true
}

// figure reads an amount with a unit, or a name that stands for one.
func (r *reader) figure(v *value, n *yaml.Node, f *field) bool {
	for _, k := range slices.Concat(networks(), disks()) {
		if k.name == n.Value && slices.Contains(f.words, n.Value) {
			v.number, v.named, v.bits = k.bytesPerSecond, &k, true
			return true
		}
	}
	if tag := n.ShortTag(); tag == "!!bool" || tag == "!!float" && strings.Contains(n.Value, ".") && !strings.ContainsAny(n.Value, "0123456789") {
		r.bad(v.at, "%s is %s; %s", f.key, is(n), r.form(f)) // .nan and .inf
		return false
	}
	q := r.quantity(f)
	x, line, err := q.amount(n.Value)
	if err == nil && x == 0 && (f.kind == positive || f.kind == compute) {
		err = fmt.Errorf("%q is zero; %s must be %s", n.Value, q.what, q.limits)
	}
	if err != nil {
		hint := ""
		if near := r.near(n.Value, f.words); near != "" {
			hint = fmt.Sprintf("; did you mean %s?", near)
		}
		r.bad(v.at, "%s: %v%s", f.key, err, hint)
		return false
	}
	v.number, v.bits = x, line
	return true
}

// plain is a text that can be shown: also one that YAML takes for a number.
func (r *reader) plain(n *yaml.Node, at spot, f *field) bool {
	tag := n.ShortTag()
	if n.Kind != yaml.ScalarNode || tag != "!!str" && tag != "!!int" {
		r.bad(at, "%s is %s; it must be a text", f.key, is(n))
		return false
	}
	if problem := unshowable(n.Value); problem != "" {
		r.bad(at, "%s is %s: %s", f.key, is(n), problem)
		return false
	}
	return true
}

func unshowable(s string) string {
	switch {
	case s == "":
		return "it must not be empty"
	case len(s) > maxText:
		return fmt.Sprintf("it must have at most %d bytes", maxText)
	case strings.TrimSpace(s) != s:
		return "it must not begin or end with a space"
	case strings.ContainsFunc(s, func(c rune) bool {
		return c < ' ' || c >= 0x7f && c < 0xa0 || c == '\ufffd' || c == '\u2028' || c == '\u2029' || c == '\ufeff'
	}):
		return "it must not have control characters"
	}
	return ""
}

// elements are those of a list, as many as may be.
func (r *reader) elements(n *yaml.Node, at spot, f *field) []*yaml.Node {
	if n.Kind != yaml.SequenceNode {
		r.bad(at, "%s is %s; it must be a list", f.key, is(n))
		return nil
	}
	if f.most > 0 && len(n.Content) > f.most {
		r.bad(at, "%s has %d entries; at most %d", f.key, len(n.Content), f.most)
		return n.Content[:f.most]
	}
	return n.Content
}

// curves reads rates by dtype.
func (r *reader) curves(n *yaml.Node, at spot, f *field) *value {
	v := &value{at: at}
	if n.Kind != yaml.MappingNode {
		r.bad(at, "%s is %s; write bf16: {linear: 60TFLOP/s}", f.key, is(n))
		return nil
	}
	seen := map[string]spot{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, where := n.Content[i], place(n.Content[i])
		list, ok := r.follow(n.Content[i+1])
		if !ok {
			return nil
		}
		if !slices.Contains(DTypes(), key.Value) {
			hint := ""
			if near := r.near(key.Value, DTypes()); near != "" {
				hint = fmt.Sprintf("; did you mean %s?", near)
			}
			r.bad(where, "unknown dtype %.60q (%s)%s", key.Value, strings.Join(DTypes(), ", "), hint)
			continue
		}
		if first, twice := seen[key.Value]; twice {
			r.bad(where, "%s is given twice, first in line %d; take one away", key.Value, first.line)
			continue
		}
		seen[key.Value] = where
		c := curve{dtype: placement.DType(key.Value)}
		nodes := []*yaml.Node{list}
		if list.Kind == yaml.SequenceNode {
			nodes = list.Content[:min(len(list.Content), maxPoints)]
			if len(list.Content) > maxPoints || len(nodes) == 0 {
				r.bad(where, "%s has %d points; 1 to %d", key.Value, len(list.Content), maxPoints)
			}
		}
		for _, p := range nodes {
			if m := r.object(p, f.of); m != nil {
				c.points = append(c.points, m)
			}
		}
		v.curves = append(v.curves, c)
	}
	return v
}
