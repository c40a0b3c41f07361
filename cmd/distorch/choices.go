// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/distorch/distorch/agent/engine/native/isa"
	"github.com/distorch/distorch/cmd/internal/output"
	"github.com/distorch/distorch/coordinator/reconcile"
	"github.com/distorch/distorch/model/sampling"
	"github.com/distorch/distorch/placement"
	"github.com/distorch/distorch/placement/allocation"
)

// choices are the words that the flag of that name takes, nil if it takes other
// things. Errors and completion both go by it.
func choices(flag string) []string {
	switch flag {
	case outputName:
		return output.Formats()
	case "nodes " + outputName:
		return append(output.Formats(), string(clusterFile))
	case "plan " + outputName:
		return append(output.Formats(), string(svgFormat))
	case "numerics":
		return []string{string(placement.NumericsAny), string(placement.NumericsOne)}
	case "fit":
		return []string{string(placement.FitFallback), string(placement.FitStrict)}
	case "storage":
		return []string{reconcile.StorageFP8}
	case "compat":
		return []string{string(allocation.Distorch2)}
	case "dtype":
		return []string{"f32", "bf16"}
	case "scopes":
		return []string{"run", "deploy", "lend"}
	case "engine":
		return []string{"native", "torch"}
	case "isa", "cpu-isa":
		return append([]string{"auto"}, isaNames()...)
	case "log-level":
		return []string{"debug", "info", "warn", "error"}
	case "log-format":
		return []string{"text", "json"}
	case "objective":
		return []string{
			string(placement.ObjectiveLatency), string(placement.ObjectivePair), string(placement.ObjectiveBatch), string(placement.ObjectiveThroughput),
		}
	case "stored":
		return storedNames()
	case "scheduler":
		var names []string
		for _, s := range sampling.Schedulers() {
			names = append(names, string(s))
		}
		return names
	}
	return nil
}

// chosen is the error of a value that its flag does not take; case does not
// matter.
func chosen(flag, value string) error {
	if err := output.OneOf(strings.ToLower(value), choices(flag)); err != nil {
		return fmt.Errorf("--%s %w", flag, err)
	}
	return nil
}

func isaNames() []string {
	var names []string
	for _, i := range isa.All() {
		names = append(names, i.String())
	}
	return names
}
