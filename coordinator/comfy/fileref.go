// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"path"
	"strings"
)

// annotated splits a name like "x.png [output]"; without the note it is of the given
// type. The name may hold a subfolder.
func annotated(name, kind string) (FileRef, error) {
	for _, k := range []string{"output", "input", "temp"} {
		if note := "[" + k + "]"; strings.HasSuffix(name, note) {
			name, kind = strings.TrimRight(strings.TrimSuffix(name, note), " "), k
			break
		}
	}
	name = strings.ReplaceAll(name, `\`, "/")
	ref := FileRef{Name: path.Base(name), Type: kind}
	if dir := path.Dir(name); dir != "." {
		ref.Subfolder = dir
	}
	return ref, ref.Check()
}

// Check says whether f stays inside the folder of its type: nil or ErrBadFile.
func (f FileRef) Check() error {
	switch {
	case f.Type != "input" && f.Type != "output" && f.Type != "temp",
		f.Name == "", f.Name == ".", f.Name == "..", strings.ContainsAny(f.Name, "/\\\x00"),
		!inside(f.Subfolder):
		return ErrBadFile
	}
	return nil
}

// inside says whether a path of a subfolder, which may be empty, leads out.
func inside(sub string) bool {
	if strings.ContainsRune(sub, 0) {
		return false
	}
	sub = strings.ReplaceAll(sub, `\`, "/")
	if strings.HasPrefix(sub, "/") || len(sub) > 1 && sub[1] == ':' {
		return false
	}
	clean := path.Clean(sub)
	return clean != ".." && !strings.HasPrefix(clean, "../")
}
