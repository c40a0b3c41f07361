// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is a set of members in one bubble.
type cluster struct {
	t     *testing.T
	net   *network
	mu    sync.Mutex
	seeds []Seed
}

// member is a running Gossip and what it has reported.
type member struct {
	*Gossip
	stop func()

	mu     sync.Mutex
	events []string
}

func (m *member) saw(e string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.events, e)
}

func (m *member) alive() string {
	var ids []string
	for _, x := range m.Members() {
		ids = append(ids, x.Meta.ID)
	}
	return strings.Join(ids, " ")
}

func (c *cluster) start(id string, number byte, edit func(*Config)) *member {
	c.t.Helper()
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, number}), 7800)
	m := &member{}
	cfg := Config{
		Meta:      Meta{ID: id, Incarnation: [16]byte{number}, Epoch: 1, Port: 7800},
		Advertise: addr,
		Listener:  c.net.listen(id, addr),
		Dial:      c.net.dialer(id),
		SecretKey: bytes.Repeat([]byte{7}, 32),
		Seeds: func(context.Context) ([]Seed, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			return slices.Clone(c.seeds), nil
		},
		Events: func(e Event) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.events = append(m.events, e.Kind.String()+" "+e.Member.Meta.ID)
		},
	}
	if edit != nil {
		edit(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	m.Gossip = g
	c.mu.Lock()
	c.seeds = append(c.seeds, Seed{Node: id, Addr: addr.String()})
	c.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	var once sync.Once
	m.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				c.t.Error(err)
			}
		})
	}
	return m
}

// within waits, in the bubble's time, until the condition holds.
func (c *cluster) within(d time.Duration, what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(d); !ok(); {
		if time.Now().After(end) {
			c.t.Fatalf("not within %v: %s", d, what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// run gives a test a bubble and a cluster of n members a, b, c, ...
func run(t *testing.T, n int, f func(c *cluster, m []*member)) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, net: newNetwork()}
		var members []*member
		for i := range n {
			members = append(members, c.start(string(rune('a'+i)), byte(i+1), nil))
		}
		defer func() {
			var wg sync.WaitGroup
			for _, m := range members {
				wg.Go(m.stop)
			}
			wg.Wait()
			<-time.After(time.Minute) // memberlist's own goroutines run out
		}()
		c.within(5*time.Second, "all see all", func() bool {
			for _, m := range members {
				if len(m.Members()) != n {
					return false
				}
			}
			return true
		})
		f(c, members)
	})
}

