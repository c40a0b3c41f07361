// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package house

import (
	"go/ast"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// makesFlag are the functions whose first text is the name of a flag.
var makesFlag = regexp.MustCompile(`^(Flag|(String|StringSlice|StringArray|Int|Uint64|Float64|Bool|Duration)(Var)?P?|VarP?)$`)

// text is a string literal's value.
func text(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}

// commandLine finds the names of commands and flags in the source of
// cmd/distorch.
func commandLine(t *testing.T) (commands, flags []string) {
	t.Helper()
	sources(t, func(name string, _ fs.FileInfo) {
		if path.Dir(name) != "cmd/distorch" || path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
			return
		}
		_, f := parse(t, name)
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.KeyValueExpr:
				if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Use" {
					if use, ok := text(n.Value); ok {
						commands = append(commands, strings.Fields(use)[0])
					}
				}
			case *ast.CallExpr:
				fn, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || !makesFlag.MatchString(fn.Sel.Name) {
					return true
				}
				for _, arg := range n.Args {
					if s, ok := text(arg); ok {
						flags = append(flags, s)
						break
					}
				}
			}
			return true
		})
	})
	return commands, flags
}

// TestCommandsAreDocumented: docs/cli.md has every command and flag.
func TestCommandsAreDocumented(t *testing.T) {
	doc := contents(t, "docs/cli.md")
	commands, flags := commandLine(t)
	if len(commands) < 10 || len(flags) < 20 {
		t.Fatalf("%d commands and %d flags found in cmd/distorch", len(commands), len(flags))
	}
	for _, c := range commands {
		if c != "distorch" && !regexp.MustCompile(`(?m)^### .*\bdistorch( \w+)* `+c+`\b`).MatchString(doc) {
			t.Errorf("docs/cli.md has no heading for the command %s", c)
		}
	}
	known := map[string]bool{"help": true}
	for _, f := range flags {
		known[f] = true
		if !strings.Contains(doc, "`--"+f+"`") && !strings.Contains(doc, "`--"+f+" ") {
			t.Errorf("docs/cli.md does not have the flag --%s", f)
		}
	}
	for _, m := range regexp.MustCompile("`--([a-z][a-z0-9-]*)[ `]").FindAllStringSubmatch(doc, -1) {
		if !known[m[1]] {
			t.Errorf("docs/cli.md has the flag --%s, which no command has", m[1])
		}
	}
}
