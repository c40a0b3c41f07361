// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package donor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/distorch/distorch/agent/engine"
	"github.com/distorch/distorch/model/tensor"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ram is an account with real memory.
type ram struct{ *engine.Account }

type buffer struct {
	ram  ram
	data []byte
	free func()
}

func (b *buffer) Bytes() tensor.Bytes { return tensor.Bytes(len(b.data)) }
func (b *buffer) Host() []byte        { return b.data }
func (b *buffer) Free()               { b.ram.Give(b.Bytes()); b.free() }

func (r ram) HostBuffer(n tensor.Bytes) (engine.Buffer, error) {
	if err := r.Take(n); err != nil {
		return nil, err
	}
	data, free, err := transport.Alloc(int(n))
	return &buffer{r, data, free}, err
}

func (r ram) HostAccount() (used, peak, limit tensor.Bytes) { return r.Use() }

// cables are the connections of a process, which a test can cut.
type cables struct {
	mu    sync.Mutex
	conns []net.Conn
	pull  bool
}

func (c *cables) dial(ctx context.Context, addr string) (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pull {
		return nil, errors.New("the cable is pulled")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		c.conns = append(c.conns, conn)
	}
	return conn, err
}

// cut breaks the connections; with pulled, no other can be made.
func (c *cables) cut(pulled bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns, c.pull = nil, pulled
}

func id(k byte) string { return fmt.Sprintf("%032x", k) }

func hello(node string, incarnation byte) *pb.Hello {
	return &pb.Hello{Node: node, Incarnation: id(incarnation), ProtocolMin: 1, ProtocolMax: 1}
}

// donor is a node that gives memory.
type donor struct {
	*Memory
	ram  ram
	addr string
	stop func()
}

type service struct {
	pb.UnimplementedStageServiceServer
	m *Memory
}

func (s service) Donate(stream pb.StageService_DonateServer) error { return s.m.Serve(stream, "a") }

