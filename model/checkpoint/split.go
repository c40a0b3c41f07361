// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxParts bounds the files of one checkpoint; real ones have up to a few dozen.
const maxParts = 1024

// split is the name of a checkpoint that may be split over several files.
type split struct {
	stem  string // in front of -00001-of-00003
	ext   string // ".gguf"
	part  int    // from 0
	parts int    // 1 where the name is not of this form
}

// path is the path of part i.
func (s split) path(i int) string {
	if s.parts == 1 {
		return s.stem + s.ext
	}
	return fmt.Sprintf("%s-%05d-of-%05d%s", s.stem, i+1, s.parts, s.ext)
}

// splitOf reads NAME-00001-of-00003.EXT, as Hugging Face and llama.cpp name the
// parts of a checkpoint. Every other name is one file.
func splitOf(path string) split {
	ext := filepath.Ext(path)
	rest := strings.TrimSuffix(path, ext)
	const digits = len("00001")
	const tail = len("-00001-of-00003")
	if len(rest) > tail && slices.Contains(extensions(), strings.ToLower(ext)) {
		stem, t := rest[:len(rest)-tail], rest[len(rest)-tail:]
		no, err1 := strconv.ParseUint(t[1:1+digits], 10, 31)
		count, err2 := strconv.ParseUint(t[tail-digits:], 10, 31)
		if err1 == nil && err2 == nil && t[0] == '-' && t[1+digits:tail-digits] == "-of-" && no >= 1 && no <= count && count > 1 {
			return split{stem, ext, int(no) - 1, int(count)}
		}
	}
	return split{stem: rest, ext: ext, parts: 1}
}

// splitName is splitOf of a path that may be opened: a whole or a first part.
func splitName(path string) (split, error) {
	s := splitOf(path)
	switch {
	case s.part > 0:
		return s, fmt.Errorf("open checkpoint: %s is part %d of %d; name the first, %s", path, s.part+1, s.parts, filepath.Base(s.path(0)))
	case s.parts > maxParts:
		return s, fmt.Errorf("open checkpoint: %s is one of %d parts, more than %d", path, s.parts, maxParts)
	}
	return s, nil
}

// extensions are the endings of checkpoints' names, in lower case.
func extensions() []string { return []string{".safetensors", ".gguf"} }

// Named says whether a file is a checkpoint by its name, and a whole one or the
// first part.
func Named(path string) bool {
	return slices.Contains(extensions(), strings.ToLower(filepath.Ext(path))) && splitOf(path).part == 0
}

// Stem is a checkpoint's name without its ending and the number of its part.
func Stem(path string) string {
	if !slices.Contains(extensions(), strings.ToLower(filepath.Ext(path))) {
		return path
	}
	return splitOf(path).stem
}

// Parts are the paths of all files of the checkpoint that begins at path, which
// need not exist; nil for a part that is not the first.
func Parts(path string) []string {
	s, err := splitName(path)
	if err != nil {
		return nil
	}
	out := make([]string, s.parts)
	for i := range out {
		out[i] = s.path(i)
	}
	return out
}
