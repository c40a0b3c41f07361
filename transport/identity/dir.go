// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Slot names one identity of a data directory: <slot>.key and <slot>.crt.
type Slot string

// Slots. A machine that runs `distorch up` has all of them.
const (
	SlotNode        Slot = "node"
	SlotCoordinator Slot = "coordinator"
	SlotEtcd        Slot = "etcd"
	SlotOperator    Slot = "operator"
)

const (
	caKeyFile     = "ca.key"
	caCertFile    = "ca.crt"
	clusterFile   = "cluster.json"
	gossipFile    = "gossip.key"
	gossipBytes   = 32
	maxFileBytes  = 1 << 20
	maxEndpoints  = 64
	renewBefore   = 365 * 24 * time.Hour
	directoryMode = 0o700
)

// ErrNotJoined is returned for a data directory that belongs to no cluster yet.
var ErrNotJoined = errors.New("no identity here yet; join a cluster with a token, or make one with `distorch up`")

// Cluster is what a member knows about its cluster besides the certificates.
type Cluster struct {
	ID           string   `json:"cluster"`
	Etcd         []string `json:"etcd"`         // URLs
	Coordinators []string `json:"coordinators"` // host:port
}

func (c Cluster) validate() error {
	if err := validCluster(c.ID); err != nil {
		return err
	}
	if len(c.Etcd) > maxEndpoints || len(c.Coordinators) > maxEndpoints {
		return fmt.Errorf("%d etcd endpoints and %d coordinators, at most %d of each", len(c.Etcd), len(c.Coordinators), maxEndpoints)
	}
	for _, e := range append(slices.Clone(c.Etcd), c.Coordinators...) {
		if len(e) > 2*maxAddressLen {
			return fmt.Errorf("endpoint of %d characters is too long", len(e))
		}
	}
	return nil
}

// Dir is a data directory: ca.crt, gossip.key, cluster.json, one key and
// certificate per slot, and ca.key where a coordinator runs. Files are written
// whole or not at all, readable by their owner only (on Windows: as the
// directory's access list says). cluster.json is written last: with it, the
// rest is there.
type Dir struct{ path string }

// OpenDir returns the data directory at path and makes it if need be.
func OpenDir(path string) (Dir, error) {
	if err := os.MkdirAll(path, directoryMode); err != nil {
		return Dir{}, fmt.Errorf("data directory: %w", err)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return Dir{}, fmt.Errorf("data directory %s: %w", path, err)
	}
	return Dir{path: abs}, nil
}

// Path returns the directory.
func (d Dir) Path() string { return d.path }

// KeyFile is a slot's private key, for a program that takes paths, as etcd does.
func (d Dir) KeyFile(s Slot) string { return d.file(string(s) + ".key") }

// CertFile is a slot's certificate.
func (d Dir) CertFile(s Slot) string { return d.file(string(s) + ".crt") }

// CAFile is the cluster's certificate authority.
func (d Dir) CAFile() string { return d.file(caCertFile) }

func (d Dir) file(name string) string { return filepath.Join(d.path, name) }

// Cluster reads cluster.json; ErrNotJoined if there is none.
func (d Dir) Cluster() (Cluster, error) {
	raw, err := d.read(clusterFile, false)
	if err != nil {
		return Cluster{}, err
	}
	var c Cluster
	if err := json.Unmarshal(raw, &c); err != nil {
		return Cluster{}, fmt.Errorf("read %s: %w", d.file(clusterFile), err)
	}
	if err := c.validate(); err != nil {
		return Cluster{}, fmt.Errorf("read %s: %w", d.file(clusterFile), err)
	}
	return c, nil
}

// SaveCluster replaces cluster.json.
func (d Dir) SaveCluster(c Cluster) error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("write %s: %w", d.file(clusterFile), err)
	}
	raw, err := json.Marshal(c, jsontext.Multiline(true))
	if err != nil {
		return fmt.Errorf("write %s: %w", d.file(clusterFile), err)
	}
	return d.write(clusterFile, append(raw, '\n'))
}

// GossipKey returns the cluster's 32-byte gossip key.
func (d Dir) GossipKey() ([]byte, error) {
	key, err := d.read(gossipFile, true)
	if err != nil {
		return nil, err
	}
	if len(key) != gossipBytes {
		return nil, fmt.Errorf("read %s: %d bytes, want %d", d.file(gossipFile), len(key), gossipBytes)
	}
	return key, nil
}

// Load returns the identity in a slot; ErrNotJoined if it is empty.
func (d Dir) Load(s Slot) (*Credentials, error) {
	rawKey, err := d.read(string(s)+".key", true)
	if err != nil {
		return nil, err
	}
	key, err := decodeKey(rawKey)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.KeyFile(s), err)
	}
	cert, err := d.readCertificate(string(s) + ".crt")
	if err != nil {
		return nil, err
	}
	ca, err := d.readCertificate(caCertFile)
	if err != nil {
		return nil, err
	}
	c, err := newCredentials(key, cert, ca)
	if err != nil {
		return nil, fmt.Errorf("identity %s in %s: %w", s, d.path, err)
	}
	return c, nil
}

