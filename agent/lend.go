// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/agent/serve"
)

// lending is how memory of this node's devices is left to other programs.
func (a *Agent) lending() serve.Lending {
	return serve.Lending{
		Device: func(name string) (engine.Session, error) {
			u, err := a.unit(name)
			if err != nil {
				return nil, err
			}
			return u.open()
		},
		Bus: func(name string) float64 {
			u, err := a.unit(name)
			if err != nil {
				return 0
			}
			return u.bus.HostToDevice
		},
	}
}
