// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"google.golang.org/protobuf/types/known/wrapperspb"

	distorchv1 "github.com/distorch/distorch/proto/distorch/v1"
)

// The kinds of records, and who may write each:
//
//	nodes/<id>                 that agent, under its lease
//	links/<id>                 that agent, under its lease
//	models/<id>                anyone, once
//	holders/<model>/<node>     that agent, under its lease
//	deployments/<name>/spec    a coordinator, by Update
//	deployments/<name>/plan    the leader, by WritePlan
//	observed/<name>/<node>     that agent, under its lease
//	tokens/<id>, names/<name>  a coordinator; agents cannot read them
//	comfy/workers/<name>       a coordinator; agents cannot read them
//	clients/<name>             a coordinator; agents cannot read them
const (
	kindNodes       = "nodes"
	kindLinks       = "links"
	kindModels      = "models"
	kindHolders     = "holders"
	kindDeployments = "deployments"
	kindObserved    = "observed"
	kindTokens      = "tokens"
	kindTokensLive  = "tokens-live"
	kindNames       = "names"
	kindComfy       = "comfy"
	kindClients     = "clients"

	partSpec = "spec"
	partPlan = "plan"

	partWorkers = "workers"
)

// NodeKey is an agent's record of itself.
func NodeKey(id string) Key[*distorchv1.NodeRecord] {
	return newKey[*distorchv1.NodeRecord](kindNodes, id)
}

// Nodes are all agents that are registered.
func Nodes() Prefix[*distorchv1.NodeRecord] {
	return newPrefix[*distorchv1.NodeRecord]("", kindNodes)
}

// LinkKey is what an agent measured of its network.
func LinkKey(id string) Key[*distorchv1.LinkRecord] {
	return newKey[*distorchv1.LinkRecord](kindLinks, id)
}

// Links are all agents' measurements.
func Links() Prefix[*distorchv1.LinkRecord] {
	return newPrefix[*distorchv1.LinkRecord]("", kindLinks)
}

// ModelKey is a checkpoint's record; write it with Create.
func ModelKey(id string) Key[*distorchv1.ModelRecord] {
	return newKey[*distorchv1.ModelRecord](kindModels, id)
}

// Models are all checkpoints that an agent has announced.
func Models() Prefix[*distorchv1.ModelRecord] {
	return newPrefix[*distorchv1.ModelRecord]("", kindModels)
}

// HolderKey says that a node has a checkpoint.
func HolderKey(model, node string) Key[*distorchv1.HolderRecord] {
	return newKey[*distorchv1.HolderRecord](kindHolders, model, node)
}

// Holders are all nodes' checkpoints.
func Holders() Prefix[*distorchv1.HolderRecord] {
	return newPrefix[*distorchv1.HolderRecord]("", kindHolders)
}

// HoldersOf are the nodes that have one checkpoint.
func HoldersOf(model string) Prefix[*distorchv1.HolderRecord] {
	return newPrefix[*distorchv1.HolderRecord]("", kindHolders, model)
}

// SpecKey is what an operator wants; write it with Update.
func SpecKey(deployment string) Key[*distorchv1.DeploymentSpec] {
	return newKey[*distorchv1.DeploymentSpec](kindDeployments, deployment, partSpec)
}

// Specs are all deployments.
func Specs() Prefix[*distorchv1.DeploymentSpec] {
	return newPrefix[*distorchv1.DeploymentSpec](partSpec, kindDeployments)
}

// PlanKey is a deployment's plan; write it with WritePlan.
func PlanKey(deployment string) Key[*distorchv1.Plan] {
	return newKey[*distorchv1.Plan](kindDeployments, deployment, partPlan)
}

// Plans are all deployments' plans: what agents watch.
func Plans() Prefix[*distorchv1.Plan] {
	return newPrefix[*distorchv1.Plan](partPlan, kindDeployments)
}

// ObservedKey is what a node has loaded of a deployment.
func ObservedKey(deployment, node string) Key[*distorchv1.Observed] {
	return newKey[*distorchv1.Observed](kindObserved, deployment, node)
}

// AllObserved is what all nodes have loaded.
func AllObserved() Prefix[*distorchv1.Observed] {
	return newPrefix[*distorchv1.Observed]("", kindObserved)
}

// ObservedOf is what the nodes have loaded of one deployment.
func ObservedOf(deployment string) Prefix[*distorchv1.Observed] {
	return newPrefix[*distorchv1.Observed]("", kindObserved, deployment)
}

// ClientKey is a client of the HTTPS endpoint; write it with Update.
func ClientKey(name string) Key[*distorchv1.ClientRecord] {
	return newKey[*distorchv1.ClientRecord](kindClients, name)
}

// Clients are all clients of the HTTPS endpoint, expired ones too.
func Clients() Prefix[*distorchv1.ClientRecord] {
	return newPrefix[*distorchv1.ClientRecord]("", kindClients)
}

// ComfyWorkerKey is a registered ComfyUI worker; write it with Create.
func ComfyWorkerKey(name string) Key[*distorchv1.ComfyWorkerRecord] {
	return newKey[*distorchv1.ComfyWorkerRecord](kindComfy, partWorkers, name)
}

// ComfyWorkers are all registered ComfyUI workers.
func ComfyWorkers() Prefix[*distorchv1.ComfyWorkerRecord] {
	return newPrefix[*distorchv1.ComfyWorkerRecord]("", kindComfy, partWorkers)
}

func tokenKey(id string) Key[*distorchv1.TokenRecord] {
	return newKey[*distorchv1.TokenRecord](kindTokens, id)
}

// tokenLiveKey exists as long as the token may be used, under a lease of the
// token's lifetime; its value says whose clock the token's record means.
func tokenLiveKey(id string) Key[*wrapperspb.StringValue] {
	return newKey[*wrapperspb.StringValue](kindTokensLive, id)
}

// nameKey holds the hash of the key that a node's name belongs to.
func nameKey(name string) Key[*wrapperspb.StringValue] {
	return newKey[*wrapperspb.StringValue](kindNames, name)
}
