// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Config of a Gossip.
type Config struct {
	// Meta is what this process says about itself; Meta.ID is its name.
	Meta Meta
	// Advertise is where peers reach the listener.
	Advertise netip.AddrPort
	// Listener accepts authenticated connections of members of the cluster.
	// Run closes it.
	Listener net.Listener
	// Dial opens an authenticated connection. It must refuse a peer that is
	// not node; an empty node means any member.
	Dial func(ctx context.Context, addr, node string) (net.Conn, error)
	// Seeds is asked at the start and every RejoinEvery for the members that
	// the store knows. Those that gossip does not see alive are joined.
	Seeds func(ctx context.Context) ([]Seed, error)
	// SecretKey encrypts gossip besides the streams' TLS: 16, 24 or 32 bytes,
	// or nil.
	SecretKey []byte
	// RejoinEvery; 0 is 15 s.
	RejoinEvery time.Duration
	// LeaveTimeout bounds each of the three steps of the goodbye; 0 is 1 s.
	LeaveTimeout time.Duration
	// Events is called for every change, in order, from a goroutine of Run. It
	// may call Members and SetEpoch. May be nil.
	Events func(Event)
	Logger *slog.Logger // nil logs nothing
}

// Seed is a member to join.
type Seed struct {
	Node string // node id; empty if unknown
	Addr string // host:port
}

// Member is a process that gossip knows.
type Member struct {
	Meta Meta
	Addr netip.AddrPort // of its gossip
}

// EventKind says what happened to a member.
type EventKind int

// The kinds of events.
const (
	Joined  EventKind = iota
	Updated           // its meta changed
	Left              // it said goodbye
	Failed            // it stopped answering
)

func (k EventKind) String() string {
	return [...]string{"joined", "updated", "left", "failed"}[k]
}

// Event is a change of the membership. The process itself is not reported.
type Event struct {
	Kind   EventKind
	Member Member
}

// Gossip is one member.
type Gossip struct {
	cfg    Config
	log    *slog.Logger
	events *eventQueue

	mu   sync.Mutex
	meta Meta
	list *memberlist.Memberlist // nil before Run

	// members is kept from events: what memberlist's Members returns may be
	// read only under a lock that it does not export. It has a lock of its own
	// because memberlist calls with that one held.
	membersMu sync.Mutex
	members   map[string]Member
}

// New checks the configuration. Nothing runs before Run.
func New(cfg Config) (*Gossip, error) {
	if cfg.Listener == nil || cfg.Dial == nil || !cfg.Advertise.IsValid() {
		return nil, errors.New("gossip: Config needs Listener, Dial and Advertise")
	}
	if _, err := cfg.Meta.encode(); err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	switch len(cfg.SecretKey) {
	case 0, 16, 24, 32:
	default:
		return nil, fmt.Errorf("gossip: secret key of %d bytes, want 16, 24 or 32", len(cfg.SecretKey))
	}
	if cfg.RejoinEvery <= 0 {
		cfg.RejoinEvery = 15 * time.Second
	}
	if cfg.LeaveTimeout <= 0 {
		cfg.LeaveTimeout = time.Second
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Gossip{cfg: cfg, log: log, meta: cfg.Meta, members: map[string]Member{}, events: newEventQueue()}, nil
}

// Run takes part until ctx ends, then says goodbye and closes everything that
// it opened, the listener included.
func (g *Gossip) Run(ctx context.Context) error {
	transport := newStreams(&g.cfg, g.log)
	list, err := memberlist.Create(g.config(transport))
	if err != nil {
		return errors.Join(fmt.Errorf("start gossip: %w", err), transport.Shutdown())
	}
	g.mu.Lock()
	g.list = list
	g.mu.Unlock()

	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() { g.events.run(done, g.cfg.Events) })
	g.keepJoined(ctx, list)

	g.leave(list)
	transport.flush(g.cfg.LeaveTimeout)
	err = list.Shutdown()
	close(done)
	wg.Wait()
	if err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	return nil
}

