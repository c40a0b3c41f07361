// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

const workloadHelp = "largest request: WxH[,frames=N][,tokens=N][,batch=N][,in_flight=N]; tokens is 512 and batch 1 unless given"

const (
	defaultTokens = 512
	maxExtent     = 1 << 20
)

// parseWorkload reads WxH[,frames=N][,tokens=N][,batch=N][,in_flight=N] into the words of
// a model's dimensions; inFlight is 0 where it is not given.
func parseWorkload(text string) (words map[string]int64, inFlight uint32, err error) {
	bad := func(part string) error {
		return fmt.Errorf("workload %q: %q; want WxH[,frames=N][,tokens=N][,batch=N][,in_flight=N], such as 1024x1024,tokens=512", text, part)
	}
	parts := strings.Split(text, ",")
	words = map[string]int64{"text_tokens": defaultTokens, "batch": 1}
	w, h, ok := strings.Cut(parts[0], "x")
	if !ok {
		return nil, 0, bad(parts[0])
	}
	if words["width"], err = extent(w); err != nil {
		return nil, 0, bad(parts[0])
	}
	if words["height"], err = extent(h); err != nil {
		return nil, 0, bad(parts[0])
	}
	seen := map[string]bool{}
	for _, p := range parts[1:] {
		key, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		n, err := extent(value)
		if err != nil || seen[key] {
			return nil, 0, bad(p)
		}
		seen[key] = true
		switch key {
		case "tokens", "text_tokens":
			words["text_tokens"] = n
		case "batch", "frames":
			words[key] = n
		case "in_flight":
			inFlight = uint32(n)
		default:
			return nil, 0, bad(p)
		}
	}
	return words, inFlight, nil
}

func extent(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && (n < 1 || n > maxExtent) {
		err = fmt.Errorf("%d is not between 1 and %d", n, maxExtent)
	}
	return n, err
}

// showWorkload writes a workload as parseWorkload reads it.
func showWorkload(words map[string]int64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%dx%d", words["width"], words["height"])
	for _, k := range slices.Sorted(maps.Keys(words)) {
		switch k {
		case "width", "height":
		case "text_tokens":
			fmt.Fprintf(&b, ",tokens=%d", words[k])
		default:
			fmt.Fprintf(&b, ",%s=%d", k, words[k])
		}
	}
	return b.String()
}

func workload(text string) (*pb.Workload, error) {
	words, inFlight, err := parseWorkload(text)
	if err != nil {
		return nil, usage(err)
	}
	return &pb.Workload{Dims: words, InFlight: inFlight}, nil
}
