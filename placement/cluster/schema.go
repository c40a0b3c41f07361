// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
)

type schema = map[string]any

// Schema is the JSON schema (draft 2020-12) of cluster files, made of the
// reader's own tables. It says all that can be said of one key or mapping; what
// compares two (a link's ends with the nodes' names, a reserve with the memory)
// the reader alone knows, and so does it of sizes that are out of range.
func Schema() []byte {
	defs := schema{}
	top := fileTable().schema(defs)
	top["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	top["title"] = "distorch cluster file"
	top["$defs"] = defs
	out, err := json.MarshalIndent(top, "", "  ")
	if err != nil {
		panic(err) // maps of strings and numbers
	}
	return append(out, '\n')
}

func (t *table) schema(defs schema) schema {
	properties, required := schema{}, []string{}
	for i := range t.fields {
		f := &t.fields[i]
		s := f.schema(defs)
		s["description"] = f.about
		if f.fallback != "" {
			s["description"] = fmt.Sprintf("%s (default: %s)", f.about, f.fallback)
		}
		properties[f.key] = s
		if f.required {
			required = append(required, f.key)
		}
	}
	out := schema{"type": "object", "description": t.about, "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		out["required"] = required
	}
	if len(t.either) > 0 {
		var ways []schema
		for _, set := range t.either {
			ways = append(ways, schema{"required": set})
		}
		out["anyOf"] = ways
	}
	var not []schema
	for _, pair := range t.not {
		not = append(not, schema{"not": schema{"required": pair}})
	}
	if len(not) > 0 {
		out["allOf"] = not
	}
	return out
}

// reference adds a table to the definitions once.
func (t *table) reference(defs schema) schema {
	if defs[t.name] == nil {
		defs[t.name] = schema{} // ends a recursion
		defs[t.name] = t.schema(defs)
	}
	return schema{"$ref": "#/$defs/" + t.name}
}

// textSchema also takes a whole number: YAML makes one of a name like 4090.
func textSchema() schema {
	return schema{"type": []string{"string", "integer"}, "minLength": 1, "maxLength": maxText, "pattern": `^\S(.*\S)?$`}
}

func (f *field) schema(defs schema) schema {
	list := func(items schema) schema {
		s := schema{"type": "array", "items": items}
		if f.most > 0 {
			s["maxItems"] = f.most
		}
		return s
	}
	zero := []schema{{"const": 0}, {"const": "0"}}
	switch f.kind {
	case size, rate, seconds:
		r := reader{}
		return schema{"anyOf": append(zero, f.written(r.quantity(f)))}
	case positive, compute:
		r := reader{}
		return f.written(r.quantity(f))
	case number:
		s := schema{"type": "number", "minimum": f.low, "maximum": f.high}
		if f.whole {
			s["type"] = "integer"
		}
		return s
	case flag:
		return schema{"type": "boolean"}
	case word:
		return schema{"enum": f.words}
	case names:
		return list(textSchema())
	case pair:
		s := list(textSchema())
		s["minItems"], s["maxItems"] = 2, 2
		return s
	case object:
		return schema{"anyOf": []schema{f.of.reference(defs)}}
	case objects:
		return list(f.of.reference(defs))
	case curves:
		properties := schema{}
		points := []schema{f.of.reference(defs), {"type": "array", "items": f.of.reference(defs), "minItems": 1, "maxItems": maxPoints}}
		for _, dtype := range DTypes() {
			properties[dtype] = schema{"anyOf": points}
		}
		return schema{"type": "object", "properties": properties, "additionalProperties": false}
	}
	return textSchema()
}

// written is a figure with its unit, or a name that stands for one.
func (f *field) written(q quantity) schema {
	figure := schema{"type": "string", "pattern": q.pattern(), "examples": []string{q.example}}
	if len(f.words) == 0 {
		return figure
	}
	return schema{"anyOf": []schema{figure, {"enum": f.words}}}
}

// Reference is the list of all keys for docs/cluster-file.md, made of the
// reader's own tables.
func Reference() string {
	var b strings.Builder
	for _, t := range []*table{fileTable(), nodeTable(), deviceTable(), pointTable(), linkTable(), groupTable(), rejectedTable()} {
		fmt.Fprintf(&b, "### %s\n\n%s\n\n| key | | default |\n|---|---|---|\n", strings.ToUpper(t.name[:1])+t.name[1:], t.about)
		for _, f := range t.fields {
			form := map[kind]string{size: "size", rate: "rate", positive: "rate", compute: "compute rate", seconds: "time", flag: "true or false", number: "number"}[f.kind]
			if len(f.words) > 0 {
				form = strings.Join(append(strings.Fields(form), f.words...), ", ")
			}
			about := f.about
			if form != "" {
				about += " (" + form + ")"
			}
			fallback := f.fallback
			if f.required {
				fallback = "required"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.key, about, fallback)
		}
		for _, set := range t.either {
			if len(t.either) > 1 && len(set) > 0 && set[0] == t.either[0][0] {
				ways := make([]string, len(t.either))
				for i, s := range t.either {
					ways[i] = "`" + strings.Join(s, "` and `") + "`"
				}
				fmt.Fprintf(&b, "\nIt needs %s.\n", strings.Join(ways, ", or "))
			}
		}
		b.WriteByte('\n')
	}
	b.WriteString("### Names that stand for a rate\n\n| name | payload | latency | |\n|---|---|---|---|\n")
	for _, n := range append(networks()[:3:3], disks()...) {
		latency := ""
		if n.latency > 0 {
			latency = formatSeconds(n.latency)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", n.name, formatRate(n.bytesPerSecond), latency, n.about)
	}
	return b.String()
}