// leave says goodbye: first in the meta, so that others can tell it from a
// failure, then in memberlist's way. Nobody to hear it is no error.
func (g *Gossip) leave(list *memberlist.Memberlist) {
	if list.NumMembers() < 2 {
		return
	}
	g.mu.Lock()
	g.meta.Leaving = true
	g.mu.Unlock()
	err := errors.Join(list.UpdateNode(g.cfg.LeaveTimeout), list.Leave(g.cfg.LeaveTimeout))
	if err != nil {
		g.log.Warn("gossip goodbye not heard", "error", err)
	}
}

func (g *Gossip) config(t memberlist.Transport) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.cfg.Meta.ID
	c.Transport = t
	c.RequireNodeNames = false // a seed may be known by address only
	c.SecretKey = g.cfg.SecretKey
	c.Delegate = metaDelegate{g}
	c.Events = eventDelegate{g}
	c.Alive = aliveDelegate{g}
	c.LogOutput = logWriter{g.log}
	c.DeadNodeReclaimTime = 5 * time.Second // a node may come back at another address
	c.EnableCompression = false
	c.TCPTimeout = 5 * time.Second
	return c
}

// keepJoined joins the seeds that are missing, now and every RejoinEvery.
func (g *Gossip) keepJoined(ctx context.Context, list *memberlist.Memberlist) {
	tick := time.NewTicker(g.cfg.RejoinEvery)
	defer tick.Stop()
	for {
		if err := g.join(ctx, list); err != nil && ctx.Err() == nil {
			g.log.Warn("gossip seeds not joined", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (g *Gossip) join(ctx context.Context, list *memberlist.Memberlist) error {
	if g.cfg.Seeds == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, g.cfg.RejoinEvery)
	defer cancel()
	seeds, err := g.cfg.Seeds(ctx)
	if err != nil {
		return fmt.Errorf("list seeds: %w", err)
	}
	alive := map[string]bool{g.cfg.Meta.ID: true, g.cfg.Advertise.String(): true}
	for _, m := range g.Members() {
		alive[m.Meta.ID] = true
		alive[m.Addr.String()] = true
	}
	var errs []error
	for _, s := range seeds {
		if ctx.Err() != nil {
			break
		}
		if s.Node != "" && alive[s.Node] || alive[s.Addr] {
			continue
		}
		addr, err := resolve(ctx, s.Addr)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if alive[addr] {
			continue
		}
		if s.Node != "" {
			addr = s.Node + "/" + addr
		}
		if _, err := list.Join([]string{addr}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// resolve turns a host name into an address; memberlist would ask a DNS server
// by itself.
func resolve(ctx context.Context, addr string) (string, error) {
	if _, err := netip.ParseAddrPort(addr); err == nil {
		return addr, nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("gossip seed %q: %w", addr, err)
	}
	ips, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil || len(ips) == 0 {
		return "", fmt.Errorf("gossip seed %q: %w", addr, err)
	}
	return net.JoinHostPort(ips[0], port), nil
}

// Members are the processes alive, this one included, by id.
func (g *Gossip) Members() []Member {
	g.membersMu.Lock()
	out := slices.Collect(maps.Values(g.members))
	g.membersMu.Unlock()
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Meta.ID, b.Meta.ID) })
	return out
}

// SetEpoch tells the others the newest epoch that this node has seen; it waits
// until the change is on its way, at most a second.
func (g *Gossip) SetEpoch(epoch uint64) error {
	g.mu.Lock()
	g.meta.Epoch = epoch
	list := g.list
	g.mu.Unlock()
	if list == nil {
		return nil
	}
	if err := list.UpdateNode(time.Second); err != nil {
		return fmt.Errorf("gossip epoch %d: %w", epoch, err)
	}
	return nil
}

func memberOf(n *memberlist.Node) (Member, error) {
	m, err := parseMeta(n.Meta)
	if err != nil {
		return Member{}, fmt.Errorf("member %s: %w", n.Name, err)
	}
	if m.ID != n.Name {
		return Member{}, fmt.Errorf("member %s says that it is %s", n.Name, m.ID)
	}
	ip, ok := netip.AddrFromSlice(n.Addr)
	if !ok {
		return Member{}, fmt.Errorf("member %s has no address", n.Name)
	}
	return Member{Meta: m, Addr: netip.AddrPortFrom(ip.Unmap(), n.Port)}, nil
}

// metaDelegate gives memberlist this process's meta.
type metaDelegate struct{ g *Gossip }

func (d metaDelegate) NodeMeta(limit int) []byte {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	b, err := d.g.meta.encode()
	if err != nil || len(b) > limit {
		return nil // New has checked it
	}
	return b
}

func (metaDelegate) NotifyMsg([]byte)                {}
func (metaDelegate) GetBroadcasts(int, int) [][]byte { return nil }
func (metaDelegate) LocalState(bool) []byte          { return nil }
func (metaDelegate) MergeRemoteState([]byte, bool)   {}

// aliveDelegate refuses members whose meta cannot be theirs.
type aliveDelegate struct{ g *Gossip }

func (d aliveDelegate) NotifyAlive(n *memberlist.Node) error {
	_, err := memberOf(n)
	return err
}

// eventDelegate is called with memberlist's lock held.
type eventDelegate struct{ g *Gossip }

func (d eventDelegate) NotifyJoin(n *memberlist.Node)   { d.notify(Joined, n) }
func (d eventDelegate) NotifyUpdate(n *memberlist.Node) { d.notify(Updated, n) }

// NotifyLeave: the node's State field is never set by memberlist.
func (d eventDelegate) NotifyLeave(n *memberlist.Node) {
	if m, err := parseMeta(n.Meta); err == nil && m.Leaving {
		d.notify(Left, n)
		return
	}
	d.notify(Failed, n)
}

func (d eventDelegate) notify(k EventKind, n *memberlist.Node) {
	m, err := memberOf(n)
	if err != nil {
		return // aliveDelegate has refused it
	}
	d.g.membersMu.Lock()
	if k == Left || k == Failed {
		delete(d.g.members, n.Name)
	} else {
		d.g.members[n.Name] = m
	}
	d.g.membersMu.Unlock()
	if n.Name == d.g.cfg.Meta.ID || k == Updated && m.Meta.Leaving { // Left follows
		return
	}
	d.g.events.push(Event{Kind: k, Member: m})
}

// eventQueue lets the application take its time without memberlist waiting.
type eventQueue struct {
	wake    chan struct{}
	mu      sync.Mutex
	pending []Event
}

func newEventQueue() *eventQueue { return &eventQueue{wake: make(chan struct{}, 1)} }

func (q *eventQueue) push(e Event) {
	q.mu.Lock()
	q.pending = append(q.pending, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *eventQueue) run(done <-chan struct{}, call func(Event)) {
	for {
		q.mu.Lock()
		events := q.pending
		q.pending = nil
		q.mu.Unlock()
		for _, e := range events {
			if call != nil {
				call(e)
			}
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-done:
			return
		}
	}
}

// logWriter turns memberlist's lines into records.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	level := slog.LevelDebug
	switch {
	case bytes.Contains(p, []byte("[ERR]")):
		level = slog.LevelError
	case bytes.Contains(p, []byte("[WARN]")):
		level = slog.LevelWarn
	case bytes.Contains(p, []byte("[INFO]")):
		level = slog.LevelInfo
	}
	line := string(bytes.TrimSpace(p))
	if _, rest, ok := strings.Cut(line, "memberlist: "); ok {
		line = rest
	}
	w.log.Log(context.Background(), level, "memberlist", "message", line)
	return len(p), nil
}
