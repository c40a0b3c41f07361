// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Command matmul writes the amd64 assembly of agent/engine/native/matmul and
// agent/engine/native/attention with avo. Run by `go generate` in those two
// packages; the output is committed, so a build needs nothing of this. It
// must not import the module that it generates for.
package main

import (
	"flag"
	"log"

	"github.com/mmcloughlin/avo/build"
)

func main() {
	log.SetFlags(0)
	set := flag.String("kernels", "matmul", "which kernels to write: matmul or attention")
	flag.Parse()
	build.ConstraintExpr("amd64")
	switch *set {
	case "matmul":
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
	case "attention":
		for _, t := range []*target{avx2(), avx512()} {
			attention(t)
		}
	default:
		log.Fatalf("-kernels %s is unknown: use matmul or attention", *set)
	}
	build.Generate()
}
