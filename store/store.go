// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

const (
	defaultCallTimeout = 5 * time.Second
	keepAliveTime      = 10 * time.Second
	keepAliveTimeout   = 3 * time.Second
	maxValueBytes      = 1 << 20 // etcd's request limit is 1.5 MiB
	maxReceiveBytes    = 256 << 20
)

// Errors of single keys. They are wrapped with the key's name.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("already exists")
	ErrConflict = errors.New("changed by someone else meanwhile; read it again")
)

// Errors of the cluster.
var (
	ErrNotLeader   = errors.New("no longer the leader")
	ErrFull        = errors.New("etcd is out of space; raise coordinator.etcd.quota or delete what is not needed")
	ErrUnavailable = errors.New("etcd does not answer")
	ErrDenied      = errors.New("this machine's certificate does not allow it")
)

// Config says which etcd to use.
type Config struct {
	Endpoints []string // URLs
	// TLS proves this machine's identity; with an embedded server it is
	// identity's ClientTLS(ALPNControl, Expect{Roles: {RoleEtcd}}).
	TLS     *tls.Config
	Logger  *slog.Logger
	Timeout time.Duration // of one call; 5 s if zero
}

// Store is a client of etcd. It is safe for concurrent use.
type Store struct {
	client  *clientv3.Client
	logger  *slog.Logger
	timeout time.Duration
	now     func() time.Time
	issuer  string // distinguishes this process's clock from others'
}

// Open connects to etcd and waits until it answers or ctx ends.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if len(cfg.Endpoints) == 0 || cfg.TLS == nil {
		return nil, errors.New("store needs etcd endpoints and a TLS identity")
	}
	for _, e := range cfg.Endpoints {
		if !strings.HasPrefix(e, "https://") {
			return nil, fmt.Errorf("etcd endpoint %q: use https://host:port", e)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultCallTimeout
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		DialTimeout:          cfg.Timeout,
		DialKeepAliveTime:    keepAliveTime,
		DialKeepAliveTimeout: keepAliveTimeout,
		MaxCallRecvMsgSize:   maxReceiveBytes,
		Logger:               zapTo(cfg.Logger, nil),
		DialOptions:          dialOptions(cfg.TLS),
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %s: %w", strings.Join(cfg.Endpoints, ", "), err)
	}
	s := &Store{client: client, logger: cfg.Logger, timeout: cfg.Timeout, now: time.Now, issuer: newIssuer()}
	if err := s.ping(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to etcd at %s: %w", strings.Join(cfg.Endpoints, ", "), err), client.Close())
	}
	return s, nil
}

// dialOptions keep the name that the TLS configuration expects: etcd's client
// would expect each endpoint's host, which distorch's certificates do not say.
func dialOptions(cfg *tls.Config) []grpc.DialOption {
	if cfg.ServerName == "" {
		return nil
	}
	return []grpc.DialOption{grpc.WithTransportCredentials(namedCredentials{credentials.NewTLS(cfg), cfg.ServerName})}
}

type namedCredentials struct {
	credentials.TransportCredentials
	name string
}

func (c namedCredentials) ClientHandshake(ctx context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.TransportCredentials.ClientHandshake(ctx, c.name, conn)
}

func (c namedCredentials) Clone() credentials.TransportCredentials {
	return namedCredentials{c.TransportCredentials.Clone(), c.name}
}

// ping reads a key that everyone may read.
func (s *Store) ping(ctx context.Context) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	_, err := s.client.Get(ctx, root+"nodes/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	return explain(err)
}

// Close ends every call and watch.
func (s *Store) Close() error {
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the connection to etcd: %w", err)
	}
	return nil
}

func (s *Store) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s.timeout, ErrUnavailable)
}

// explain is the one mapping of etcd's errors.
func explain(err error) error {
	if err == nil {
		return nil
	}
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Errorf("%w: %w", ErrDenied, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch code(err) {
	case codes.PermissionDenied:
		return fmt.Errorf("%w: %w", ErrDenied, err)
	case codes.Unavailable, codes.DeadlineExceeded:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		return err
	}
}

// code reads a gRPC status also from errors that etcd's client has wrapped.
func code(err error) codes.Code {
	if own, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return own.Code()
	}
	return status.Code(err)
}
