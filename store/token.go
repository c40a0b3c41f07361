// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	distorchv1 "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
)

const (
	maxTokenTTL = 30 * 24 * time.Hour
	// tokenMemory is how long after its end a token is still known by id, so
	// that the answer is "expired" or "used", not "unknown".
	tokenMemory   = 7 * 24 * time.Hour
	redeemRetries = 5
)

var _ identity.TokenStore = (*Store)(nil)

func newIssuer() string { return rand.Text() }

// CreateToken stores a token's hash. How long it lasts is etcd's to say, by a
// lease; an etcd that was stopped meanwhile counts anew, so the process that
// issued the token judges by its own clock besides.
func (s *Store) CreateToken(ctx context.Context, id string, secretHash [sha256.Size]byte, ttl time.Duration) error {
	if ttl < time.Second || ttl > maxTokenTTL {
		return fmt.Errorf("token lifetime %v: use 1s to %v", ttl, maxTokenTTL)
	}
	key, live := tokenKey(id), tokenLiveKey(id)
	if err := errors.Join(key.err, live.err); err != nil {
		return err
	}
	record, err := encode(key.name, &distorchv1.TokenRecord{
		Id: id, SecretHash: secretHash[:], IssuedUnix: s.now().Unix(), Ttl: durationpb.New(ttl),
	})
	if err != nil {
		return err
	}
	issuer, err := encode(live.name, wrapperspb.String(s.issuer))
	if err != nil {
		return err
	}
	cctx, cancel := s.call(ctx)
	defer cancel()
	usable, err := s.client.Grant(cctx, int64((ttl+time.Second-1)/time.Second))
	if err != nil {
		return fmt.Errorf("create token: %w", explain(err))
	}
	known, err := s.client.Grant(cctx, int64((ttl+tokenMemory)/time.Second))
	if err != nil {
		return fmt.Errorf("create token: %w", explain(err))
	}
	_, err = s.commit(ctx, "create token", ErrExists,
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key.name), "=", 0)},
		clientv3.OpPut(key.name, record, clientv3.WithLease(known.ID)),
		clientv3.OpPut(live.name, issuer, clientv3.WithLease(usable.ID)))
	return err
}

// RedeemToken implements identity.TokenStore.
func (s *Store) RedeemToken(ctx context.Context, r identity.Redemption) error {
	for range redeemRetries {
		err := s.redeem(ctx, r)
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("redeem token %s: %w", r.TokenID, ErrConflict)
}

func (s *Store) redeem(ctx context.Context, r identity.Redemption) error {
	token, err := Get(ctx, s, tokenKey(r.TokenID))
	if errors.Is(err, ErrNotFound) {
		return identity.ErrTokenUnknown
	}
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(token.Value.GetSecretHash(), r.SecretHash[:]) != 1 {
		return identity.ErrTokenUnknown
	}
	use := r.Name + " " + r.KeyHash
	if token.Value.GetUsed() && token.Value.GetUsedBy() != use {
		return identity.ErrTokenUsed
	}
	live, err := Get(ctx, s, tokenLiveKey(r.TokenID))
	if errors.Is(err, ErrNotFound) || err == nil && s.outlived(live.Value.GetValue(), token.Value) {
		return identity.ErrTokenExpired
	}
	if err != nil {
		return err
	}
	name, err := s.nameFree(ctx, r.Name, r.KeyHash)
	if err != nil {
		return err
	}
	token.Value.Used, token.Value.UsedBy = true, use
	record, err := encode(token.Key, token.Value)
	if err != nil {
		return err
	}
	holder, err := encode(name.key.name, wrapperspb.String(r.KeyHash))
	if err != nil {
		return err
	}
	_, err = s.commit(ctx, "redeem token "+r.TokenID, ErrConflict,
		[]clientv3.Cmp{
			clientv3.Compare(clientv3.ModRevision(token.Key), "=", token.Revision),
			clientv3.Compare(clientv3.ModRevision(live.Key), "=", live.Revision),
			clientv3.Compare(clientv3.ModRevision(name.key.name), "=", name.revision),
		},
		clientv3.OpPut(token.Key, record, clientv3.WithIgnoreLease()),
		clientv3.OpPut(name.key.name, holder))
	return err
}

// outlived compares one machine's clock with itself only.
func (s *Store) outlived(issuer string, t *distorchv1.TokenRecord) bool {
	return issuer == s.issuer && s.now().Sub(time.Unix(t.GetIssuedUnix(), 0)) > t.GetTtl().AsDuration()
}

type nameSlot struct {
	key      Key[*wrapperspb.StringValue]
	revision int64
}

// nameFree returns a name's key and revision if keyHash has or may have it.
func (s *Store) nameFree(ctx context.Context, name, keyHash string) (nameSlot, error) {
	slot := nameSlot{key: nameKey(name)}
	e, err := Get(ctx, s, slot.key)
	if errors.Is(err, ErrNotFound) {
		return slot, nil
	}
	if err != nil {
		return slot, err
	}
	if holder := e.Value.GetValue(); holder != keyHash {
		return slot, &identity.NameTakenError{Name: name, KeyHash: holder}
	}
	slot.revision = e.Revision
	return slot, nil
}

// ClaimName reserves a name without a token: for the agent on the machine that
// holds the CA. It returns *identity.NameTakenError if another key has it.
func (s *Store) ClaimName(ctx context.Context, name, keyHash string) error {
	for range redeemRetries {
		slot, err := s.nameFree(ctx, name, keyHash)
		if err != nil || slot.revision != 0 {
			return err
		}
		if _, err = Update(ctx, s, slot.key, wrapperspb.String(keyHash), 0); !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("claim name %s: %w", name, ErrConflict)
}

// RemoveNode frees a node's name and deletes its records. From then on its
// certificate writes nothing: a machine that comes back needs a token.
func (s *Store) RemoveNode(ctx context.Context, name string) error {
	key := nameKey(name)
	e, err := Get(ctx, s, key)
	if err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	if err := Delete(ctx, s, key, e.Revision); err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	id, err := identity.NodeIDOf(e.Value.GetValue())
	if err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	st, err := s.ReadState(ctx)
	if err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	var ops []clientv3.Op
	for of, e := range st.Holders {
		if of.Node == id {
			ops = append(ops, clientv3.OpDelete(e.Key))
		}
	}
	for of, e := range st.Observed {
		if of.Node == id {
			ops = append(ops, clientv3.OpDelete(e.Key))
		}
	}
	ops = append(ops, clientv3.OpDelete(NodeKey(id).name), clientv3.OpDelete(LinkKey(id).name))
	return s.deleteAll(ctx, "remove node "+name, ops)
}

func (s *Store) deleteAll(ctx context.Context, what string, ops []clientv3.Op) error {
	for len(ops) > 0 {
		n := min(len(ops), maxTxnOps)
		if _, err := s.commit(ctx, what, ErrConflict, nil, ops[:n]...); err != nil {
			return err
		}
		ops = ops[n:]
	}
	return nil
}
