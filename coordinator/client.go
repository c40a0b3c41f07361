// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

// Scope is a part of the HTTPS endpoint that a client may use.
type Scope string

// Scopes.
const (
	ScopeRun    Scope = "run"    // lists, plans, blobs, forwards
	ScopeDeploy Scope = "deploy" // deployments that a client made
	ScopeLend   Scope = "lend"   // memory of devices
)

// Scopes are all of them.
func Scopes() []Scope { return []Scope{ScopeRun, ScopeDeploy, ScopeLend} }

const (
	// DefaultClientTTL is how long a client's token works.
	DefaultClientTTL = 365 * 24 * time.Hour
	maxClientTTL     = 10 * 365 * 24 * time.Hour
	maxClients       = 10_000
)

type clientKey struct{}

// OnBehalf is for a call within this process that the HTTPS endpoint makes for a
// client that it has admitted, with the scope that the call takes.
func OnBehalf(ctx context.Context, client string) context.Context {
	return context.WithValue(ctx, clientKey{}, client)
}

// Client is the client that a call is made for, with OnBehalf.
func Client(ctx context.Context) (name string, ok bool) {
	name, ok = ctx.Value(clientKey{}).(string)
	return name, ok
}

// createClient makes a client's token, or another in the place of one that
// expired.
func (c *Coordinator) createClient(ctx context.Context, req *pb.CreateTokenRequest) (*pb.CreateTokenResponse, error) {
	name, ttl := req.GetClient(), DefaultClientTTL
	if err := identity.ValidName(name); err != nil {
		return nil, invalid("client: %w", err)
	}
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	if ttl < time.Second || ttl > maxClientTTL {
		return nil, invalid("lifetime %v of a client's token: use 1s to %v", ttl, maxClientTTL)
	}
	scopes, err := parseScopes(req.GetScopes())
	if err != nil {
		return nil, err
	}
	all, err := store.List(ctx, c.cfg.Store, store.Clients())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	before := int64(0)
	for _, e := range all.Entries {
		switch {
		case e.Value.GetName() != name:
		case now.Unix() < e.Value.GetExpiresUnix():
			return nil, fmt.Errorf("client %s has a token already; revoke it with `distorch token revoke %s`, or choose another name: %w", name, name, store.ErrExists)
		default:
			before = e.Revision
		}
	}
	if len(all.Entries) >= maxClients {
		return nil, invalid("there are %d clients' tokens; revoke some with `distorch token revoke`", len(all.Entries))
	}
	connection, err := c.cfg.Credentials.NewConnection(c.cfg.Addresses)
	if err != nil {
		return nil, fmt.Errorf("create token: %w", err)
	}
	text, err := connection.Text()
	if err != nil {
		return nil, fmt.Errorf("create token: %w", err)
	}
	hash := identity.SecretHash(connection.Secret)
	_, err = store.Update(ctx, c.cfg.Store, store.ClientKey(name), &pb.ClientRecord{
		Name: name, SecretHash: hash[:], Scopes: scopes, CreatedUnix: now.Unix(), ExpiresUnix: now.Add(ttl).Unix(),
	}, before)
	if err != nil {
		return nil, err
	}
	c.log.Info("client's token created", "client", name, "scopes", scopes, "ttl", ttl)
	return &pb.CreateTokenResponse{Token: text}, nil
}

// parseScopes are the scopes asked for, in order and once; none means all.
func parseScopes(asked []string) ([]string, error) {
	var out []string
	for _, s := range Scopes() {
		if len(asked) == 0 || slices.Contains(asked, string(s)) {
			out = append(out, string(s))
		}
	}
	for _, s := range asked {
		if !slices.Contains(Scopes(), Scope(s)) {
			return nil, invalid("scope %.40q: use %v", s, Scopes())
		}
	}
	return out, nil
}

// ListTokens lists the clients of the HTTPS endpoint by name, without secrets.
func (c *Coordinator) ListTokens(ctx context.Context, _ *pb.ListTokensRequest) (*pb.ListTokensResponse, error) {
	if err := operatorAlone(ctx); err != nil {
		return nil, toStatus(err)
	}
	all, err := store.List(ctx, c.cfg.Store, store.Clients())
	if err != nil {
		return nil, toStatus(err)
	}
	out := &pb.ListTokensResponse{}
	for _, e := range all.Entries {
		e.Value.SecretHash = nil
		out.Clients = append(out.Clients, e.Value)
	}
	slices.SortFunc(out.Clients, func(a, b *pb.ClientRecord) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// RevokeToken ends a client's token at once.
func (c *Coordinator) RevokeToken(ctx context.Context, req *pb.RevokeTokenRequest) (*pb.RevokeTokenResponse, error) {
	if err := operatorAlone(ctx); err != nil {
		return nil, toStatus(err)
	}
	name := req.GetClient()
	if err := identity.ValidName(name); err != nil {
		return nil, toStatus(invalid("client: %w", err))
	}
	all, err := store.List(ctx, c.cfg.Store, store.Clients())
	if err != nil {
		return nil, toStatus(err)
	}
	var names []string
	for _, e := range all.Entries {
		if e.Value.GetName() != name {
			names = append(names, e.Value.GetName())
			continue
		}
		err := store.Delete(ctx, c.cfg.Store, store.ClientKey(name), e.Revision)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, toStatus(err)
		}
		c.log.Info("client's token revoked", "client", name)
		return &pb.RevokeTokenResponse{}, nil
	}
	return nil, toStatus(&UnknownError{Kind: kindToken, Name: name, Nearest: nearest(name, names)})
}
