// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// ALPN protocols of a node's one port.
const (
	ALPNControl = "h2"
	ALPNBulk    = "distorch-bulk/1"
	ALPNGossip  = "distorch-gossip/1"
	// ALPNJoin and ALPNWeb are the only ones that a client without a certificate
	// may speak.
	ALPNJoin = "distorch-join/1"
	// ALPNWeb is also what clients mean that name no protocol at all.
	ALPNWeb = "http/1.1"
)

// Expect is whom a connection is meant for. The other end's certificate must
// come from the same CA in any case.
type Expect struct {
	Roles []Role // empty: any
	ID    string // empty: any; a node id otherwise
}

func (e Expect) check(p Peer, cluster string) error {
	switch {
	case p.Cluster != cluster:
		return fmt.Errorf("peer %s is of cluster %s, this is %s", p, p.Cluster, cluster)
	case len(e.Roles) > 0 && !slices.Contains(e.Roles, p.Role):
		return fmt.Errorf("peer %s has the role %s, want one of %v", p, p.Role, e.Roles)
	case e.ID != "" && p.ID != e.ID:
		return fmt.Errorf("peer is %s, want %s: another machine answers at this address", p, e.ID)
	}
	return nil
}

// ServerTLS is for a listener that speaks the given protocols. Every client
// must prove an identity with one of the roles; no roles means any.
func (c *Credentials) ServerTLS(protocols []string, roles ...Role) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{c.certificate()},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              c.pool,
		NextProtos:             protocols,
		SessionTicketsDisabled: true,
		VerifyConnection:       c.verify(Expect{Roles: roles}),
	}
}

// ServerTLSWithJoin is ServerTLS that also admits clients without a certificate
// when they offer ALPNJoin and nothing else.
func (c *Credentials) ServerTLSWithJoin(protocols []string, roles ...Role) *tls.Config {
	cfg := c.ServerTLS(protocols, roles...)
	join := anonymous(cfg, ALPNJoin)
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == ALPNJoin {
			return join, nil
		}
		return nil, nil
	}
	return cfg
}

// ServerTLSWithWeb is ServerTLSWithJoin that also admits clients without a
// certificate to ALPNWeb: those that offer it, beside whatever else, and those
// that offer no protocol.
func (c *Credentials) ServerTLSWithWeb(protocols []string, roles ...Role) *tls.Config {
	cfg := c.ServerTLSWithJoin(protocols, roles...)
	others, web := cfg.GetConfigForClient, anonymous(cfg, ALPNWeb)
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if len(hello.SupportedProtos) == 0 || slices.Contains(hello.SupportedProtos, ALPNWeb) {
			return web, nil
		}
		return others(hello)
	}
	return cfg
}

// anonymous is for one protocol that asks no client for a certificate.
func anonymous(cfg *tls.Config, protocol string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           cfg.Certificates,
		ClientAuth:             tls.NoClientCert,
		NextProtos:             []string{protocol},
		SessionTicketsDisabled: true,
	}
}

// ClientTLS is for dialling one protocol of a peer.
func (c *Credentials) ClientTLS(protocol string, want Expect) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		Certificates:     []tls.Certificate{c.certificate()},
		RootCAs:          c.pool,
		ServerName:       serverName,
		NextProtos:       []string{protocol},
		VerifyConnection: c.verify(want),
	}
}

func (c *Credentials) verify(want Expect) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		p, err := PeerFrom(state)
		if err != nil {
			return err
		}
		return want.check(p, c.peer.Cluster)
	}
}

// Dial connects to a peer, completes the handshake and checks the protocol.
func (c *Credentials) Dial(ctx context.Context, address, protocol string, want Expect) (*tls.Conn, error) {
	dialer := tls.Dialer{Config: c.ClientTLS(protocol, want)}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, explain(err))
	}
	tlsConn, ok := conn.(*tls.Conn)
	if !ok || tlsConn.ConnectionState().NegotiatedProtocol != protocol {
		return nil, errors.Join(fmt.Errorf("dial %s: it does not speak %s", address, protocol), conn.Close())
	}
	return tlsConn, nil
}

// explain adds the way out to the errors that a person meets.
func explain(err error) error {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("its certificate is from another cluster's CA: %w", err)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("certificate outside its time; check this machine's clock: %w", err)
	}
	return err
}

// ClientCredentials are gRPC's transport credentials for dialling a peer.
func (c *Credentials) ClientCredentials(want Expect) credentials.TransportCredentials {
	return credentials.NewTLS(c.ClientTLS(ALPNControl, want))
}

// AcceptedCredentials are gRPC's transport credentials for a server that gets
// its connections from a Mux, which has done the handshake.
func AcceptedCredentials() credentials.TransportCredentials { return accepted{} }

type accepted struct{}

func (accepted) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	tlsConn, ok := conn.(*tls.Conn)
	if !ok {
		return nil, nil, fmt.Errorf("connection of type %T did not come from a Mux", conn)
	}
	state := tlsConn.ConnectionState()
	if !state.HandshakeComplete || len(state.VerifiedChains) == 0 {
		return nil, nil, ErrNoIdentity
	}
	return conn, credentials.TLSInfo{
		State:          state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (accepted) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("accepted credentials are for servers; dial with ClientCredentials")
}

func (accepted) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (a accepted) Clone() credentials.TransportCredentials { return a }

func (accepted) OverrideServerName(string) error { return nil }

// PeerFromContext returns who called a gRPC method.
func PeerFromContext(ctx context.Context) (Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, ErrNoIdentity
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Peer{}, ErrNoIdentity
	}
	return PeerFrom(info.State)
}
