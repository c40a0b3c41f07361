// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Command matmul writes the amd64 assembly of agent/engine/native/matmul with
// avo. Run by `go generate` there; the output is committed, so a build needs
// nothing of this. It must not import the module that it generates for.
package main

import (
	"flag"

	"github.com/mmcloughlin/avo/build"
)

func main() {
	flag.Parse()
	build.ConstraintExpr("amd64")
	for _, f := range []func(*target, int){tileF32, tileBF16Pairs, tileBF16Dot} {
		for _, t := range []*target{avx2(), avx512()} {
			for _, rows := range t.tileRows {
				f(t, rows)
			}
		}
	}
	for _, t := range []*target{avx2(), avx512()} {
		storeF32(t)
		storeBF16(t)
	}
	for _, rows := range []int{8, 6} {
		transpose(rows, false)
		transpose(rows, true)
	}
	pairRows()
	build.Generate()
}
