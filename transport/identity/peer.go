// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Role is what a certificate lets its holder be.
type Role string

// Roles. An agent's name is its node id.
const (
	RoleCoordinator Role = "coordinator"
	RoleAgent       Role = "agent"
	RoleOperator    Role = "operator" // the command line
	RoleClient      Role = "client"   // calls the endpoint, nothing else
	RoleEtcd        Role = "etcd"
)

const (
	uriScheme = "distorch"
	// serverName is in every certificate that serves, so that the standard
	// verification applies; who the server is stands in the URI.
	serverName  = "distorch.internal"
	maxNameLen  = 63
	fingerLabel = "sha256:"
)

// ErrNoIdentity is returned for a connection whose peer proved none.
var ErrNoIdentity = errors.New("peer has no distorch identity")

// Peer is the verified other end of a connection.
type Peer struct {
	Cluster string
	Role    Role
	ID      string // follows from the public key; an agent's is its node id
	Name    string // for people; the coordinator keeps agents' names unique
	KeyHash string // sha256:<hex> of the public key's SPKI
}

// String is for logs and errors: agent pc2 (n-4kq7…).
func (p Peer) String() string { return fmt.Sprintf("%s %s (%s)", p.Role, p.Name, p.ID) }

// PeerFrom returns who is at the other end of a connection. The certificate
// must have been verified by the handshake.
func PeerFrom(state tls.ConnectionState) (Peer, error) {
	if len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return Peer{}, fmt.Errorf("%w: it sent no certificate that was verified", ErrNoIdentity)
	}
	return peerOf(state.VerifiedChains[0][0])
}

func peerOf(cert *x509.Certificate) (Peer, error) {
	if len(cert.URIs) != 1 {
		return Peer{}, fmt.Errorf("%w: certificate %q has %d URIs, want one", ErrNoIdentity, cert.Subject.CommonName, len(cert.URIs))
	}
	u := cert.URIs[0]
	parts := strings.Split(u.Path, "/")
	if u.Scheme != uriScheme || len(parts) != 3 || parts[0] != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return Peer{}, fmt.Errorf("%w: certificate has the URI %q, want %s://<cluster>/<role>/<id>", ErrNoIdentity, u, uriScheme)
	}
	p := Peer{Cluster: u.Host, Role: Role(parts[1]), ID: parts[2], Name: cert.Subject.CommonName, KeyHash: KeyHash(cert)}
	if !p.Role.known() {
		return Peer{}, fmt.Errorf("%w: certificate has the role %q, which this build does not know", ErrNoIdentity, p.Role)
	}
	if want := idOf(cert.RawSubjectPublicKeyInfo); p.ID != want {
		return Peer{}, fmt.Errorf("%w: certificate names %q, its key is %q", ErrNoIdentity, p.ID, want)
	}
	if err := ValidName(p.Name); err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrNoIdentity, err)
	}
	return p, nil
}

func (r Role) known() bool {
	return slices.Contains([]Role{RoleCoordinator, RoleAgent, RoleOperator, RoleClient, RoleEtcd}, r)
}

// serves reports whether the role's certificate is good for a listener.
func (r Role) serves() bool {
	return r == RoleCoordinator || r == RoleAgent || r == RoleEtcd
}

func uriOf(cluster string, role Role, id string) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: cluster, Path: "/" + string(role) + "/" + id}
}

// idOf derives an id from a public key: whoever holds the key keeps the id, and
// nobody else can have it.
func idOf(spki []byte) string {
	sum := sha256.Sum256(spki)
	return idOfHash(sum[:])
}

func idOfHash(sum []byte) string {
	return "n-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:10]))
}

// NodeIDOf returns the id that belongs to a KeyHash.
func NodeIDOf(keyHash string) (string, error) {
	digits, ok := strings.CutPrefix(keyHash, fingerLabel)
	sum, err := hex.DecodeString(digits)
	if !ok || err != nil || len(sum) != sha256.Size {
		return "", fmt.Errorf("key hash %.80q is not %s and 64 hexadecimal digits", keyHash, fingerLabel)
	}
	return idOfHash(sum), nil
}

// ValidName checks the name of a node or another holder of a certificate: 1 to
// 63 letters, digits, dots, hyphens and underscores, a letter or digit first.
func ValidName(name string) error {
	if name == "" || len(name) > maxNameLen {
		return fmt.Errorf("name %.80q has %d characters; use 1 to %d", name, len(name), maxNameLen)
	}
	for i := range len(name) {
		c := name[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("._-", rune(c))) {
			return fmt.Errorf("name %q: use letters, digits, '.', '-' and '_', a letter or digit first", name)
		}
	}
	return nil
}

// KeyHash names a certificate's public key: sha256:<hex of the SPKI's hash>.
func KeyHash(cert *x509.Certificate) string {
	sum := spkiHash(cert)
	return fingerLabel + hex.EncodeToString(sum[:])
}

func spkiHash(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}
