// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// root is before every key.
const root = "/distorch/"

const (
	maxPartLen = 200
	maxTxnOps  = 128 // etcd's default
)

// Key names one record. An invalid name shows when the key is used.
type Key[T proto.Message] struct {
	name string
	err  error
}

// String is the key as etcd has it.
func (k Key[T]) String() string { return k.name }

// Prefix names all records of one kind, or a part of them.
type Prefix[T proto.Message] struct {
	name string
	err  error
	// suffix picks keys by their last part: /deployments/<name>/spec.
	suffix string
}

// String is the prefix as etcd has it.
func (p Prefix[T]) String() string { return p.name }

// match reports whether a key under the prefix is of its kind.
func (p Prefix[T]) match(key string) bool {
	return strings.HasPrefix(key, p.name) && (p.suffix == "" || strings.HasSuffix(key, "/"+p.suffix))
}

func newKey[T proto.Message](parts ...string) Key[T] {
	k := Key[T]{name: root + strings.Join(parts, "/")}
	for _, p := range parts {
		if err := validPart(p); err != nil {
			k.err = fmt.Errorf("key %.400q: %w", k.name, err)
			break
		}
	}
	return k
}

func newPrefix[T proto.Message](suffix string, parts ...string) Prefix[T] {
	k := newKey[T](parts...)
	return Prefix[T]{name: k.name + "/", err: k.err, suffix: suffix}
}

// validPart keeps a name from reaching into another's keys.
func validPart(p string) error {
	if p == "" || len(p) > maxPartLen {
		return fmt.Errorf("part %.40q has %d characters, want 1 to %d", p, len(p), maxPartLen)
	}
	for _, c := range []byte(p) {
		if c <= ' ' || c == '/' || c >= 0x7f {
			return fmt.Errorf("part %.40q: use printable ASCII without spaces and slashes", p)
		}
	}
	return nil
}

// Entry is a record as read.
type Entry[T proto.Message] struct {
	Key      string
	Value    T
	Revision int64 // of the last change; what Update compares
	Created  int64 // revision of the creation
	Leased   bool  // goes away with its writer
}

// Part returns the key's n-th part after /distorch: 1 is the id in
// /distorch/nodes/<id>. It is empty if there is none.
func (e Entry[T]) Part(n int) string {
	parts := strings.Split(strings.TrimPrefix(e.Key, root), "/")
	if n < 0 || n >= len(parts) {
		return ""
	}
	return parts[n]
}

// Snapshot is every record under a prefix at one revision, sorted by key.
type Snapshot[T proto.Message] struct {
	Entries  []Entry[T]
	Revision int64
}

func newMessage[T proto.Message]() T {
	var zero T
	return zero.ProtoReflect().New().Interface().(T)
}

func decode[T proto.Message](kv *mvccpb.KeyValue) (Entry[T], error) {
	e := Entry[T]{
		Key: string(kv.Key), Value: newMessage[T](),
		Revision: kv.ModRevision, Created: kv.CreateRevision, Leased: kv.Lease != 0,
	}
	if err := proto.Unmarshal(kv.Value, e.Value); err != nil {
		return Entry[T]{}, fmt.Errorf("read %s: %w", kv.Key, err)
	}
	return e, nil
}

// encode is deterministic, so that equal records have equal bytes.
func encode(key string, value proto.Message) (string, error) {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(value)
	if err != nil {
		return "", fmt.Errorf("write %s: %w", key, err)
	}
	if len(raw) > maxValueBytes {
		return "", fmt.Errorf("write %s: record has %d bytes, at most %d", key, len(raw), maxValueBytes)
	}
	return string(raw), nil
}

// Get reads one record; ErrNotFound if there is none.
func Get[T proto.Message](ctx context.Context, s *Store, key Key[T]) (Entry[T], error) {
	if key.err != nil {
		return Entry[T]{}, key.err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.client.Get(ctx, key.name)
	if err != nil {
		return Entry[T]{}, fmt.Errorf("read %s: %w", key, explain(err))
	}
	if len(resp.Kvs) == 0 {
		return Entry[T]{}, fmt.Errorf("read %s: %w", key, ErrNotFound)
	}
	return decode[T](resp.Kvs[0])
}

// List reads every record under a prefix at one revision.
func List[T proto.Message](ctx context.Context, s *Store, prefix Prefix[T]) (Snapshot[T], error) {
	if prefix.err != nil {
		return Snapshot[T]{}, prefix.err
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.client.Get(ctx, prefix.name, clientv3.WithPrefix())
	if err != nil {
		return Snapshot[T]{}, fmt.Errorf("list %s: %w", prefix, explain(err))
	}
	snap := Snapshot[T]{Revision: resp.Header.Revision}
	for _, kv := range resp.Kvs {
		if !prefix.match(string(kv.Key)) {
			continue
		}
		e, err := decode[T](kv)
		if err != nil {
			return Snapshot[T]{}, err
		}
		snap.Entries = append(snap.Entries, e)
	}
	slices.SortFunc(snap.Entries, func(a, b Entry[T]) int { return strings.Compare(a.Key, b.Key) })
	return snap, nil
}

// Put writes a record whatever was there and returns its revision. Records that
// others write too want Update.
func Put[T proto.Message](ctx context.Context, s *Store, key Key[T], value T) (int64, error) {
	return write(ctx, s, key, value, nil, nil)
}

// Create writes a record that must not exist; ErrExists otherwise.
func Create[T proto.Message](ctx context.Context, s *Store, key Key[T], value T) (int64, error) {
	return write(ctx, s, key, value, ErrExists, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key.name), "=", 0)})
}

// Update writes a record if its revision is still the one that was read (0: it
// must not exist); ErrConflict otherwise.
func Update[T proto.Message](ctx context.Context, s *Store, key Key[T], value T, revision int64) (int64, error) {
	return write(ctx, s, key, value, ErrConflict, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key.name), "=", revision)})
}

func write[T proto.Message](ctx context.Context, s *Store, key Key[T], value T, lost error, conditions []clientv3.Cmp) (int64, error) {
	if key.err != nil {
		return 0, key.err
	}
	raw, err := encode(key.name, value)
	if err != nil {
		return 0, err
	}
	return s.commit(ctx, "write "+key.name, lost, conditions, clientv3.OpPut(key.name, raw))
}

// Delete removes a record. Revision 0 removes it whatever it is, and it is no
// error if there is none; else it must have that revision, or ErrConflict.
func Delete[T proto.Message](ctx context.Context, s *Store, key Key[T], revision int64) error {
	if key.err != nil {
		return key.err
	}
	var conditions []clientv3.Cmp
	if revision != 0 {
		conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(key.name), "=", revision))
	}
	_, err := s.commit(ctx, "delete "+key.name, ErrConflict, conditions, clientv3.OpDelete(key.name))
	return err
}

// commit runs one transaction. The returned revision is the transaction's.
//
// etcd's client does not repeat a write whose answer was lost, so a caller that
// gets ErrUnavailable reads before it writes again.
func (s *Store) commit(ctx context.Context, what string, lost error, conditions []clientv3.Cmp, ops ...clientv3.Op) (int64, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.client.Txn(ctx).If(conditions...).Then(ops...).Commit()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, explain(err))
	}
	if !resp.Succeeded {
		return 0, fmt.Errorf("%s: %w", what, lost)
	}
	return resp.Header.Revision, nil
}
