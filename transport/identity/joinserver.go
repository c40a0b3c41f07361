// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	joinsPerSecond = 10
	joinBurst      = 20
	joinsAtOnce    = 32
)

// Redemption is one attempt to use a token.
type Redemption struct {
	TokenID    string
	SecretHash [sha256.Size]byte
	NodeID     string // of the joiner's key
	Name       string
	KeyHash    string
}

// TokenStore keeps tokens and the names that nodes hold. Only a hash of a
// token's secret is kept.
type TokenStore interface {
	// CreateToken stores a token that expires after ttl by the store's clock.
	CreateToken(ctx context.Context, id string, secretHash [sha256.Size]byte, ttl time.Duration) error
	// RedeemToken uses a token up and reserves the name in one transaction, so
	// that a refused name does not cost the token. A used token is granted again
	// to the same node, key and name only. Errors: ErrTokenUnknown (also for a
	// wrong secret), ErrTokenExpired, ErrTokenUsed, *NameTakenError.
	RedeemToken(ctx context.Context, r Redemption) error
}

// JoinConfig configures a JoinServer.
type JoinConfig struct {
	CA        *CA
	Tokens    TokenStore
	GossipKey []byte
	// Cluster is asked at every join: endpoints change.
	Cluster func() Cluster
	Logger  *slog.Logger
	Now     func() time.Time // nil: the machine's clock
}

// JoinServer answers ALPNJoin on a coordinator. Nothing but a well-formed
// request gets an answer, and nothing but a valid token gets more than a reason.
type JoinServer struct {
	cfg   JoinConfig
	limit *rate.Limiter
}

// NewJoinServer returns a server; Serve runs it.
func NewJoinServer(cfg JoinConfig) (*JoinServer, error) {
	if cfg.CA == nil || cfg.Tokens == nil || cfg.Cluster == nil || len(cfg.GossipKey) != gossipBytes {
		return nil, fmt.Errorf("join server needs a CA, a token store, the cluster and a gossip key of %d bytes", gossipBytes)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &JoinServer{cfg: cfg, limit: rate.NewLimiter(joinsPerSecond, joinBurst)}, nil
}

// Serve answers until ctx ends or the listener closes; it waits for the
// exchanges under way.
func (s *JoinServer) Serve(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	slots := make(chan struct{}, joinsAtOnce)
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("accept joins: %w", err)
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			s.exchange(ctx, conn)
		})
	}
}

func (s *JoinServer) exchange(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	remote := conn.RemoteAddr().String()

	if err := s.limit.Wait(ctx); err != nil {
		return
	}
	var request joinRequest
	if err := readFrame(conn, &request, maxRequestBytes); err != nil {
		s.cfg.Logger.Info("join without a request", "remote", remote, "error", err)
		return
	}
	answer, err := s.admit(ctx, request)
	if err != nil {
		s.cfg.Logger.Warn("join refused", "remote", remote, "name", fmt.Sprintf("%.80s", request.Name), "error", err)
		answer = refusal(err)
	} else {
		s.cfg.Logger.Info("node joined", "remote", remote, "name", request.Name)
	}
	if err := writeFrame(conn, answer, maxAnswerBytes); err != nil {
		s.cfg.Logger.Warn("join answer lost", "remote", remote, "error", err)
	}
}

func (s *JoinServer) admit(ctx context.Context, request joinRequest) (joinAnswer, error) {
	cluster := s.cfg.Cluster()
	if request.Cluster != s.cfg.CA.Cluster() {
		return joinAnswer{}, ErrTokenOtherCluster
	}
	if len(request.Secret) != secretBytes || len(request.TokenID) != 2*tokenIDBytes {
		return joinAnswer{}, ErrTokenUnknown
	}
	if err := ValidName(request.Name); err != nil {
		return joinAnswer{}, &JoinError{Message: err.Error()}
	}
	csr, err := x509.ParseCertificateRequest(request.CSR)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err == nil {
		err = acceptableKey(csr.PublicKey)
	}
	if err != nil {
		return joinAnswer{}, &JoinError{Message: "certificate request: " + err.Error()}
	}
	// Signed first and handed out only if the token is good: a token is not
	// spent on a request that cannot be signed.
	cert, err := s.cfg.CA.Sign(csr.PublicKey, Subject{Role: RoleAgent, Name: request.Name}, s.cfg.Now())
	if err != nil {
		return joinAnswer{}, &JoinError{Message: err.Error()}
	}
	if err := s.cfg.Tokens.RedeemToken(ctx, Redemption{
		TokenID:    request.TokenID,
		SecretHash: secretHash(request.Secret),
		NodeID:     idOf(cert.RawSubjectPublicKeyInfo),
		Name:       request.Name,
		KeyHash:    KeyHash(cert),
	}); err != nil {
		return joinAnswer{}, err
	}
	return joinAnswer{Certificate: cert.Raw, Cluster: &cluster, GossipKey: s.cfg.GossipKey}, nil
}

// refusal is the one mapping of errors to codes; what the joiner need not know
// stays in the log.
func refusal(err error) joinAnswer {
	var taken *NameTakenError
	var refused *JoinError
	switch {
	case errors.Is(err, ErrTokenUnknown):
		return joinAnswer{Error: codeUnknown}
	case errors.Is(err, ErrTokenExpired):
		return joinAnswer{Error: codeExpired}
	case errors.Is(err, ErrTokenUsed):
		return joinAnswer{Error: codeUsed}
	case errors.Is(err, ErrTokenOtherCluster):
		return joinAnswer{Error: codeOtherCluster}
	case errors.As(err, &taken):
		return joinAnswer{Error: codeNameTaken, HolderOfName: taken.Name, HolderKey: taken.KeyHash}
	case errors.As(err, &refused):
		return joinAnswer{Error: codeRefused, Message: refused.Message}
	default:
		return joinAnswer{Error: codeInternal, Message: "it could not check the token; see its log"}
	}
}
