// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distorch/distorch/coordinator"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

// Client is who a request's token belongs to.
type Client struct {
	Name    string
	Scopes  []coordinator.Scope
	Expires time.Time
}

// Clients finds a client by the hash of its secret.
type Clients interface {
	Client(secretHash [sha256.Size]byte) (Client, bool)
}

// Directory is the clients that the store has; a token that is revoked there
// stops working at once.
type Directory struct {
	mu     sync.Mutex
	byHash map[[sha256.Size]byte]Client
	hashes map[string][sha256.Size]byte // by key
}

// NewDirectory is empty until Run has read the store.
func NewDirectory() *Directory {
	return &Directory{byHash: map[[sha256.Size]byte]Client{}, hashes: map[string][sha256.Size]byte{}}
}

// Run follows the store until ctx ends.
func (d *Directory) Run(ctx context.Context, s *store.Store) error {
	err := store.Watch(ctx, s, store.Clients(), func(c store.Change[*pb.ClientRecord]) error {
		d.take(c)
		return nil
	})
	if err != nil {
		return fmt.Errorf("follow the clients' tokens: %w", err)
	}
	return nil
}

func (d *Directory) take(c store.Change[*pb.ClientRecord]) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.Reset {
		clear(d.byHash)
		clear(d.hashes)
	}
	drop := func(key string) {
		delete(d.byHash, d.hashes[key])
		delete(d.hashes, key)
	}
	for _, key := range c.Deleted {
		drop(key)
	}
	for _, e := range c.Entries {
		drop(e.Key)
		if len(e.Value.GetSecretHash()) != sha256.Size {
			continue
		}
		client := Client{Name: e.Value.GetName(), Expires: time.Unix(e.Value.GetExpiresUnix(), 0)}
		for _, scope := range e.Value.GetScopes() {
			client.Scopes = append(client.Scopes, coordinator.Scope(scope))
		}
		hash := [sha256.Size]byte(e.Value.GetSecretHash())
		d.byHash[hash], d.hashes[e.Key] = client, hash
	}
}

// Client implements Clients. A hash that is looked up tells nobody anything by
// the time that it takes.
func (d *Directory) Client(secretHash [sha256.Size]byte) (Client, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c, ok := d.byHash[secretHash]
	return c, ok
}

const maxAuthorization = 256

// admit is the client of a request, if its token has the scope; no scope means
// any.
func (s *Server) admit(r *http.Request, scope coordinator.Scope) (Client, error) {
	header := r.Header.Get("Authorization")
	kind, secret, _ := strings.Cut(header, " ")
	if !strings.EqualFold(kind, "bearer") || secret == "" || len(header) > maxAuthorization {
		return Client{}, fail(CodeUnauthenticated, "the request has no token; send the header Authorization: Bearer SECRET, with the secret of a connection line of `distorch token create --client NAME`")
	}
	c, ok := s.cfg.Clients.Client(identity.SecretHash(strings.TrimSpace(secret)))
	switch {
	case !ok:
		return Client{}, fail(CodeUnauthenticated, "the token is unknown to this cluster, or was revoked; get another with `distorch token create --client NAME`")
	case time.Now().After(c.Expires):
		return Client{}, fail(CodeUnauthenticated, "the token of client %s expired on %s; get another with `distorch token create --client %s`", c.Name, c.Expires.UTC().Format(time.DateOnly), c.Name)
	case scope != "" && !slices.Contains(c.Scopes, scope):
		return Client{}, fail(CodeForbidden, "the token of client %s has no scope %s (it has %s); get one that has, with `distorch token create --client NAME --scopes %s`", c.Name, scope, scopeList(c.Scopes), scopeList(append(slices.Clone(c.Scopes), scope)))
	}
	return c, nil
}

func scopeList(scopes []coordinator.Scope) string {
	var out []string
	for _, s := range scopes {
		out = append(out, string(s))
	}
	return strings.Join(out, ",")
}
