// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v4"
)

// lines finds the line of each key in a file that viper has read. A key whose
// line is not found is not in it: it only helps people.
func lines(file string) map[string]int {
	out := map[string]int{}
	raw, err := os.ReadFile(file)
	if err != nil {
		return out
	}
	switch strings.ToLower(filepath.Ext(file)) {
	case ".toml":
		tomlLines(string(raw), out)
	case ".yaml", ".yml", ".json":
		var doc yaml.Node
		if yaml.Load(raw, &doc) == nil { // JSON is YAML, but for tabs before keys
			for _, n := range doc.Content {
				yamlLines(n, "", out)
			}
		}
	}
	return out
}

// maxSections is more than any key has, so that a file cannot make the search
// deep.
const maxSections = 8

func yamlLines(n *yaml.Node, prefix string, out map[string]int) {
	if n.Kind != yaml.MappingNode || strings.Count(prefix, ".") > maxSections {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := prefix + strings.ToLower(n.Content[i].Value)
		out[key] = n.Content[i].Line
		yamlLines(n.Content[i+1], key+".", out)
	}
}

// tomlLines reads headers of tables and the words before equals signs, which is
// all that a configuration of ours needs.
func tomlLines(text string, out map[string]int) {
	bare := func(s string) string {
		return strings.ToLower(strings.NewReplacer(" ", "", `"`, "", "'", "").Replace(s))
	}
	prefix, at := "", 0
	for line := range strings.Lines(text) {
		at++
		line = strings.TrimSpace(line)
		if header, ok := strings.CutPrefix(line, "["); ok {
			header, _, _ = strings.Cut(header, "]")
			prefix = bare(header) + "."
			continue
		}
		if name, _, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			out[prefix+bare(name)] = at
		}
	}
}