func TestMembersAndMeta(t *testing.T) {
	run(t, 3, func(c *cluster, m []*member) {
		want := []Member{
			{Meta{"a", [16]byte{1}, 1, 7800, false}, netip.MustParseAddrPort("10.0.0.1:7800")},
			{Meta{"b", [16]byte{2}, 1, 7800, false}, netip.MustParseAddrPort("10.0.0.2:7800")},
			{Meta{"c", [16]byte{3}, 1, 7800, false}, netip.MustParseAddrPort("10.0.0.3:7800")},
		}
		for _, x := range m {
			if d := cmp.Diff(want, x.Members(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
				c.t.Error(d)
			}
		}
		if !m[0].saw("joined b") || !m[0].saw("joined c") || m[0].saw("joined a") {
			c.t.Errorf("a saw %v", m[0].events)
		}
		if err := m[1].SetEpoch(9); err != nil {
			c.t.Fatal(err)
		}
		c.within(5*time.Second, "epoch of b arrives", func() bool {
			return m[0].saw("updated b") && m[2].saw("updated b") && m[0].Members()[1].Meta.Epoch == 9
		})
	})
}

func TestLeaveAndReturn(t *testing.T) {
	run(t, 3, func(c *cluster, m []*member) {
		m[2].stop()
		c.within(5*time.Second, "c has left", func() bool { return m[0].saw("left c") && m[1].saw("left c") })
		if m[0].saw("failed c") || m[0].alive() != "a b" {
			c.t.Errorf("a saw %v, members %s", m[0].events, m[0].alive())
		}
		again := c.start("c", 9, nil) // at another address, as a new process may be
		defer again.stop()
		c.within(30*time.Second, "c is back", func() bool { return m[0].alive() == "a b c" && again.alive() == "a b c" })
		if got := m[0].Members()[2].Addr.String(); got != "10.0.0.9:7800" {
			c.t.Errorf("c is at %s", got)
		}
	})
}

func TestPartitionFailsAndHealsByRejoin(t *testing.T) {
	run(t, 3, func(c *cluster, m []*member) {
		c.net.separate("a", "c", true)
		c.net.separate("b", "c", true)
		c.within(90*time.Second, "c has failed", func() bool {
			return m[0].saw("failed c") && m[1].saw("failed c") && m[2].alive() == "c"
		})
		if m[0].saw("left c") {
			c.t.Error("a crash was taken for a goodbye")
		}
		<-time.After(5 * time.Minute) // nobody gossips to the dead any more
		c.net.separate("a", "c", false)
		c.net.separate("b", "c", false)
		c.within(60*time.Second, "healed", func() bool {
			return m[0].alive() == "a b c" && m[1].alive() == "a b c" && m[2].alive() == "a b c"
		})
	})
}

func TestOneCutLinkFailsNobody(t *testing.T) {
	run(t, 4, func(c *cluster, m []*member) {
		c.net.separate("a", "b", true)
		<-time.After(2 * time.Minute)
		for _, x := range m {
			if x.alive() != "a b c d" {
				c.t.Errorf("%s sees %s", x.cfg.Meta.ID, x.alive())
			}
		}
	})
}

func TestStrangersAreNotTaken(t *testing.T) {
	run(t, 2, func(c *cluster, m []*member) {
		stranger := c.start("x", 66, func(cfg *Config) { cfg.SecretKey = bytes.Repeat([]byte{8}, 32) })
		defer stranger.stop()
		liar := c.start("y", 67, nil)
		defer liar.stop()
		c.within(5*time.Second, "y is taken while it is honest", func() bool { return m[0].saw("joined y") })
		liar.Gossip.mu.Lock()
		liar.meta.ID = "somebody else"
		liar.Gossip.mu.Unlock()
		_ = liar.SetEpoch(4) // its own list may refuse already
		<-time.After(time.Minute)
		if m[0].saw("joined x") || strings.Contains(m[0].alive(), "x") {
			c.t.Errorf("taken without the key: %s", m[0].alive())
		}
		for _, x := range m[0].Members() {
			if x.Meta.ID == "somebody else" || x.Meta.Epoch == 4 {
				c.t.Errorf("taken with another's name: %+v", x)
			}
		}
	})
}

func TestSeedsAreCheckedByIdentity(t *testing.T) {
	run(t, 1, func(c *cluster, m []*member) {
		b := c.start("b", 2, func(cfg *Config) {
			cfg.Seeds = func(context.Context) ([]Seed, error) { return []Seed{{Node: "z", Addr: "10.0.0.1:7800"}}, nil }
		})
		defer b.stop()
		c.mu.Lock()
		c.seeds = c.seeds[:1]
		c.mu.Unlock()
		<-time.After(time.Minute)
		if b.alive() != "b" {
			c.t.Errorf("joined %s under another name", b.alive())
		}
	})
}

func TestBadStreamsAreClosed(t *testing.T) {
	run(t, 1, func(c *cluster, m []*member) {
		long := binary.LittleEndian.AppendUint32([]byte{streamPackets}, maxPacket+1)
		empty := binary.LittleEndian.AppendUint32([]byte{streamPackets}, 0)
		noise := append(binary.LittleEndian.AppendUint32([]byte{streamPackets}, 5), "hello"...)
		for name, b := range map[string][]byte{"unknown kind": {0}, "too long": long, "empty": empty, "silent": nil, "cut": noise[:7], "noise": noise} {
			conn, err := c.net.dialer("b")(context.Background(), "10.0.0.1:7800", "a")
			if err != nil {
				c.t.Fatal(name, err)
			}
			if _, err := conn.Write(b); err != nil {
				c.t.Fatal(name, err)
			}
			// Closed by the member in its time; a read of ours sees it.
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				c.t.Errorf("%s: answered", name)
			}
			conn.Close()
		}
		if m[0].alive() != "a" {
			c.t.Errorf("sees %s", m[0].alive())
		}
	})
}

func TestConfigRefusals(t *testing.T) {
	good := Config{
		Meta: Meta{ID: "a"}, Advertise: netip.MustParseAddrPort("10.0.0.1:1"),
		Listener: &memoryListener{}, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no") },
	}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Config){
		"no listener": func(c *Config) { c.Listener = nil },
		"no dial":     func(c *Config) { c.Dial = nil },
		"no address":  func(c *Config) { c.Advertise = netip.AddrPort{} },
		"no id":       func(c *Config) { c.Meta.ID = "" },
		"long id":     func(c *Config) { c.Meta.ID = strings.Repeat("x", 256) },
		"odd key":     func(c *Config) { c.SecretKey = []byte("short") },
	} {
		c := good
		edit(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzParseMeta(f *testing.F) {
	b, err := (&Meta{ID: "node-1", Incarnation: [16]byte{1}, Epoch: 2, Port: 3}).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%+v became %x, %v", m, again, err)
		}
	})
}

func FuzzReadPacket(f *testing.F) {
	f.Add(append([]byte{5, 0, 0, 0}, "hello"...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := readPacket(bytes.NewReader(b))
		if err == nil && !bytes.Equal(p, b[4:4+len(p)]) {
			t.Fatalf("%x from %x", p, b)
		}
	})
}
