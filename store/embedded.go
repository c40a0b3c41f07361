// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/distorch/distorch/transport/identity"
)

const (
	defaultQuota       = 512 << 20
	compactionPeriod   = "1h"
	startTimeout       = 60 * time.Second
	closeTimeout       = 15 * time.Second
	failedTimeout      = 2 * time.Second
	memberName         = "distorch"
	unusedPeerURL      = "https://127.0.0.1:2380"
	fastTickMS         = 10
	fastElectionMS     = 100
	slowRequestWarning = time.Second
)

// EmbeddedConfig configures an etcd server inside this process.
type EmbeddedConfig struct {
	Dir string // etcd's data; nobody else's
	// Address is host:port for clients; port 0 takes a free one. A cluster of
	// one has no peer port.
	Address string
	// Advertise are the host:port that clients dial; Address if empty.
	Advertise []string
	// Cluster and the files of identity's etcd slot.
	Cluster  string
	CertFile string
	KeyFile  string
	CAFile   string

	QuotaBytes int64 // 512 MiB if zero
	Logger     *slog.Logger

	// Volatile trades durability for speed: for tests.
	Volatile bool
}

// Embedded is an etcd server that runs.
type Embedded struct {
	etcd      *embed.Etcd
	lock      *fileutil.LockedFile
	address   string
	advertise []string
	fatal     chan error

	closeOnce sync.Once
	closeErr  error
}

// StartEmbedded starts etcd and returns when it can take requests. Every client
// must have a certificate of the cluster, and an agent's writes its own keys
// only. Close it, or let Run do so.
func StartEmbedded(ctx context.Context, cfg EmbeddedConfig) (*Embedded, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := checkAddress(ctx, cfg.Address); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("etcd's data directory: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	e := &Embedded{fatal: make(chan error, 1), lock: lock}
	var running atomic.Pointer[embed.Etcd]
	ecfg := etcdConfig(cfg, e.onFatal, newGuard(cfg.Cluster, &running))

	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := e.launch(ctx, ecfg); err != nil {
		return nil, errors.Join(startError(cfg, err), lock.Close())
	}
	running.Store(e.etcd)

	select {
	case <-e.etcd.Server.ReadyNotify():
	case err := <-e.etcd.Err():
		return nil, errors.Join(startError(cfg, err), e.Close())
	case err := <-e.fatal:
		return nil, errors.Join(startError(cfg, err), e.Close())
	case <-ctx.Done():
		return nil, errors.Join(startError(cfg, context.Cause(ctx)), e.Close())
	}
	e.address = e.etcd.Clients[0].Addr().String()
	e.advertise = cfg.Advertise
	if len(e.advertise) == 0 {
		e.advertise = []string{e.address}
	}
	return e, nil
}

// launch survives what etcd does when it cannot start: panic, or end the
// goroutine (onFatal has the reason then).
func (e *Embedded) launch(ctx context.Context, cfg *embed.Config) error {
	type result struct {
		etcd *embed.Etcd
		err  error
	}
	started := make(chan result, 1)
	go func() {
		r := result{err: errStopped}
		defer func() { started <- r }()
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("%v", p)
			}
		}()
		r.etcd, r.err = embed.StartEtcd(cfg)
	}()
	select {
	case r := <-started:
		e.etcd = r.etcd
		select {
		case fatal := <-e.fatal:
			return fatal
		default:
			return r.err
		}
	case <-ctx.Done():
		return fmt.Errorf("it takes longer than %v: %w", startTimeout, context.Cause(ctx))
	}
}

// lockDir keeps a second process out, for whom etcd would wait without a word.
func lockDir(dir string) (*fileutil.LockedFile, error) {
	lock, err := fileutil.TryLockFile(dir+".lock", os.O_WRONLY|os.O_CREATE, 0o600)
	if errors.Is(err, fileutil.ErrLocked) {
		return nil, fmt.Errorf("start etcd in %s: another distorch uses this directory; stop it or use another --data-dir: %w", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("start etcd in %s: %w", dir, err)
	}
	return lock, nil
}

func etcdConfig(cfg EmbeddedConfig, onFatal func(string), g *guard) *embed.Config {
	c := embed.NewConfig()
	c.Name = memberName
	c.Dir = cfg.Dir
	c.ListenClientUrls = []url.URL{{Scheme: "https", Host: cfg.Address}}
	c.AdvertiseClientUrls = []url.URL{{Scheme: "https", Host: cfg.Address}}
	for _, a := range cfg.Advertise {
		c.AdvertiseClientUrls = append(c.AdvertiseClientUrls, url.URL{Scheme: "https", Host: a})
	}
	// One member talks to nobody, so it listens for nobody.
	c.ListenPeerUrls = []url.URL{}
	if u, err := url.Parse(unusedPeerURL); err == nil {
		c.AdvertisePeerUrls = []url.URL{*u}
	}
	c.InitialCluster = memberName + "=" + unusedPeerURL
	c.InitialClusterToken = cfg.Cluster
	c.ClientTLSInfo = transport.TLSInfo{
		CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, TrustedCAFile: cfg.CAFile,
		ClientCertAuth: true, SkipClientSANVerify: true, MinVersion: tls.VersionTLS13,
	}
	c.PeerTLSInfo = c.ClientTLSInfo
	c.PeerTLSInfo.AllowedHostnames = []string{identity.EtcdHost}
	c.TlsMinVersion = "TLS1.3"
	c.EnableGRPCGateway = false
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = compactionPeriod
	c.WarningUnaryRequestDuration = slowRequestWarning
	c.WarningApplyDuration = slowRequestWarning
	c.QuotaBackendBytes = cfg.QuotaBytes
	if c.QuotaBackendBytes == 0 {
		c.QuotaBackendBytes = defaultQuota
	}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapTo(cfg.Logger, onFatal))
	c.GRPCAdditionalServerOptions = []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(g.unary),
		grpc.ChainStreamInterceptor(g.stream),
	}
	if cfg.Volatile {
		c.UnsafeNoFsync = true
		c.TickMs, c.ElectionMs = fastTickMS, fastElectionMS
	}
	return c
}

