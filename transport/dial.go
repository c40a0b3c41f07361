// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

const (
	streamWindow = 16 << 20
	connWindow   = 32 << 20
	socketBuffer = 256 << 10
	// MaxMessageBytes bounds a control message: a conditioning of 512 tokens
	// of 4096 f32 is 8 MiB, an attention mask over 5400 tokens 111 MiB.
	MaxMessageBytes = 192 << 20

	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
)

// ServerOptions are what a gRPC server needs that serves Bulk, or that Host
// dials: the codec, windows for long links, buffers, sizes, keepalive.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{name: "proto"}),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connWindow),
		grpc.ReadBufferSize(socketBuffer),
		grpc.WriteBufferSize(socketBuffer),
		grpc.MaxRecvMsgSize(MaxMessageBytes),
		grpc.MaxSendMsgSize(MaxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
	}
}

// Dial gives the control connection to a node, shared by all callers and
// closed by the Host. It connects at the first RPC; bulk bytes travel on
// connections of their own.
func (h *Host) Dial(addr string, node NodeID) (*grpc.ClientConn, error) {
	t := target{addr, node}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, fmt.Errorf("dial node %s: %w", node, ErrClosed)
	}
	if c := h.conns[t]; c != nil {
		return c, nil
	}
	c, err := h.newConn(t, h.dialContext)
	if err != nil {
		return nil, err
	}
	h.conns[t] = c
	return c, nil
}

func (h *Host) newConn(t target, dial func(context.Context, string) (net.Conn, error)) (*grpc.ClientConn, error) {
	creds, err := h.cfg.Credentials(t.node)
	if err != nil {
		return nil, fmt.Errorf("credentials for node %s: %w", t.node, err)
	}
	if creds.Info().SecurityProtocol == "tls" {
		creds = batchCredentials{creds}
	}
	c, err := grpc.NewClient("passthrough:///"+t.addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(dial),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connWindow),
		grpc.WithReadBufferSize(socketBuffer),
		grpc.WithWriteBufferSize(socketBuffer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 250 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("dial node %s at %s: %w", t.node, t.addr, err)
	}
	return c, nil
}

func (h *Host) dialContext(ctx context.Context, addr string) (net.Conn, error) {
	if h.cfg.DialContext != nil {
		return h.cfg.DialContext(ctx, addr)
	}
	d := net.Dialer{Control: SocketControl}
	return d.DialContext(ctx, "tcp", addr)
}

// frameCallOptions send rawMessages. A committed RPC keeps no copy of what was
// sent, so a source buffer is let go when it has been written.
func frameCallOptions() []grpc.CallOption {
	return []grpc.CallOption{
		grpc.ForceCodecV2(codec{name: frameSubtype}),
		grpc.MaxRetryRPCBufferSize(0),
		grpc.WaitForReady(true),
	}
}

func frameStream() *grpc.StreamDesc {
	return &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
}
