// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"
)

// EtcdHost is a DNS name that etcd's own certificates carry and no others:
// etcd's peer listener admits by it.
const EtcdHost = "etcd.distorch.internal"

const (
	// backDate lets a machine whose clock is behind (a dual boot in another
	// time zone) accept a fresh certificate.
	backDate     = 24 * time.Hour
	caLifetime   = 20 * 365 * 24 * time.Hour
	leafLifetime = 10 * 365 * 24 * time.Hour
	maxHosts     = 64
)

// CA is the cluster's certificate authority, which only coordinators hold.
type CA struct {
	cluster string
	cert    *x509.Certificate
	key     crypto.Signer
}

// NewCA makes a certificate authority and with it a cluster's identity.
func NewCA(now time.Time) (*CA, error) {
	cluster, err := newClusterID()
	if err != nil {
		return nil, err
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "distorch CA " + cluster, Organization: []string{"distorch"}},
		URIs:                  []*url.URL{{Scheme: uriScheme, Host: cluster}},
		NotBefore:             now.Add(-backDate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	if template.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the cluster's CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back the cluster's CA: %w", err)
	}
	return &CA{cluster: cluster, cert: cert, key: key}, nil
}

// Cluster returns the cluster's id.
func (ca *CA) Cluster() string { return ca.cluster }

// Certificate returns the CA's own certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Hash is what a join token pins: the SHA-256 of the CA's public key.
func (ca *CA) Hash() [32]byte { return spkiHash(ca.cert) }

// Subject is what a certificate says about its holder.
type Subject struct {
	Role Role
	Name string
	// Hosts are addresses and DNS names for clients that check them; distorch's
	// own judge by role and name. Only etcd's certificates need them.
	Hosts []string
}

// Sign makes a certificate for a public key.
func (ca *CA) Sign(public crypto.PublicKey, s Subject, now time.Time) (*x509.Certificate, error) {
	if !s.Role.known() {
		return nil, fmt.Errorf("certificate for %q: role %q is not known", s.Name, s.Role)
	}
	if err := ValidName(s.Name); err != nil {
		return nil, err
	}
	if len(s.Hosts) > maxHosts {
		return nil, fmt.Errorf("certificate for %q: %d hosts, at most %d", s.Name, len(s.Hosts), maxHosts)
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("certificate for %q: %w", s.Name, err)
	}
	notAfter := now.Add(leafLifetime)
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: s.Name, Organization: []string{"distorch"}},
		URIs:                  []*url.URL{uriOf(ca.cluster, s.Role, idOf(spki))},
		NotBefore:             now.Add(-backDate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if s.Role.serves() {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		template.DNSNames = []string{serverName}
	}
	if s.Role == RoleEtcd {
		template.DNSNames = append(template.DNSNames, EtcdHost)
	}
	for _, h := range s.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if h != "" {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	if template.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %s %q: %w", s.Role, s.Name, err)
	}
	return x509.ParseCertificate(der)
}

// Issue makes a key and its certificate: for the identities of the machine that
// holds the CA.
func (ca *CA) Issue(s Subject, now time.Time) (*Credentials, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(key.Public(), s, now)
	if err != nil {
		return nil, err
	}
	return newCredentials(key, cert, ca.cert)
}

// Credentials are a key, its certificate and the CA that both ends trust.
// They are immutable and safe for concurrent use.
type Credentials struct {
	key  crypto.Signer
	cert *x509.Certificate
	ca   *x509.Certificate
	pool *x509.CertPool
	peer Peer
}

func newCredentials(key crypto.Signer, cert, ca *x509.Certificate) (*Credentials, error) {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(cert.PublicKey) {
		return nil, errors.New("private key and certificate do not belong together")
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("certificate %q is not signed by the CA %q: %w", cert.Subject.CommonName, ca.Subject.CommonName, err)
	}
	peer, err := peerOf(cert)
	if err != nil {
		return nil, err
	}
	if want := clusterOf(ca); peer.Cluster != want {
		return nil, fmt.Errorf("certificate is for cluster %s, its CA for %s", peer.Cluster, want)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &Credentials{key: key, cert: cert, ca: ca, pool: pool, peer: peer}, nil
}

// Self returns the identity that these credentials prove.
func (c *Credentials) Self() Peer { return c.peer }

// CAHash is the hash that join tokens pin.
func (c *Credentials) CAHash() [32]byte { return spkiHash(c.ca) }

// NotAfter is when the certificate ends.
func (c *Credentials) NotAfter() time.Time { return c.cert.NotAfter }

// certificate carries the CA too: a joiner who knows only its hash sees it there.
func (c *Credentials) certificate() tls.Certificate {
	return tls.Certificate{
		Certificate: [][]byte{c.cert.Raw, c.ca.Raw},
		PrivateKey:  c.key,
		Leaf:        c.cert,
	}
}

// NewKey makes a private key (ECDSA P-256).
func NewKey() (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a private key: %w", err)
	}
	return key, nil
}

// acceptableKey keeps weak and unusual keys out of certificates.
func acceptableKey(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
		return fmt.Errorf("elliptic curve %s is not accepted; use P-256", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	default:
		return fmt.Errorf("key of type %T is not accepted; use ECDSA P-256 or Ed25519", public)
	}
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return serial, nil
}

func newClusterID() (string, error) {
	var raw [10]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", fmt.Errorf("draw a cluster id: %w", err)
	}
	return strings.ToLower(base32.StdEncoding.EncodeToString(raw[:])), nil
}

func clusterOf(ca *x509.Certificate) string {
	if len(ca.URIs) != 1 {
		return ""
	}
	return ca.URIs[0].Host
}

func encodeCertificates(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// decodeCertificates reads PEM; leftovers and other blocks are errors.
func decodeCertificates(text []byte, want int) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(strings.TrimSpace(string(text))) > 0 {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" || len(certs) == want {
			return nil, fmt.Errorf("want %d PEM certificates and nothing else", want)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
		text = rest
	}
	if len(certs) != want {
		return nil, fmt.Errorf("found %d PEM certificates, want %d", len(certs), want)
	}
	return certs, nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func decodeKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no PEM private key found")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", key)
	}
	return signer, nil
}
