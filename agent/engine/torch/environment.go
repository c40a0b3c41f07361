// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package torch

import (
	"os"
	"strconv"
	"strings"
)

// environment is what a worker gets: this process's without what would change
// its Python or tell it this program's secrets.
func environment(threads int) []string {
	var out []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "PYTHON") || strings.HasPrefix(name, "DISTORCH_") {
			continue
		}
		out = append(out, kv)
	}
	n := strconv.Itoa(threads)
	return append(out,
		"OMP_NUM_THREADS="+n, "MKL_NUM_THREADS="+n, "MKL_DYNAMIC=FALSE",
		"MKL_CBWR=AUTO,STRICT",         // the same bits wherever a matrix begins in memory
		"CUDA_DEVICE_ORDER=PCI_BUS_ID", // as the driver's own tools count
	)
}
