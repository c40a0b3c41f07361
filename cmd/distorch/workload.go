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

const workloadHelp = "largest request: WxH[,frames=N][,tokens=N][,batch=N][,ref=WxH]...[,mask=1][,in_flight=N]; tokens is 512 and batch 1 unless given"

const (
	defaultTokens = 512
	maxExtent     = 1 << 20
	maxRefs       = 9 // what a model takes is its own to say
)

// parseWorkload reads WxH[,frames=N][,tokens=N][,batch=N][,ref=WxH]…[,mask=1][,in_flight=N]
// into the words of a model's dimensions; inFlight is 0 where it is not given.
func parseWorkload(text string) (words map[string]int64, inFlight uint32, err error) {
	bad := func(part string) error {
		return fmt.Errorf("workload %q: %q; want WxH[,frames=N][,tokens=N][,batch=N][,ref=WxH]...[,mask=1][,in_flight=N], such as 1024x1024,tokens=512", text, part)
	}
	parts := strings.Split(text, ",")
	words = map[string]int64{"text_tokens": defaultTokens, "batch": 1}
	if words["width"], words["height"], err = size(parts[0]); err != nil {
		return nil, 0, bad(parts[0])
	}
	seen := map[string]bool{}
	refs := 0
	for _, p := range parts[1:] {
		key, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		if key == "ref" {
			w, h, err := size(value)
			if err != nil || refs == maxRefs {
				return nil, 0, bad(p)
			}
			words[fmt.Sprintf("ref%d_width", refs)], words[fmt.Sprintf("ref%d_height", refs)] = w, h
			refs++
			continue
		}
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
		case "mask", "attention_mask":
			words["attention_mask"] = n
		case "in_flight":
			inFlight = uint32(n)
		default:
			return nil, 0, bad(p)
		}
	}
	return words, inFlight, nil
}

// size reads WxH.
func size(s string) (width, height int64, err error) {
	w, h, ok := strings.Cut(s, "x")
	if !ok {
		return 0, 0, fmt.Errorf("%q is not WxH", s)
	}
	if width, err = extent(w); err != nil {
		return 0, 0, err
	}
	height, err = extent(h)
	return width, height, err
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
		var ref int
		var side string
		if n, _ := fmt.Sscanf(k, "ref%d_%s", &ref, &side); n == 2 {
			if side == "width" {
				fmt.Fprintf(&b, ",ref=%dx%d", words[k], words[fmt.Sprintf("ref%d_height", ref)])
			}
			continue
		}
		switch k {
		case "width", "height":
		case "attention_mask":
			fmt.Fprintf(&b, ",mask=%d", words[k])
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
