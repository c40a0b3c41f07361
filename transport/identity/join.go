// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/go-json-experiment/json"
)

// The join exchange, over TLS with ALPNJoin: one request and one answer, each a
// big-endian uint32 length and JSON, then the connection ends. The client has
// no certificate; it verifies the server against the token's CA hash before it
// sends the secret.
const (
	maxRequestBytes = 16 << 10
	maxAnswerBytes  = 64 << 10
	joinTimeout     = 15 * time.Second
)

type joinRequest struct {
	Cluster string `json:"cluster"`
	TokenID string `json:"token"`
	Secret  []byte `json:"secret"`
	Name    string `json:"name"`
	CSR     []byte `json:"csr"` // DER; only its key and signature count
}

type joinAnswer struct {
	Certificate  []byte   `json:"certificate,omitempty"` // DER
	Cluster      *Cluster `json:"cluster,omitempty"`
	GossipKey    []byte   `json:"gossip_key,omitempty"`
	Error        joinCode `json:"error,omitempty"`
	Message      string   `json:"message,omitempty"`
	HolderKey    string   `json:"holder_key,omitempty"`
	HolderOfName string   `json:"holder_of_name,omitempty"`
}

// joinCode is the reason on the wire.
type joinCode string

const (
	codeUnknown      joinCode = "unknown"
	codeExpired      joinCode = "expired"
	codeUsed         joinCode = "used"
	codeOtherCluster joinCode = "other_cluster"
	codeNameTaken    joinCode = "name_taken"
	codeRefused      joinCode = "refused"
	codeInternal     joinCode = "internal"
)

// JoinError is an answer of the coordinator that has no error of its own.
type JoinError struct{ Message string }

func (e *JoinError) Error() string { return "the coordinator refused: " + e.Message }

func (a joinAnswer) err() error {
	switch a.Error {
	case "":
		return nil
	case codeUnknown:
		return ErrTokenUnknown
	case codeExpired:
		return ErrTokenExpired
	case codeUsed:
		return ErrTokenUsed
	case codeOtherCluster:
		return ErrTokenOtherCluster
	case codeNameTaken:
		return &NameTakenError{Name: a.HolderOfName, KeyHash: a.HolderKey}
	default:
		return &JoinError{Message: a.Message}
	}
}

func writeFrame(w io.Writer, v any, limit int) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > limit {
		return fmt.Errorf("message has %d bytes, at most %d", len(body), limit)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	_, err = w.Write(append(frame, body...))
	return err
}

func readFrame(r io.Reader, v any, limit uint32) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > limit {
		return fmt.Errorf("message has %d bytes, at most %d", n, limit)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// Join gives this machine an identity: it makes the slot's key if there is
// none, proves the token to the first coordinator that can be reached, and
// stores the certificate and what belongs to it. A join that was cut off after
// the coordinator's answer may be repeated with the same token.
func Join(ctx context.Context, dir Dir, slot Slot, token Token, name string) (*Credentials, error) {
	if err := ValidName(name); err != nil {
		return nil, err
	}
	if c, err := dir.Cluster(); err == nil && c.ID != token.Cluster {
		return nil, fmt.Errorf("%w: this directory (%s) belongs to cluster %s, the token to %s; use another --data-dir",
			ErrTokenOtherCluster, dir.Path(), c.ID, token.Cluster)
	}
	key, err := dir.key(slot)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	request := joinRequest{Cluster: token.Cluster, TokenID: token.ID, Secret: token.Secret[:], Name: name, CSR: csr}

	var failures []error
	for _, address := range token.Addresses {
		answer, ca, err := exchange(ctx, address, token, request)
		if err != nil {
			failures = append(failures, fmt.Errorf("join at %s: %w", address, err))
			continue
		}
		if err := answer.err(); err != nil {
			return nil, fmt.Errorf("join at %s: %w", address, err)
		}
		return adopt(dir, slot, answer, ca, token.Cluster)
	}
	return nil, errors.Join(failures...)
}

// adopt checks and stores an answer.
func adopt(dir Dir, slot Slot, answer joinAnswer, ca *x509.Certificate, cluster string) (*Credentials, error) {
	key, err := dir.key(slot)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(answer.Certificate)
	if err != nil {
		return nil, fmt.Errorf("the coordinator's answer has no certificate: %w", err)
	}
	c, err := newCredentials(key, cert, ca)
	if err != nil {
		return nil, fmt.Errorf("the coordinator's certificate: %w", err)
	}
	if answer.Cluster == nil || answer.Cluster.ID != cluster || len(answer.GossipKey) != gossipBytes {
		return nil, errors.New("the coordinator's answer is incomplete; it may be of another version")
	}
	return c, dir.saveJoined(slot, cert, ca, answer.GossipKey, *answer.Cluster)
}

func exchange(ctx context.Context, address string, token Token, request joinRequest) (joinAnswer, *x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	var ca *x509.Certificate
	dialer := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{ALPNJoin},
		// The roots are not known yet, only their hash: VerifyConnection does
		// the standard verification against the one certificate that has it.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) (err error) {
			ca, err = verifyPinned(state, token)
			return err
		},
	}}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return joinAnswer{}, nil, err
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if conn, ok := raw.(*tls.Conn); !ok || conn.ConnectionState().NegotiatedProtocol != ALPNJoin {
		return joinAnswer{}, nil, errors.New("the server does not take joins; use a coordinator's address")
	}
	var answer joinAnswer
	if err := writeFrame(raw, request, maxRequestBytes); err != nil {
		return joinAnswer{}, nil, fmt.Errorf("send the request: %w", err)
	}
	if err := readFrame(raw, &answer, maxAnswerBytes); err != nil {
		return joinAnswer{}, nil, fmt.Errorf("no answer: %w", errors.Join(err, context.Cause(ctx)))
	}
	return answer, ca, nil
}

// verifyPinned admits a server whose chain ends in the pinned CA and whose
// certificate says coordinator of the token's cluster.
func verifyPinned(state tls.ConnectionState, token Token) (*x509.Certificate, error) {
	certs := state.PeerCertificates
	if len(certs) < 2 {
		return nil, fmt.Errorf("%w: the server shows no CA", ErrTokenOtherCluster)
	}
	ca := certs[len(certs)-1]
	if spkiHash(ca) != token.CAHash {
		return nil, fmt.Errorf("%w: the server's CA has the key %s, the token pins %s%s",
			ErrTokenOtherCluster, KeyHash(ca), fingerLabel, hex.EncodeToString(token.CAHash[:]))
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := certs[0].Verify(x509.VerifyOptions{
		DNSName:   serverName,
		Roots:     roots,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		return nil, explain(err)
	}
	p, err := peerOf(certs[0])
	if err != nil {
		return nil, err
	}
	return ca, Expect{Roles: []Role{RoleCoordinator}}.check(p, token.Cluster)
}

func secretHash(secret []byte) [sha256.Size]byte { return sha256.Sum256(secret) }
