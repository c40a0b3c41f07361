// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	distorchv1 "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
)

func leaseOf(resp *clientv3.GetResponse) clientv3.LeaseID {
	if len(resp.Kvs) == 0 {
		return 0
	}
	return clientv3.LeaseID(resp.Kvs[0].Lease)
}

func TestAgentWritesItsOwnKeysOnly(t *testing.T) {
	b := newBench(t)
	admin := b.coordinator(t)
	agent, id := b.agent(t, "pc1")
	_, other := b.agent(t, "pc2")
	ctx := t.Context()
	put := func(key string, opts ...clientv3.OpOption) func() error {
		return func() error {
			_, err := agent.client.Put(ctx, key, "", opts...)
			return err
		}
	}
	get := func(key string, opts ...clientv3.OpOption) func() error {
		return func() error {
			_, err := agent.client.Get(ctx, key, opts...)
			return err
		}
	}
	txn := func(cmps []clientv3.Cmp, then, otherwise []clientv3.Op) func() error {
		return func() error {
			_, err := agent.client.Txn(ctx).If(cmps...).Then(then...).Else(otherwise...).Commit()
			return err
		}
	}
	create := func(key string) []clientv3.Cmp {
		return []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}
	}
	foreign, err := admin.client.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admin.client.Put(ctx, NodeKey(other).String(), "", clientv3.WithLease(foreign.ID)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		do   func() error
		ok   bool
	}{
		{"own node", put("/distorch/nodes/" + id), true},
		{"own link", put("/distorch/links/" + id), true},
		{"own holder", put("/distorch/holders/m/" + id), true},
		{"own observed", put("/distorch/observed/d/" + id), true},
		{"a new model", txn(create("/distorch/models/m"), []clientv3.Op{clientv3.OpPut("/distorch/models/m", "")}, nil), true},
		{"other node", put("/distorch/nodes/" + other), false},
		{"other holder", put("/distorch/holders/m/" + other), false},
		{"own id in the wrong place", put("/distorch/holders/" + id + "/m"), false},
		{"a node below its own", put("/distorch/nodes/" + id + "/x"), false},
		{"a model without create", put("/distorch/models/m"), false},
		{"a model in the else branch", txn(create("/distorch/models/m"), nil, []clientv3.Op{clientv3.OpPut("/distorch/models/m", "")}), false},
		{"a model behind another's condition", txn(create("/distorch/models/x"), []clientv3.Op{clientv3.OpPut("/distorch/models/m", "")}, nil), false},
		{"spec", put("/distorch/deployments/d/spec"), false},
		{"plan", put("/distorch/deployments/d/plan"), false},
		{"election", put("/distorch/leader/1"), false},
		{"token", put("/distorch/tokens/1"), false},
		{"outside", put("/else"), false},
		{"relative", put("nodes/" + id), false},
		{"delete own", func() error { _, err := agent.client.Delete(ctx, "/distorch/nodes/"+id); return err }, true},
		{"delete other", func() error { _, err := agent.client.Delete(ctx, "/distorch/nodes/"+other); return err }, false},
		{"delete range", func() error {
			_, err := agent.client.Delete(ctx, "/distorch/nodes/"+id, clientv3.WithPrefix())
			return err
		}, false},
		{"nested transaction", txn(nil, []clientv3.Op{clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("/distorch/deployments/d/plan", "")}, nil)}, nil), false},
		{"read plans", get("/distorch/deployments/", clientv3.WithPrefix()), true},
		{"read nodes", get("/distorch/nodes/" + other), true},
		{"read tokens", get("/distorch/tokens/", clientv3.WithPrefix()), false},
		{"read everything", get("/distorch/", clientv3.WithPrefix()), false},
		{"read beyond a prefix", get("/distorch/nodes/", clientv3.WithRange("/distorch/z")), false},
		{"read from a key on", get("/distorch/observed/", clientv3.WithFromKey()), false},
		{"compare a token", txn([]clientv3.Cmp{clientv3.Compare(clientv3.Value("/distorch/tokens/1"), "=", "x")}, nil, nil), false},
		{"end another's lease", func() error { _, err := agent.client.Revoke(ctx, foreign.ID); return err }, false},
		{"compact", func() error { _, err := agent.client.Compact(ctx, 1); return err }, false},
		{"add a member", func() error { _, err := agent.client.MemberAdd(ctx, []string{"https://x:1"}); return err }, false},
		{"become root", func() error { _, err := agent.client.UserAdd(ctx, "root", ""); return err }, false},
		{"take a snapshot", func() error {
			r, err := agent.client.Snapshot(ctx)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(io.Discard, r)
			return err
		}, false},
		{"watch tokens", func() error {
			wctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			for resp := range agent.client.Watch(wctx, "/distorch/tokens/", clientv3.WithPrefix(), clientv3.WithCreatedNotify()) {
				return resp.Err()
			}
			return wctx.Err()
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.do()
			if tc.ok && err != nil {
				t.Errorf("refused: %v", err)
			}
			if !tc.ok && code(err) != codes.PermissionDenied {
				t.Errorf("got %v, want it denied", err)
			}
		})
	}
	if err := admin.ping(ctx); err != nil {
		t.Error(err)
	}
}

