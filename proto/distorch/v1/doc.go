// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package distorchv1 is the wire: records in the store, services between the
// processes, and models as data. All of it but this file is generated from the
// .proto files beside it (make proto).
//
// The edges import it (coordinator, agent, store, transport, cmd) and by
// model/graph/wire. It holds no logic, and what it carries is checked by whoever
// receives it.
package distorchv1