func newGuard(cluster string, running *atomic.Pointer[embed.Etcd]) *guard {
	return &guard{
		cluster: cluster,
		holder: func(ctx context.Context, name string) (string, error) {
			e := running.Load()
			if e == nil {
				return "", errStopped
			}
			resp, err := e.Server.Range(ctx, &pb.RangeRequest{Key: []byte(nameKey(name).name), Serializable: true})
			if err != nil || len(resp.Kvs) == 0 {
				return "", err
			}
			var holder wrapperspb.StringValue
			if err := proto.Unmarshal(resp.Kvs[0].Value, &holder); err != nil {
				return "", err
			}
			return holder.GetValue(), nil
		},
		leased: func(ctx context.Context, lease int64) ([]string, error) {
			e := running.Load()
			if e == nil {
				return nil, errStopped
			}
			resp, err := e.Server.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: lease, Keys: true})
			if err != nil {
				return nil, err
			}
			keys := make([]string, len(resp.Keys))
			for i, k := range resp.Keys {
				keys[i] = string(k)
			}
			return keys, nil
		},
	}
}

// checkAddress finds a taken port before etcd touches its files.
func checkAddress(ctx context.Context, address string) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("etcd's address %q is not host:port", address)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return addressError(address, err)
	}
	return ln.Close()
}

func addressError(address string, err error) error {
	return fmt.Errorf("etcd cannot listen on %s: %w; is another distorch running, or choose another port with --etcd-listen (coordinator.etcd.client_listen)", address, err)
}

func startError(cfg EmbeddedConfig, err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "listen" {
		return addressError(cfg.Address, err)
	}
	return fmt.Errorf("start etcd in %s: %w", cfg.Dir, diskError(err))
}

// diskError finds the full disk in what may only be a message of etcd's logger.
func diskError(err error) error {
	text := err.Error()
	if strings.Contains(text, "no space left") || strings.Contains(text, "not enough space") {
		return fmt.Errorf("the disk is full; free at least 200 MB or use another --data-dir: %w", err)
	}
	return err
}

func (e *Embedded) onFatal(message string) {
	select {
	case e.fatal <- errors.New(message):
	default:
	}
}

// Endpoints are what clients give to Open.
func (e *Embedded) Endpoints() []string {
	out := make([]string, len(e.advertise))
	for i, a := range e.advertise {
		out[i] = "https://" + a
	}
	return out
}

// Address is where it listens.
func (e *Embedded) Address() string { return e.address }

// Run waits until ctx ends (nil after a clean stop) or etcd fails, and closes it.
func (e *Embedded) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return e.close(closeTimeout)
	case err := <-e.etcd.Err():
		return errors.Join(fmt.Errorf("etcd failed: %w", err), e.close(closeTimeout))
	case err := <-e.fatal:
		// What failed no longer answers to an orderly stop, so it is not awaited
		// for long. What etcd had promised is on the disk.
		_ = e.close(failedTimeout)
		return fmt.Errorf("etcd in %s failed: %w", e.etcd.Config().Dir, diskError(err))
	}
}

// Close stops etcd. Close the clients first: it waits a little for them.
func (e *Embedded) Close() error { return e.close(closeTimeout) }

func (e *Embedded) close(patience time.Duration) error {
	e.closeOnce.Do(func() {
		done := make(chan struct{})
		go func() {
			defer close(done)
			e.etcd.Close()
		}()
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-done:
			e.closeErr = e.lock.Close()
		case <-timer.C:
			e.closeErr = fmt.Errorf("etcd did not stop within %v", patience)
		}
	})
	return e.closeErr
}