func host(t *testing.T, c *cables) *transport.Host {
	t.Helper()
	h, err := transport.New(transport.Config{
		PeerFrom: func(context.Context) (string, string, error) { return "a", "agent", nil },
		Credentials: func(transport.NodeID) (credentials.TransportCredentials, error) {
			return insecure.NewCredentials(), nil
		},
		DialContext: c.dial, RedialFor: 300 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// newDonor serves a donor on ln until the test ends or stop is called.
func newDonor(t *testing.T, ln net.Listener, offer, limit tensor.Bytes, incarnation byte) *donor {
	t.Helper()
	h := host(t, &cables{})
	d := &donor{ram: ram{engine.NewAccount(limit, "raise agent.memory")}, addr: ln.Addr().String()}
	var err error
	d.Memory, err = NewMemory(MemoryConfig{Transport: h, Room: d.ram, Offer: offer, Hello: hello("b", incarnation), NodeName: "den", Keep: time.Second, PlanWait: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(transport.ServerOptions()...)
	h.RegisterService(s)
	pb.RegisterStageServiceServer(s, service{m: d.Memory})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(ln) })
	wg.Go(func() { _ = d.Run(ctx) })
	d.stop = sync.OnceFunc(func() {
		s.Stop()
		cancel()
		wg.Wait()
		if used, _, _ := d.ram.Use(); used != 0 {
			t.Errorf("%v in use at the end", used)
		}
	})
	t.Cleanup(d.stop)
	return d
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func plan(epoch uint64, incarnation byte) map[string]*pb.Plan {
	return map[string]*pb.Plan{"flux": {
		Deployment: "flux", DeploymentId: id(9), Epoch: epoch,
		Stages: []*pb.Stage{
			{Node: "a", Incarnation: id(incarnation), Tiers: []*pb.BlockTier{{Kind: pb.BlockTier_REMOTE, Node: "b", Incarnation: id(2)}}},
			{Node: "c", Incarnation: id(3)}, {Node: "a", Incarnation: id(incarnation), Tiers: []*pb.BlockTier{{Kind: pb.BlockTier_RAM}}},
		},
	}}
}

func owner(t *testing.T, c *cables, incarnation byte) *Owner {
	t.Helper()
	o, err := NewOwner(OwnerConfig{Transport: host(t, c), Hello: hello("a", incarnation)})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func want(d *donor, epoch uint64, blocks ...tensor.Bytes) Want {
	return Want{
		Node: "b", NodeName: "den", Address: d.addr, Incarnation: id(2),
		Deployment: "flux", DeploymentID: id(9), Epoch: epoch, Blocks: blocks,
	}
}

func random(n tensor.Bytes, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(b)
	return b
}

func claim(t *testing.T, o *Owner, w Want) *Claim {
	t.Helper()
	c, err := o.Claim(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal(what)
		}
	}
}

func fill(t *testing.T, c *Claim) [][]byte {
	t.Helper()
	var all [][]byte
	for i, n := range c.want.Blocks {
		b := random(n, uint64(i))
		if err := c.Store(t.Context(), i, b); err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

func check(t *testing.T, c *Claim, blocks [][]byte) {
	t.Helper()
	for i, b := range blocks {
		got := make([]byte, len(b)+7)
		if err := c.Reader(i).Read(t.Context(), got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:len(b)], b) {
			t.Fatalf("block %d differs", i)
		}
	}
}

func TestBlocksComeBack(t *testing.T) {
	d := newDonor(t, listen(t, "127.0.0.1:0"), 8<<20, 0, 2)
	d.Plans(plan(4, 1))
	c := claim(t, owner(t, &cables{}, 1), want(d, 4, 3<<20+17, 1, 2<<20, 100))
	defer c.Close()
	check(t, c, fill(t, c))
	used, offered := c.Use()
	if total := tensor.Bytes(5<<20 + 118); used != total || offered != 8<<20 {
		t.Errorf("%v of %v", used, offered)
	} else if now, _, _ := d.ram.Use(); now != total {
		t.Errorf("the account has %v", now)
	}
	c.Close()
	if now, _ := d.Memory.Use(); now != 0 {
		t.Errorf("%v are given away after the release", now)
	}
	if err := c.Reader(0).Read(t.Context(), make([]byte, 4<<20)); !errors.Is(err, ErrLost) {
		t.Errorf("reading after the release: %v", err)
	}
}

// Whoever asks must be in a plan, and there must be room; numbers say how much.
func TestRefusals(t *testing.T) {
	d := newDonor(t, listen(t, "127.0.0.1:0"), 8e6, 9e6, 2)
	d.Plans(plan(4, 1))
	o := owner(t, &cables{}, 1)
	c := claim(t, o, want(d, 4, 7.2e6))
	defer c.Close()
	edit := func(f func(*Want)) Want { w := want(d, 4, 1000); f(&w); return w }
	for _, tc := range []struct {
		name  string
		owner *Owner
		want  Want
		err   error
		words string
	}{
		{"full", o, want(d, 4, 2.1e6), ErrFull, "node den offers 8.0 MB of donor memory, 7.2 MB in use; asked 2.1 MB"},
		{"nothing", o, want(d, 4), ErrRefused, "0 bytes"},
		{"too much", o, want(d, 4, 1<<47), ErrRefused, "bytes of memory"},
		{"old epoch", o, want(d, 3, 1000), ErrLost, "epoch 3"},
		{"unknown plan", o, edit(func(w *Want) { w.Deployment = "other" }), ErrRefused, "knows no plan"},
		{"another deployment of that name", o, edit(func(w *Want) { w.DeploymentID = id(8) }), ErrRefused, "knows no plan"},
		{"stage of another node", o, edit(func(w *Want) { w.Stage = 1 }), ErrRefused, "is not of node a"},
		{"stage without a tier there", o, edit(func(w *Want) { w.Stage = 2 }), ErrRefused, "keeps no blocks of stage 2 on node den"},
		{"no such stage", o, edit(func(w *Want) { w.Stage = 7 }), ErrRefused, "is not of node a"},
		{"restarted owner", owner(t, &cables{}, 5), want(d, 4, 1000), ErrRefused, "restarted"},
		{"restarted donor", o, edit(func(w *Want) { w.Incarnation = id(7) }), ErrLost, "agent den was restarted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := tc.owner.Claim(t.Context(), tc.want)
			var named *Error
			if !errors.Is(err, tc.err) || !errors.As(err, &named) || named.Culprit() != "b" || !strings.Contains(err.Error(), tc.words) || !strings.Contains(err.Error(), "node den at "+d.addr) {
				t.Errorf("got %v", err)
			}
		})
	}
	// Stages of the node itself have taken the rest.
	own, err := d.ram.HostBuffer(1.5e6)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Claim(t.Context(), want(d, 4, 5e5)); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "of the 9.0 MB that its agent may use its own stages and donations have 8.7 MB; asked 500.0 kB") {
		t.Errorf("got %v", err)
	}
	own.Free()
	claim(t, o, want(d, 4, 5e5)).Close()
}

func TestMemoryIsFreed(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, d *donor, cable *cables){
		"next epoch":    func(_ *testing.T, d *donor, _ *cables) { d.Plans(plan(5, 1)) },
		"undeployed":    func(_ *testing.T, d *donor, _ *cables) { d.Plans(nil) },
		"owner cut off": func(_ *testing.T, _ *donor, cable *cables) { cable.cut(true) },
		"donor stops":   func(_ *testing.T, d *donor, _ *cables) { d.stop() },
		"owner is restarted": func(t *testing.T, d *donor, _ *cables) {
			d.Plans(plan(4, 6))
			claim(t, owner(t, &cables{}, 6), want(d, 4, 10)).Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDonor(t, listen(t, "127.0.0.1:0"), 8<<20, 0, 2)
			d.Plans(plan(4, 1))
			cable := &cables{}
			c := claim(t, owner(t, cable, 1), want(d, 4, 1<<20))
			defer c.Close()
			fill(t, c)
			end(t, d, cable)
			eventually(t, "not freed", func() bool { used, _ := d.Memory.Use(); return used == 0 })
			select {
			case <-c.Lost():
			case <-time.After(10 * time.Second):
				t.Fatal("the owner was not told")
			}
			err := c.Reader(0).Read(t.Context(), make([]byte, 1<<20))
			if named, ok := errors.AsType[*Error](err); !ok || !errors.Is(err, ErrLost) || named.Node != "b" {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A connection that comes back within Keep costs nothing.
func TestCutIsSurvived(t *testing.T) {
	d := newDonor(t, listen(t, "127.0.0.1:0"), 8<<20, 0, 2)
	d.Plans(plan(4, 1))
	cable := &cables{}
	c := claim(t, owner(t, cable, 1), want(d, 4, 1<<20))
	defer c.Close()
	blocks := fill(t, c)
	for range 3 {
		cable.cut(false)
		check(t, c, blocks)
		d.mu.Lock()
		breaks := 0
		for _, l := range d.leases {
			breaks = l.breaks
		}
		d.mu.Unlock()
		eventually(t, "no session", func() bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			for _, l := range d.leases {
				return l.session != nil && l.breaks >= breaks
			}
			return false
		})
	}
	if err := c.Err(); err != nil {
		t.Fatal(err)
	}
}

// Memory of an owner that is gone is not kept from one that needs it.
func TestBrokenSessionsMakeRoom(t *testing.T) {
	d := newDonor(t, listen(t, "127.0.0.1:0"), 2<<20, 0, 2)
	d.cfg.Keep = time.Hour
	d.Plans(plan(4, 1))
	cable := &cables{}
	o := owner(t, cable, 1)
	c := claim(t, o, want(d, 4, 3<<19))
	defer c.Close()
	cable.cut(true)
	eventually(t, "session did not end", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return len(d.broken()) == 1
	})
	claim(t, owner(t, &cables{}, 1), want(d, 4, 3<<19)).Close()
}

func TestRestartedDonor(t *testing.T) {
	ln := listen(t, "127.0.0.1:0")
	d := newDonor(t, ln, 8<<20, 0, 2)
	d.Plans(plan(4, 1))
	told := make(chan struct{})
	w := want(d, 4, 1<<20)
	w.Lost = func() { close(told) }
	c := claim(t, owner(t, &cables{}, 1), w)
	defer c.Close()
	fill(t, c)
	d.stop()
	again := newDonor(t, listen(t, d.addr), 8<<20, 0, 7)
	again.Plans(plan(4, 1))
	err := c.Reader(0).Read(t.Context(), make([]byte, 1<<20))
	if !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "node den") {
		t.Errorf("got %v", err)
	}
	<-c.Lost()
	<-told
	if !strings.Contains(c.Err().Error(), "agent den was restarted") {
		t.Errorf("lost for %v", c.Err())
	}
}

func TestDeadDonor(t *testing.T) {
	d := newDonor(t, listen(t, "127.0.0.1:0"), 8<<20, 0, 2)
	d.Plans(plan(4, 1))
	c := claim(t, owner(t, &cables{}, 1), want(d, 4, 1<<20))
	defer c.Close()
	fill(t, c)
	d.stop()
	began := time.Now()
	err := c.Reader(0).Read(t.Context(), make([]byte, 1<<20))
	if _, ok := errors.AsType[transport.ErrPeerUnreachable](err); !ok && !errors.Is(err, ErrLost) || time.Since(began) > 3*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	if named, ok := errors.AsType[*Error](err); !ok || named.Name != "den" {
		t.Errorf("got %v", err)
	}
	if _, err := c.owner.Claim(t.Context(), want(d, 4, 10)); err == nil || !strings.Contains(err.Error(), "node den") {
		t.Errorf("got %v", err)
	}
}

func TestAlteredMemory(t *testing.T) {
	d := newDonor(t, listen(t, "127.0.0.1:0"), 8<<20, 0, 2)
	d.Plans(plan(4, 1))
	c := claim(t, owner(t, &cables{}, 1), want(d, 4, 100, 3<<20))
	defer c.Close()
	blocks := fill(t, c)
	d.mu.Lock()
	for _, l := range d.leases {
		l.buffer.Host()[100+2<<20+5] ^= 1
	}
	d.mu.Unlock()
	check(t, c, blocks[:1])
	if err := c.Reader(1).Read(t.Context(), make([]byte, 3<<20)); !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), "bytes 0 to 3145728 of block 1") {
		t.Errorf("got %v", err)
	}
}

// weights are bf16 values as a layer has them.
func weights(n tensor.Bytes, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := 0; i+2 <= len(b); i += 2 {
		v := math.Float32bits(float32(r.NormFloat64()) / 50)
		b[i], b[i+1] = byte(v>>16), byte(v>>24)
	}
	return b
}

func TestCompressedBlocks(t *testing.T) {
	d := newDonor(t, listen(t, "127.0.0.1:0"), 64<<20, 0, 2)
	d.Plans(plan(4, 1))
	cable := &cables{}
	o := owner(t, cable, 1)
	w := want(d, 4, 9<<20+1234, 1, 5<<20, 2<<20)
	w.Compressed = true
	c := claim(t, o, w)
	defer c.Close()
	blocks := [][]byte{weights(w.Blocks[0], 1), {7}, random(w.Blocks[2], 3), append(weights(1<<20, 1), random(1<<20, 4)...)}
	for i, b := range blocks {
		if err := c.Store(t.Context(), i, b); err != nil {
			t.Fatal(err)
		}
	}
	check(t, c, blocks)
	if rest, most := c.AtRest(), 10*w.Blocks[0]/15+w.Blocks[2]+w.Blocks[3]; rest > most {
		t.Errorf("%v at rest, at most %v expected", rest, most)
	}
	var wg sync.WaitGroup
	for i, b := range blocks { // at the same time, over a link that is cut
		wg.Go(func() {
			for range 3 {
				got := make([]byte, len(b))
				if err := c.Reader(i).Read(t.Context(), got); err != nil || !bytes.Equal(got, b) {
					t.Errorf("block %d: %v", i, err)
				}
			}
		})
	}
	cable.cut(false)
	wg.Wait()
	d.mu.Lock()
	for _, l := range d.leases {
		l.buffer.Host()[5<<20] ^= 1
	}
	d.mu.Unlock()
	got := make([]byte, w.Blocks[0])
	if err := c.Reader(0).Read(t.Context(), got); !errors.Is(err, ErrAltered) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Reader(2).Read(ctx, got); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Reads end when the memory is released.
func TestCloseWhileReading(t *testing.T) {
	for _, compressed := range []bool{false, true} {
		d := newDonor(t, listen(t, "127.0.0.1:0"), 64<<20, 0, 2)
		d.Plans(plan(4, 1))
		w := want(d, 4, 48<<20)
		w.Compressed = compressed
		o := owner(t, &cables{}, 1)
		c := claim(t, o, w)
		if err := c.Store(t.Context(), 0, weights(w.Blocks[0], 1)); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			got := make([]byte, w.Blocks[0])
			err := c.Reader(0).Read(context.Background(), got)
			for err == nil {
				err = c.Reader(0).Read(context.Background(), got)
			}
			done <- err
		}()
		c.Close()
		if err := <-done; !errors.Is(err, ErrLost) {
			t.Errorf("got %v", err)
		}
	}
}

func TestMisuse(t *testing.T) {
	d := newDonor(t, listen(t, "127.0.0.1:0"), 8<<20, 0, 2)
	d.Plans(plan(4, 1))
	c := claim(t, owner(t, &cables{}, 1), want(d, 4, 100))
	defer c.Close()
	for _, err := range []error{
		c.Store(t.Context(), 1, make([]byte, 100)),
		c.Store(t.Context(), 0, make([]byte, 99)),
		c.Reader(0).Read(t.Context(), make([]byte, 100)), // nothing was stored
		c.Reader(0).Read(t.Context(), make([]byte, 99)),
	} {
		if _, ok := errors.AsType[*Error](err); !ok {
			t.Errorf("got %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.owner.Claim(ctx, want(d, 4, 10)); err == nil {
		t.Error("a cancelled claim was granted")
	}
}

// The plan may reach the owner before the donor.
func TestRequestWaitsForThePlan(t *testing.T) {
	d := newDonor(t, listen(t, "127.0.0.1:0"), 8<<20, 0, 2)
	d.Plans(plan(3, 1))
	o := owner(t, &cables{}, 1)
	got := make(chan error, 1)
	go func() {
		c, err := o.Claim(context.Background(), want(d, 4, 10))
		if err == nil {
			c.Close()
		}
		got <- err
	}()
	d.Plans(plan(4, 1))
	if err := <-got; err != nil {
		t.Error(err)
	}
}
