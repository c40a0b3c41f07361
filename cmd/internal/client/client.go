// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package client is an operator's connection to a coordinator: it finds one
// that answers, proves who it is, and says in words why that failed.
//
// The commands import it; it must not import the coordinator or the agent.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc"

	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
	"github.com/distorch/distorch/transport/identity"
)

// Config of a connection.
type Config struct {
	DataDir string // holds the operator's identity
	// Address of a coordinator. Empty: those that the data directory knows of,
	// then Default.
	Address string
	Default string
	Timeout time.Duration // for finding a coordinator that answers
	// Dial opens connections; nil dials TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// ErrUnreachable is in the error of Connect when no coordinator answers.
var ErrUnreachable = errors.New("cannot be reached")

// Conn is a connection to one coordinator. Close it.
type Conn struct {
	Address  string
	Control  pb.ControlClient
	Endpoint pb.EndpointClient
	conn     *grpc.ClientConn
}

// Connect finds a coordinator. Errors of all addresses are joined.
func Connect(ctx context.Context, cfg Config) (*Conn, error) {
	creds, cluster, err := credentials(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	addresses := []string{cfg.Address}
	if cfg.Address == "" {
		addresses = append(slices.Clone(cluster.Coordinators), cfg.Default)
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	var errs []error
	tried := map[string]bool{"": true}
	for _, address := range addresses {
		if tried[address] {
			continue
		}
		tried[address] = true
		if err := probe(ctx, cfg, creds, address); err != nil {
			errs = append(errs, err)
			continue
		}
		return dial(cfg, creds, address)
	}
	return nil, errors.Join(errs...)
}

func credentials(dir string) (*identity.Credentials, identity.Cluster, error) {
	missing := func(err error) error {
		return fmt.Errorf("data directory %s has no operator's identity (%w): run this where `distorch up` or `distorch coordinator` runs, with the same --data-dir", dir, err)
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, identity.Cluster{}, missing(fs.ErrNotExist) // a client makes no directory
	}
	d, err := identity.OpenDir(dir)
	if err != nil {
		return nil, identity.Cluster{}, err
	}
	creds, err := d.Load(identity.SlotOperator)
	if errors.Is(err, identity.ErrNotJoined) {
		return nil, identity.Cluster{}, missing(identity.ErrNotJoined)
	}
	if err != nil {
		return nil, identity.Cluster{}, err
	}
	cluster, err := d.Cluster()
	if errors.Is(err, identity.ErrNotJoined) {
		err = nil // an operator elsewhere may have the certificate alone
	}
	return creds, cluster, err
}

// http2Preface is how a client of HTTP/2 begins: the magic and empty settings
// (RFC 9113, 3.4).
const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

func expect() identity.Expect {
	return identity.Expect{Roles: []identity.Role{identity.RoleCoordinator}}
}

// probe opens and closes one connection, which tells why it fails far better
// than an RPC does.
func probe(ctx context.Context, cfg Config, creds *identity.Credentials, address string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.Timeout, fmt.Errorf("no answer in %s", cfg.Timeout))
	defer cancel()
	raw, err := cfg.Dial(ctx, "tcp", address)
	if err != nil {
		return refused(ctx, address, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer raw.Close()
	// The server's verdict on our certificate comes after the handshake (TLS
	// 1.3), with the first bytes: an HTTP/2 server begins with its settings.
	conn := tls.Client(raw, creds.ClientTLS(identity.ALPNControl, expect()))
	if err := conn.HandshakeContext(ctx); err != nil {
		return refused(ctx, address, err)
	}
	if _, err := conn.Write([]byte(http2Preface)); err != nil {
		return refused(ctx, address, err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return refused(ctx, address, err)
	}
	return nil
}

// refused names the coordinator, what is wrong and the way out.
func refused(ctx context.Context, address string, err error) error {
	var alert tls.AlertError
	var op *net.OpError
	var foreign x509.UnknownAuthorityError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("coordinator %s %w: nothing listens there; start it with `distorch up`, or name another with --coordinator", address, ErrUnreachable)
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.As(err, &foreign):
		return fmt.Errorf("coordinator %s is of another cluster than this identity; use the data directory of its own cluster: %w", address, err)
	case errors.As(err, &alert), errors.As(err, &op) && op.Op == "remote error":
		return fmt.Errorf("coordinator %s refuses this identity; use the data directory of its own cluster: %w", address, err)
	}
	return fmt.Errorf("coordinator %s %w: %w; is it running there? --coordinator names another", address, ErrUnreachable, err)
}

func dial(cfg Config, creds *identity.Credentials, address string) (*Conn, error) {
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(creds.ClientCredentials(expect())),
		grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return cfg.Dial(ctx, "tcp", a) }),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(transport.MaxMessageBytes), grpc.MaxCallSendMsgSize(transport.MaxMessageBytes)),
	)
	if err != nil {
		return nil, fmt.Errorf("dial coordinator %s: %w", address, err)
	}
	return &Conn{Address: address, Control: pb.NewControlClient(conn), Endpoint: pb.NewEndpointClient(conn), conn: conn}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.conn.Close() }
