// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/serve"
)

// lending is how memory of this node's devices is left to other programs.
func (a *Agent) lending() serve.Lending {
	return serve.Lending{
		Device: func(name string) (engine.Session, error) {
			if name != string(a.device.ID) {
				return nil, fmt.Errorf("device %q is not one of this node (%s)", name, a.device.ID)
			}
			return a.session, nil
		},
		Bus: func(string) float64 { return 0 },
	}
}
