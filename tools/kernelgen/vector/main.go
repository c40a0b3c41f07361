// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Command vector writes the amd64 assembly of agent/engine/native/vector with
// avo, one instruction set per run. Run by `go generate` there; the output is
// committed, so a build needs nothing of this. It must not import the module
// that it generates for: the arithmetic here and the pure Go one there are two
// statements of the same rules, compared bit by bit by the tests there.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/mmcloughlin/avo/build"
)

func main() {
	set := flag.String("isa", "", "instruction set: avx2 or avx512")
	flag.Parse()
	if *set != "avx2" && *set != "avx512" {
		fmt.Fprintf(os.Stderr, "unknown instruction set %q: use -isa avx2 or -isa avx512\n", *set)
		os.Exit(2)
	}
	build.ConstraintExpr("amd64")
	m := newMachine(*set == "avx512")
	for _, t := range []element{f32, bf16} {
		elementwise(m, t)
		norms(m, t)
		rotary(m, t)
		softmax(m, t)
	}
	conversions(m)
	blocks(m)
	build.Generate()
}