// CA returns the certificate authority of a coordinator's directory.
func (d Dir) CA() (*CA, error) {
	rawKey, err := d.read(caKeyFile, true)
	if errors.Is(err, ErrNotJoined) {
		return nil, fmt.Errorf("%s has no %s: this machine is not a coordinator of its cluster: %w", d.path, caKeyFile, err)
	}
	if err != nil {
		return nil, err
	}
	key, err := decodeKey(rawKey)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.file(caKeyFile), err)
	}
	cert, err := d.readCertificate(caCertFile)
	if err != nil {
		return nil, err
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(cert.PublicKey) || !cert.IsCA {
		return nil, fmt.Errorf("%s and %s in %s do not belong together", caKeyFile, caCertFile, d.path)
	}
	return &CA{cluster: clusterOf(cert), cert: cert, key: key}, nil
}

// InitCluster makes a cluster in an empty directory, or returns the one that is
// there. A directory that joined another machine's cluster is refused.
func (d Dir) InitCluster(now time.Time) (*CA, error) {
	_, err := d.Cluster()
	if err == nil {
		return d.CA()
	}
	if !errors.Is(err, ErrNotJoined) {
		return nil, err
	}
	// Without cluster.json nobody has used what an interrupted attempt left.
	ca, err := NewCA(now)
	if err != nil {
		return nil, err
	}
	key, err := encodeKey(ca.key)
	if err != nil {
		return nil, err
	}
	gossip := make([]byte, gossipBytes)
	if _, err := rand.Read(gossip); err != nil {
		return nil, fmt.Errorf("draw a gossip key: %w", err)
	}
	if err := d.write(caKeyFile, key); err != nil {
		return nil, err
	}
	if err := d.write(caCertFile, encodeCertificates(ca.cert)); err != nil {
		return nil, err
	}
	if err := d.write(gossipFile, gossip); err != nil {
		return nil, err
	}
	return ca, d.SaveCluster(Cluster{ID: ca.cluster})
}

// Ensure returns the slot's identity and issues it if it is missing, of another
// CA, says something else, or ends within a year. The key is kept.
func (d Dir) Ensure(ca *CA, s Slot, subject Subject, now time.Time) (*Credentials, error) {
	c, err := d.Load(s)
	if err == nil && c.ca.Equal(ca.cert) && c.peer.Role == subject.Role && c.peer.Name == subject.Name &&
		covers(c.cert, subject.Hosts) && c.NotAfter().Sub(now) > renewBefore {
		return c, nil
	}
	key, err := d.key(s)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(key.Public(), subject, now)
	if err != nil {
		return nil, err
	}
	if err := d.write(string(s)+".crt", encodeCertificates(cert)); err != nil {
		return nil, err
	}
	return newCredentials(key, cert, ca.cert)
}

// key returns the slot's private key and makes it if there is none.
func (d Dir) key(s Slot) (crypto.Signer, error) {
	raw, err := d.read(string(s)+".key", true)
	if err == nil {
		key, err := decodeKey(raw)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", d.KeyFile(s), err)
		}
		return key, nil
	}
	if !errors.Is(err, ErrNotJoined) {
		return nil, err
	}
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, d.write(string(s)+".key", text)
}

// saveJoined stores what a join brought for a slot whose key is there.
func (d Dir) saveJoined(s Slot, cert, ca *x509.Certificate, gossip []byte, c Cluster) error {
	if err := d.write(caCertFile, encodeCertificates(ca)); err != nil {
		return err
	}
	if err := d.write(string(s)+".crt", encodeCertificates(cert)); err != nil {
		return err
	}
	if err := d.write(gossipFile, gossip); err != nil {
		return err
	}
	return d.SaveCluster(c)
}

func covers(cert *x509.Certificate, hosts []string) bool {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			if !slices.ContainsFunc(cert.IPAddresses, ip.Equal) {
				return false
			}
		} else if h != "" && !slices.Contains(cert.DNSNames, h) {
			return false
		}
	}
	return true
}

func (d Dir) readCertificate(name string) (*x509.Certificate, error) {
	raw, err := d.read(name, false)
	if err != nil {
		return nil, err
	}
	certs, err := decodeCertificates(raw, 1)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.file(name), err)
	}
	return certs[0], nil
}

func (d Dir) read(name string, secret bool) ([]byte, error) {
	path := d.file(name)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrNotJoined)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if secret && runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others (mode %04o); run chmod 600 on it", path, info.Mode().Perm())
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(raw) > maxFileBytes {
		return nil, fmt.Errorf("read %s: larger than %d bytes", path, maxFileBytes)
	}
	return raw, nil
}

// write replaces a file whole: a crash or a full disk leaves the old one.
func (d Dir) write(name string, content []byte) (err error) {
	path := d.file(name)
	// CreateTemp makes the file with mode 0600.
	f, err := os.CreateTemp(d.path, "."+name+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
		}
	}()
	if _, err := f.Write(content); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(d.path)
}
