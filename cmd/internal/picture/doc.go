// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package picture samples a picture with a deployment: the sampler's state is
// here, the forwards run at the endpoint.
//
// The commands run and quickstart import it; it must not import the
// coordinator or the agent. A picture keeps the plan that its run began with;
// whatever happens, the run is ended at the endpoint before Sample returns.
package picture