func TestWhoMayConnect(t *testing.T) {
	b := newBench(t)
	admin := b.coordinator(t)
	t.Run("operator", func(t *testing.T) {
		if _, err := b.dial(t.Context(), b.credentials(t, identity.RoleOperator, "me")); !errors.Is(err, ErrDenied) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("agent without a name", func(t *testing.T) {
		if _, err := b.dial(t.Context(), b.credentials(t, identity.RoleAgent, "ghost")); !errors.Is(err, ErrDenied) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("agent that was removed", func(t *testing.T) {
		agent, id := b.agent(t, "pc3")
		if _, err := Put(t.Context(), agent, NodeKey(id), node(id, "")); err != nil {
			t.Fatal(err)
		}
		if _, err := Put(t.Context(), agent, ObservedKey("d", id), &distorchv1.Observed{}); err != nil {
			t.Fatal(err)
		}
		if err := admin.RemoveNode(t.Context(), "pc3"); err != nil {
			t.Fatal(err)
		}
		st, err := admin.ReadState(t.Context())
		if err != nil || len(st.Nodes)+len(st.Observed) != 0 {
			t.Errorf("left %+v, %v", st, err)
		}
		if _, err := Put(t.Context(), agent, NodeKey(id), node(id, "")); !errors.Is(err, ErrDenied) {
			t.Errorf("got %v", err)
		}
		if err := admin.RemoveNode(t.Context(), "pc3"); !errors.Is(err, ErrNotFound) {
			t.Errorf("second removal: %v", err)
		}
	})
	t.Run("no certificate", func(t *testing.T) {
		dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}}
		conn, err := dialer.DialContext(t.Context(), "tcp", b.etcd.Address())
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("got %v, want a TLS alert", err)
		}
	})
	t.Run("another cluster's", func(t *testing.T) {
		ca, err := identity.NewCA(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		c, err := ca.Issue(identity.Subject{Role: identity.RoleCoordinator, Name: "c"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		cfg := c.ClientTLS("h2", identity.Expect{})
		cfg.InsecureSkipVerify, cfg.VerifyConnection = true, nil
		_, err = Open(t.Context(), Config{Endpoints: b.etcd.Endpoints(), TLS: cfg, Timeout: time.Second})
		if err == nil {
			t.Error("admitted")
		}
	})
}

func redemption(id string, hash [32]byte, name, key string) identity.Redemption {
	return identity.Redemption{TokenID: id, SecretHash: hash, Name: name, KeyHash: key, NodeID: "n-" + name}
}

func TestTokens(t *testing.T) {
	s := newBench(t).coordinator(t)
	ctx := t.Context()
	hash := [32]byte{1}
	create := func(id string, ttl time.Duration) {
		t.Helper()
		if err := s.CreateToken(ctx, id, hash, ttl); err != nil {
			t.Fatal(err)
		}
	}
	create("a", time.Hour)
	if err := s.CreateToken(ctx, "a", hash, time.Hour); !errors.Is(err, ErrExists) {
		t.Errorf("the same id again: %v", err)
	}
	if err := s.RedeemToken(ctx, redemption("none", hash, "pc1", "k1")); !errors.Is(err, identity.ErrTokenUnknown) {
		t.Errorf("unknown: %v", err)
	}
	if err := s.RedeemToken(ctx, redemption("a", [32]byte{2}, "pc1", "k1")); !errors.Is(err, identity.ErrTokenUnknown) {
		t.Errorf("wrong secret: %v", err)
	}
	if err := s.RedeemToken(ctx, redemption("a", hash, "pc1", "k1")); err != nil {
		t.Fatal(err)
	}
	if err := s.RedeemToken(ctx, redemption("a", hash, "pc1", "k1")); err != nil {
		t.Errorf("the same machine again: %v", err)
	}
	if err := s.RedeemToken(ctx, redemption("a", hash, "pc2", "k2")); !errors.Is(err, identity.ErrTokenUsed) {
		t.Errorf("used: %v", err)
	}

	create("b", time.Hour)
	var taken *identity.NameTakenError
	if err := s.RedeemToken(ctx, redemption("b", hash, "pc1", "k2")); !errors.As(err, &taken) || taken.KeyHash != "k1" {
		t.Errorf("taken name: %v", err)
	}
	if err := s.ClaimName(ctx, "pc1", "k2"); !errors.As(err, &taken) {
		t.Errorf("claim of a taken name: %v", err)
	}
	if err := s.RedeemToken(ctx, redemption("b", hash, "pc2", "k2")); err != nil {
		t.Errorf("the refused name cost the token: %v", err)
	}

	create("c", time.Hour)
	s.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if err := s.RedeemToken(ctx, redemption("c", hash, "pc3", "k3")); !errors.Is(err, identity.ErrTokenExpired) {
		t.Errorf("expired by the issuer's clock: %v", err)
	}
	// Another process has another clock and believes the lease alone.
	s.issuer = "another"
	if err := s.RedeemToken(ctx, redemption("c", hash, "pc3", "k3")); err != nil {
		t.Errorf("two machines' clocks were compared: %v", err)
	}

	create("d", time.Second)
	until(t, s, newPrefix[*distorchv1.TokenRecord]("", kindTokensLive), func(have map[string]*distorchv1.TokenRecord) bool {
		_, alive := have["/distorch/tokens-live/d"]
		return !alive
	})
	if err := s.RedeemToken(ctx, redemption("d", hash, "pc4", "k4")); !errors.Is(err, identity.ErrTokenExpired) {
		t.Errorf("expired by its lease: %v", err)
	}
	resp, err := s.client.Get(ctx, tokenKey("d").String())
	if err != nil || len(resp.Kvs) != 1 || resp.Kvs[0].Lease == 0 {
		t.Errorf("an expired token must be known for a while, not for ever: %v, %v", resp, err)
	}
	if strings.Contains(string(resp.Kvs[0].Value), "secret") {
		t.Error("the record holds a secret")
	}
}

func TestTokenWorksOnce(t *testing.T) {
	s := newBench(t).coordinator(t)
	hash := [32]byte{9}
	if err := s.CreateToken(t.Context(), "x", hash, time.Hour); err != nil {
		t.Fatal(err)
	}
	const joiners = 8
	results := make([]error, joiners)
	var wg sync.WaitGroup
	for i := range joiners {
		wg.Go(func() {
			name := string(rune('a' + i))
			results[i] = s.RedeemToken(t.Context(), redemption("x", hash, name, "key-"+name))
		})
	}
	wg.Wait()
	won := 0
	for _, err := range results {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, identity.ErrTokenUsed) && !errors.Is(err, ErrConflict):
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("%d machines joined with one token", won)
	}
}

// The whole way: a token, a join over the network, and the new machine's writes.
func TestJoinedAgentRegisters(t *testing.T) {
	b := newBench(t)
	admin := b.coordinator(t)
	c := b.credentials(t, identity.RoleCoordinator, "c")
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux, err := identity.NewMux(identity.MuxConfig{Listener: ln, TLS: c.ServerTLSWithJoin([]string{identity.ALPNControl})})
	if err != nil {
		t.Fatal(err)
	}
	joins, err := mux.Listen(identity.ALPNJoin)
	if err != nil {
		t.Fatal(err)
	}
	gossip, err := b.dir.GossipKey()
	if err != nil {
		t.Fatal(err)
	}
	server, err := identity.NewJoinServer(identity.JoinConfig{
		CA: b.ca, Tokens: admin, GossipKey: gossip,
		Cluster: func() identity.Cluster { return identity.Cluster{ID: b.ca.Cluster(), Etcd: b.etcd.Endpoints()} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = mux.Run(ctx) })
	wg.Go(func() { _ = server.Serve(ctx, joins) })

	token, err := c.NewToken([]string{ln.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.CreateToken(ctx, token.ID, token.SecretHash(), identity.DefaultTokenTTL); err != nil {
		t.Fatal(err)
	}
	dir, err := identity.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	me, err := identity.Join(ctx, dir, identity.SlotNode, token, "pc2")
	if err != nil {
		t.Fatal(err)
	}
	agent := b.open(t, me)
	if _, err := Put(ctx, agent, NodeKey(me.Self().ID), node(me.Self().ID, "")); err != nil {
		t.Errorf("a node that joined may not register: %v", err)
	}
	if _, err := identity.Join(ctx, dir, identity.SlotNode, token, "pc3"); !errors.Is(err, identity.ErrTokenUsed) {
		t.Errorf("second use: %v", err)
	}
}
