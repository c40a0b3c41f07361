// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package house

import (
	"bytes"
	"go/ast"
	"io/fs"
	"path"
	"regexp"
	"strings"
	"testing"
)

func TestPackagesAreDocumented(t *testing.T) {
	for _, p := range packages(t) {
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command " + path.Base(p.ImportPath) + " "
		}
		switch {
		case !strings.HasPrefix(p.Doc, want):
			t.Errorf("%s: the package comment must begin with %q; it is %q", p.ImportPath, want, p.Doc)
		case p.Name != "main" && !strings.Contains(packageComment(t, p), "import"):
			t.Errorf("%s: the package comment must say who imports it, or what it must not import", p.ImportPath)
		}
	}
}

// packageComment is the whole comment; go list keeps its first sentence.
func packageComment(t *testing.T, p *goPackage) string {
	t.Helper()
	var text strings.Builder
	for _, file := range p.files {
		_, f := parse(t, p.ImportPath+"/"+path.Base(strings.ReplaceAll(file, `\`, "/")))
		if f.Doc != nil {
			text.WriteString(f.Doc.Text())
		}
	}
	return text.String()
}

const maxLines = 800

func TestGoFiles(t *testing.T) {
	sources(t, func(name string, _ fs.FileInfo) {
		if path.Ext(name) != ".go" || strings.Contains(name, "testdata/") {
			return
		}
		text := contents(t, name)
		if generated.MatchString(text) {
			return
		}
		if n := strings.Count(text, "\n"); n > maxLines {
			t.Errorf("%s has %d lines; find the two subjects in it (at most %d)", name, n, maxLines)
		}
		switch base := path.Base(name); base {
		case "utils.go", "util.go", "types.go", "helpers.go", "common.go", "misc.go":
			t.Errorf("%s is named after a kind; name the subject", name)
		}
		_, f := parse(t, name)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has an init function; construct in New", name)
			}
		}
	})
}

// TestLicence: Apache-2.0 everywhere except in the ComfyUI nodes, which import
// ComfyUI and carry its licence.
func TestLicence(t *testing.T) {
	sources(t, func(name string, _ fs.FileInfo) {
		mark := map[string]string{".go": "// ", ".s": "// ", ".proto": "// ", ".py": "# ", ".sh": "# ", ".js": "// "}[path.Ext(name)]
		if mark == "" || strings.Contains(name, "testdata/") {
			return
		}
		text := contents(t, name)
		if generated.MatchString(text) {
			return
		}
		licence := "Apache-2.0"
		if strings.HasPrefix(name, "comfyui/") {
			licence = "GPL-3.0-or-later"
		}
		if strings.HasPrefix(text, "#!") {
			_, text, _ = strings.Cut(text, "\n")
		}
		want := mark + "Copyright The distorch authors.\n" + mark + "SPDX-License-Identifier: " + licence + "\n"
		if !strings.HasPrefix(text, want) {
			t.Errorf("%s must begin with\n%s", name, want)
		}
	})
}

// skipReasons are the things that a machine may lack and a test cannot make up.
var skipReasons = []string{"GPU", "instruction set", "kernel facility"}

// TestTests: a test that sleeps is slow or flaky, one that skips proves nothing.
func TestTests(t *testing.T) {
	sources(t, func(name string, _ fs.FileInfo) {
		if !strings.HasSuffix(name, "_test.go") || strings.Contains(name, "testdata/") {
			return
		}
		set, f := parse(t, name)
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			fn, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			of, _ := fn.X.(*ast.Ident)
			switch at := set.Position(call.Pos()); {
			case of != nil && of.Name == "time" && fn.Sel.Name == "Sleep":
				t.Errorf("%s:%d sleeps; use testing/synctest, a channel, or poll with a deadline", name, at.Line)
			case of != nil && of.Name == "testing" && fn.Sel.Name == "Short":
				t.Errorf("%s:%d leaves tests out by a flag", name, at.Line)
			case strings.HasPrefix(fn.Sel.Name, "Skip") && of != nil && len(of.Name) == 1 && !saysWhy(call):
				t.Errorf("%s:%d skips without naming what the machine lacks (%s)", name, at.Line, strings.Join(skipReasons, ", "))
			}
			return true
		})
	})
}

func saysWhy(call *ast.CallExpr) (ok bool) {
	for _, arg := range call.Args {
		if lit, isLit := arg.(*ast.BasicLit); isLit {
			for _, reason := range skipReasons {
				ok = ok || strings.Contains(lit.Value, reason)
			}
		}
	}
	return ok
}

// unwanted are words of unfinished work and paths of one machine. Letters are in
// brackets so that this file does not find itself.
var unwanted = regexp.MustCompile(`\b([T]ODO|[F]IXME|[X]XX)\b|(?i:[p]laceholder|[n]ot implemented|[s]implified for|\b[f]or now\b|[i]n a real (system|implementation))|(^|[^A-Za-z0-9_.])/(?:[w]ork|[f]arm|[r]oot)/`)

func TestUnwantedWords(t *testing.T) {
	sources(t, func(name string, info fs.FileInfo) {
		base := path.Base(name)
		if info.Size() > 1<<20 || base == "go.sum" || strings.Contains(name, "testdata/fuzz/") {
			return
		}
		text := contents(t, name)
		if bytes.IndexByte([]byte(text[:min(len(text), 8000)]), 0) >= 0 || generated.MatchString(text) {
			return
		}
		line := 0
		for s := range strings.Lines(text) {
			line++
			if found := unwanted.FindString(s); found != "" {
				t.Errorf("%s:%d: %q in %q", name, line, found, strings.TrimSpace(s))
			}
		}
	})
}

func TestUnwantedWordsAreFound(t *testing.T) {
	for _, s := range []string{"// TO" + "DO: x", "a place" + "holder", "enough for" + " now", `open("/wo` + `rk/x")`, "/ro" + "ot/go"} {
		if !unwanted.MatchString(s) {
			t.Errorf("%q passes", s)
		}
	}
	for _, s := range []string{"a network/working set", "for nowhere", "root/x", "../work/x is relative", "a//work of art"} {
		if found := unwanted.FindString(s); found != "" && !strings.Contains(s, "//") {
			t.Errorf("%q is refused for %q", s, found)
		}
	}
}

// maxTreeBytes keeps a clone quick; the demo checkpoint is a third of it.
const (
	maxTreeBytes = 60 << 20
	maxFileBytes = 20 << 20
)

func TestTreeSize(t *testing.T) {
	total := int64(0)
	sources(t, func(name string, info fs.FileInfo) {
		total += info.Size()
		if info.Size() > maxFileBytes {
			t.Errorf("%s has %d bytes", name, info.Size())
		}
	})
	if total > maxTreeBytes {
		t.Errorf("the tree has %d bytes, at most %d are wanted", total, maxTreeBytes)
	}
}
