// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

const (
	// DefaultTokenTTL is how long a join token may wait to be used.
	DefaultTokenTTL = 24 * time.Hour
	// MaxTokenBytes bounds a token's text.
	MaxTokenBytes = 4096

	tokenPrefix    = "distorch-join-1."
	tokenIDBytes   = 8
	secretBytes    = 16
	maxAddresses   = 8
	maxAddressLen  = 261 // a DNS name of 253, a colon, a port
	clusterIDChars = 16
)

// What can be wrong with a join token.
var (
	ErrTokenMalformed    = errors.New("join token is malformed; copy the whole line that `distorch token create` printed")
	ErrTokenUnknown      = errors.New("join token is unknown here; make a new one with `distorch token create`")
	ErrTokenExpired      = errors.New("join token has expired; make a new one with `distorch token create`")
	ErrTokenUsed         = errors.New("join token was already used; make a new one with `distorch token create`")
	ErrTokenOtherCluster = errors.New("join token is for another cluster")
)

// NameTakenError is returned when a node asks for a name that another identity
// holds.
type NameTakenError struct {
	Name    string
	KeyHash string // of the holder
}

func (e *NameTakenError) Error() string {
	return fmt.Sprintf("node name %s is already used by another identity (key %s); choose another --name or remove it with `distorch nodes remove %s`",
		e.Name, e.KeyHash, e.Name)
}

// Token lets one machine join: where to, which CA to believe, and a secret that
// works once. It is for one person to carry; logs must not hold it.
type Token struct {
	Addresses []string // host:port of coordinators
	Cluster   string
	CAHash    [sha256.Size]byte // of the CA's SPKI
	ID        string            // 16 hexadecimal digits
	Secret    [secretBytes]byte
}

// NewToken draws a token for the holder's cluster. It works once the token
// store has its id and SecretHash.
func (c *Credentials) NewToken(addresses []string) (Token, error) {
	t := Token{Addresses: addresses, Cluster: c.peer.Cluster, CAHash: c.CAHash()}
	var id [tokenIDBytes]byte
	if _, err := rand.Read(id[:]); err != nil {
		return Token{}, fmt.Errorf("draw a token id: %w", err)
	}
	if _, err := rand.Read(t.Secret[:]); err != nil {
		return Token{}, fmt.Errorf("draw a token secret: %w", err)
	}
	t.ID = hex.EncodeToString(id[:])
	if err := t.validate(); err != nil {
		return Token{}, err
	}
	return t, nil
}

// SecretHash is what the token store keeps.
func (t Token) SecretHash() [sha256.Size]byte { return sha256.Sum256(t.Secret[:]) }

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue("token " + t.ID) }

// String names the token without its secret.
func (t Token) String() string { return "token " + t.ID }

type tokenJSON struct {
	Addresses []string `json:"a"`
	Cluster   string   `json:"c"`
	CAHash    string   `json:"h"`
	ID        string   `json:"i"`
	Secret    string   `json:"s"`
}

// Text returns the form that is handed to the joining machine. It holds the
// secret.
func (t Token) Text() (string, error) {
	if err := t.validate(); err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding
	body, err := json.Marshal(tokenJSON{
		Addresses: t.Addresses,
		Cluster:   t.Cluster,
		CAHash:    b64.EncodeToString(t.CAHash[:]),
		ID:        t.ID,
		Secret:    b64.EncodeToString(t.Secret[:]),
	})
	if err != nil {
		return "", fmt.Errorf("encode a token: %w", err)
	}
	return tokenPrefix + b64.EncodeToString(body), nil
}

// ParseToken reads a token's text. Space around it is ignored.
func ParseToken(text string) (Token, error) {
	if len(text) > MaxTokenBytes {
		return Token{}, fmt.Errorf("%w: %d bytes, at most %d", ErrTokenMalformed, len(text), MaxTokenBytes)
	}
	body, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	if !ok {
		return Token{}, fmt.Errorf("%w: it does not begin with %q", ErrTokenMalformed, tokenPrefix)
	}
	b64 := base64.RawURLEncoding.Strict()
	raw, err := b64.DecodeString(body)
	if err != nil || strings.ContainsAny(body, "\r\n") {
		return Token{}, fmt.Errorf("%w: a character is missing or wrong", ErrTokenMalformed)
	}
	var j tokenJSON
	if err := json.Unmarshal(raw, &j, json.RejectUnknownMembers(true)); err != nil {
		return Token{}, fmt.Errorf("%w: its fields cannot be read", ErrTokenMalformed)
	}
	t := Token{Addresses: j.Addresses, Cluster: j.Cluster, ID: j.ID}
	if err := fixed(b64, t.CAHash[:], j.CAHash); err != nil {
		return Token{}, fmt.Errorf("%w: CA hash: %w", ErrTokenMalformed, err)
	}
	if err := fixed(b64, t.Secret[:], j.Secret); err != nil {
		return Token{}, fmt.Errorf("%w: secret: %w", ErrTokenMalformed, err)
	}
	if err := t.validate(); err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrTokenMalformed, err)
	}
	return t, nil
}

func fixed(enc *base64.Encoding, dst []byte, text string) error {
	if len(text) != enc.EncodedLen(len(dst)) || strings.ContainsAny(text, "\r\n") {
		return fmt.Errorf("has %d characters, want %d", len(text), enc.EncodedLen(len(dst)))
	}
	if _, err := enc.Decode(dst, []byte(text)); err != nil {
		return errors.New("is not base64url")
	}
	return nil
}

func (t Token) validate() error {
	if len(t.Addresses) == 0 || len(t.Addresses) > maxAddresses {
		return fmt.Errorf("%d addresses, want 1 to %d", len(t.Addresses), maxAddresses)
	}
	for _, a := range t.Addresses {
		if err := validAddress(a); err != nil {
			return err
		}
	}
	if err := validCluster(t.Cluster); err != nil {
		return err
	}
	if len(t.ID) != 2*tokenIDBytes || strings.Trim(t.ID, "0123456789abcdef") != "" {
		return fmt.Errorf("id %.40q is not %d hexadecimal digits", t.ID, 2*tokenIDBytes)
	}
	return nil
}

func validCluster(id string) error {
	if len(id) != clusterIDChars || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return fmt.Errorf("cluster id %.40q is not %d characters of base32", id, clusterIDChars)
	}
	return nil
}

func validAddress(a string) error {
	if len(a) > maxAddressLen {
		return fmt.Errorf("address has %d characters, at most %d", len(a), maxAddressLen)
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return fmt.Errorf("address %q is not host:port", a)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '+' {
		return fmt.Errorf("address %q has no port between 1 and 65535", a)
	}
	for _, c := range []byte(host) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.' || c == '-' || c == '_' || c == ':' || c == '%':
		default:
			return fmt.Errorf("address %q is not host:port", a)
		}
	}
	if host == "" {
		return fmt.Errorf("address %q names no host", a)
	}
	return nil
}
