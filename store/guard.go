// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"errors"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/transport/identity"
)

// guard is the embedded server's authorisation. Coordinators may do everything,
// agents what agentMay says, everybody else nothing. It replaces etcd's own
// users and roles: those grant ranges of keys, and an agent's keys have its id
// last (/observed/<name>/<node>).
type guard struct {
	cluster string
	// holder returns the key hash that holds a name, and the keys under a lease.
	holder func(ctx context.Context, name string) (string, error)
	leased func(ctx context.Context, lease int64) ([]string, error)
}

func denied(format string, args ...any) error {
	return status.Errorf(codes.PermissionDenied, format, args...)
}

// caller returns an agent's id, or "" for one that may do everything.
func (g *guard) caller(ctx context.Context, method string) (string, error) {
	p, err := identity.PeerFromContext(ctx)
	if err != nil {
		return "", denied("%s: %v", method, err)
	}
	if p.Cluster != g.cluster {
		return "", denied("%s is of another cluster", p)
	}
	switch p.Role {
	case identity.RoleCoordinator, identity.RoleEtcd:
		return "", nil
	case identity.RoleAgent:
	default:
		return "", denied("%s may not use etcd; ask a coordinator", p)
	}
	holder, err := g.holder(ctx, p.Name)
	if err != nil {
		return "", status.Errorf(codes.Unavailable, "check %s: %v", p, err)
	}
	if holder != p.KeyHash {
		return "", denied("%s was removed from the cluster or lost its name; join again with a token", p)
	}
	return p.ID, nil
}

func (g *guard) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	node, err := g.caller(ctx, info.FullMethod)
	if err == nil && node != "" {
		err = g.agentMay(ctx, node, req)
	}
	if err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (g *guard) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	node, err := g.caller(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	if node != "" {
		switch info.FullMethod {
		case pb.Watch_Watch_FullMethodName, pb.Lease_LeaseKeepAlive_FullMethodName:
		default:
			return denied("agents may not call %s", info.FullMethod)
		}
		ss = &guardedStream{ServerStream: ss, guard: g, node: node}
	}
	return next(srv, ss)
}

// guardedStream judges every message that an agent sends.
type guardedStream struct {
	grpc.ServerStream
	guard *guard
	node  string
}

func (s *guardedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.guard.agentMay(s.Context(), s.node, m)
}

// agentMay judges one request. What it does not name is denied.
func (g *guard) agentMay(ctx context.Context, node string, req any) error {
	switch r := req.(type) {
	case *pb.RangeRequest:
		return mayRead(r.Key, r.RangeEnd)
	case *pb.WatchRequest:
		if c := r.GetCreateRequest(); c != nil {
			return mayRead(c.Key, c.RangeEnd)
		}
		return nil
	case *pb.PutRequest:
		return mayWrite(node, r.Key)
	case *pb.DeleteRangeRequest:
		return mayDelete(node, r)
	case *pb.TxnRequest:
		return mayCommit(node, r)
	case *pb.LeaseGrantRequest, *pb.LeaseKeepAliveRequest, *pb.MemberListRequest:
		return nil
	case *pb.LeaseRevokeRequest:
		return g.mayRevoke(ctx, node, r.ID)
	default:
		return denied("agents may not send %T", req)
	}
}

// mayRead admits a key, or exactly a prefix, of the kinds that agents follow.
func mayRead(key, end []byte) error {
	kind, _, found := strings.Cut(strings.TrimPrefix(string(key), root), "/")
	single := len(end) == 0
	within := bytes.Equal(end, []byte(clientv3.GetPrefixRangeEnd(string(key))))
	if found && bytes.HasPrefix(key, []byte(root)) && (single || within) {
		switch kind {
		case kindNodes, kindLinks, kindModels, kindHolders, kindDeployments, kindObserved:
			return nil
		}
	}
	return denied("agents may not read %q", key)
}

// owns reports whether a key says something about the node and nobody else.
func owns(node, key string) bool {
	if !strings.HasPrefix(key, root) {
		return false
	}
	p := parts(key)
	switch {
	case len(p) == 2 && (p[0] == kindNodes || p[0] == kindLinks):
		return p[1] == node
	case len(p) == 3 && (p[0] == kindHolders || p[0] == kindObserved):
		return p[2] == node
	default:
		return false
	}
}

func mayWrite(node string, key []byte) error {
	if !owns(node, string(key)) {
		return denied("node %s may not write %q", node, key)
	}
	return nil
}

func mayDelete(node string, r *pb.DeleteRangeRequest) error {
	if len(r.RangeEnd) != 0 {
		return denied("node %s may not delete ranges", node)
	}
	return mayWrite(node, r.Key)
}

// mayCommit admits a transaction of permitted operations, and the one write of
// a key that is not the node's own: a model that nobody has announced yet.
func mayCommit(node string, txn *pb.TxnRequest) error {
	absent := map[string]bool{}
	for _, c := range txn.Compare {
		if err := mayRead(c.Key, c.RangeEnd); err != nil {
			return err
		}
		if c.Target == pb.Compare_CREATE && c.Result == pb.Compare_EQUAL && c.GetCreateRevision() == 0 && len(c.RangeEnd) == 0 {
			absent[string(c.Key)] = true
		}
	}
	for i, op := range append(append([]*pb.RequestOp{}, txn.Success...), txn.Failure...) {
		var err error
		switch {
		case op.GetRequestRange() != nil:
			err = mayRead(op.GetRequestRange().Key, op.GetRequestRange().RangeEnd)
		case op.GetRequestDeleteRange() != nil:
			err = mayDelete(node, op.GetRequestDeleteRange())
		case op.GetRequestPut() != nil:
			key := op.GetRequestPut().Key
			p := parts(string(key))
			announces := len(p) == 2 && p[0] == kindModels && op.GetRequestPut().Lease == 0
			if i < len(txn.Success) && absent[string(key)] && announces {
				continue
			}
			err = mayWrite(node, key)
		default:
			err = denied("node %s: transactions within transactions are not admitted", node)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mayRevoke admits a lease that holds nothing but the node's own keys.
func (g *guard) mayRevoke(ctx context.Context, node string, lease int64) error {
	keys, err := g.leased(ctx, lease)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if !owns(node, k) {
			return denied("node %s may not end the lease of %q", node, k)
		}
	}
	return nil
}

var errStopped = errors.New("etcd has not started")
