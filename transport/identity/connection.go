// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/go-json-experiment/json"
)

const (
	// MaxConnectionBytes bounds a connection line.
	MaxConnectionBytes = 16 << 10
	// WebHost is a DNS name that a coordinator's certificate carries whatever its
	// addresses are: clients of its HTTPS endpoint expect it.
	WebHost = "coordinator.distorch"

	connectionPrefix  = "distorch1."
	clientSecretBytes = 32
	maxSecretLen      = 128
)

// ErrConnectionMalformed is in every error of ParseConnection.
var ErrConnectionMalformed = errors.New("connection line is malformed; copy the whole line that `distorch token create --client` printed")

// Connection is all that a client of the HTTPS endpoint needs: where it is, whom
// to believe and a secret. It works until it expires or is revoked; logs must
// not hold it.
type Connection struct {
	Addresses []string          // host:port of coordinators
	CA        *x509.Certificate // the cluster's; the server's name is WebHost
	Secret    string
}

// NewConnection draws a client's secret for the holder's cluster. It works once
// the store has its SecretHash.
func (c *Credentials) NewConnection(addresses []string) (Connection, error) {
	var secret [clientSecretBytes]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return Connection{}, fmt.Errorf("draw a client's secret: %w", err)
	}
	n := Connection{Addresses: addresses, CA: c.ca, Secret: base64.RawURLEncoding.EncodeToString(secret[:])}
	return n, n.validate()
}

// SecretHash is what the store keeps of a client's secret, as a header has it.
func SecretHash(secret string) [sha256.Size]byte { return sha256.Sum256([]byte(secret)) }

// LogValue keeps the secret out of logs.
func (n Connection) LogValue() slog.Value { return slog.StringValue(n.String()) }

// String names the connection without its secret.
func (n Connection) String() string { return "connection to " + strings.Join(n.Addresses, ", ") }

type connectionJSON struct {
	Addresses []string `json:"a"`
	CA        string   `json:"ca"`
	Secret    string   `json:"t"`
}

// Text returns the line that a client is given. It holds the secret.
func (n Connection) Text() (string, error) {
	if err := n.validate(); err != nil {
		return "", err
	}
	body, err := json.Marshal(connectionJSON{Addresses: n.Addresses, CA: string(encodeCertificates(n.CA)), Secret: n.Secret})
	if err != nil {
		return "", fmt.Errorf("encode a connection: %w", err)
	}
	return connectionPrefix + base64.RawURLEncoding.EncodeToString(body), nil
}

// ParseConnection reads a connection line. Space around it is ignored.
func ParseConnection(text string) (Connection, error) {
	if len(text) > MaxConnectionBytes {
		return Connection{}, fmt.Errorf("%w: %d bytes, at most %d", ErrConnectionMalformed, len(text), MaxConnectionBytes)
	}
	body, ok := strings.CutPrefix(strings.TrimSpace(text), connectionPrefix)
	if !ok {
		return Connection{}, fmt.Errorf("%w: it does not begin with %q", ErrConnectionMalformed, connectionPrefix)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || strings.ContainsAny(body, "\r\n") {
		return Connection{}, fmt.Errorf("%w: a character is missing or wrong", ErrConnectionMalformed)
	}
	var j connectionJSON
	if err := json.Unmarshal(raw, &j, json.RejectUnknownMembers(true)); err != nil {
		return Connection{}, fmt.Errorf("%w: its fields cannot be read", ErrConnectionMalformed)
	}
	block, rest := pem.Decode([]byte(j.CA))
	if block == nil || block.Type != "CERTIFICATE" || len(strings.TrimSpace(string(rest))) > 0 {
		return Connection{}, fmt.Errorf("%w: its CA is not one certificate", ErrConnectionMalformed)
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Connection{}, fmt.Errorf("%w: CA: %w", ErrConnectionMalformed, err)
	}
	n := Connection{Addresses: j.Addresses, CA: ca, Secret: j.Secret}
	if err := n.validate(); err != nil {
		return Connection{}, fmt.Errorf("%w: %w", ErrConnectionMalformed, err)
	}
	return n, nil
}

func (n Connection) validate() error {
	if len(n.Addresses) == 0 || len(n.Addresses) > maxAddresses {
		return fmt.Errorf("%d addresses, want 1 to %d", len(n.Addresses), maxAddresses)
	}
	for _, a := range n.Addresses {
		if err := validAddress(a); err != nil {
			return err
		}
	}
	if n.CA == nil || !n.CA.IsCA {
		return errors.New("its CA certificate is none")
	}
	if n.Secret == "" || len(n.Secret) > maxSecretLen || strings.Trim(n.Secret, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return errors.New("its secret is none")
	}
	return nil
}
