// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package patches

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/distorch/distorch/proto/distorch/v1"
)

func digest(i int) string { return fmt.Sprintf("%064x", i) }

// A deployment has own LoRAs of its operator, and brought ones 1, 2, ... that
// were used so many seconds ago.
func TestChoose(t *testing.T) {
	for name, c := range map[string]struct {
		own  int
		ago  []int // seconds; negative: never, since this process began an hour ago
		asks []int
		want []int // brought afterwards; nil: refused
		code codes.Code
	}{
		"the first":                       {own: 2, asks: []int{9}, want: []int{9}},
		"a union":                         {ago: []int{5, 500}, asks: []int{9}, want: []int{1, 2, 9}},
		"idle ones go":                    {ago: []int{5, 700, -1}, asks: []int{9}, want: []int{1, 9}},
		"an idle one that is asked for":   {ago: []int{5, 700}, asks: []int{2, 9}, want: []int{1, 2, 9}},
		"the oldest makes room":           {own: 13, ago: []int{200, 300, 100}, asks: []int{9}, want: []int{1, 3, 9}},
		"as many as are needed":           {own: 13, ago: []int{200, 300, 100}, asks: []int{8, 9}, want: []int{3, 8, 9}},
		"those in use do not":             {own: 13, ago: []int{5, 10, 15}, asks: []int{9}, code: codes.ResourceExhausted},
		"one of them asked for":           {own: 13, ago: []int{5, 100, 15}, asks: []int{2, 9}, code: codes.ResourceExhausted},
		"more than a deployment may have": {own: 14, asks: []int{7, 8, 9}, code: codes.InvalidArgument},
		"no room beside the operator's":   {own: 16, asks: []int{9}, code: codes.InvalidArgument},
	} {
		now := time.Unix(10_000, 0)
		p := &Patches{cfg: Config{Now: func() time.Time { return now }}, began: now.Add(-time.Hour), used: map[use]time.Time{}}
		spec := &pb.DeploymentSpec{}
		for i := range c.own {
			spec.Loras = append(spec.Loras, &pb.LoRA{Id: digest(100 + i)})
		}
		for i, ago := range c.ago {
			spec.Loras = append(spec.Loras, &pb.LoRA{Id: digest(1 + i), Brought: true})
			if ago >= 0 {
				p.used[use{"d", digest(1 + i)}] = now.Add(-time.Duration(ago) * time.Second)
			}
		}
		var asks, want []string
		for _, i := range c.asks {
			asks = append(asks, digest(i))
		}
		for _, i := range c.want {
			want = append(want, digest(i))
		}
		got, err := (&change{Patches: p, deployment: "d", digests: asks}).choose(spec, lacking(spec.Loras, asks))
		if status.Code(err) != c.code || !slices.Equal(got, want) {
			t.Errorf("%s: %v (%v)", name, got, err)
		}
	}
}
