// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/internal/netns"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
)

// forwards begins a run and returns a func that runs a forward of it.
func forwards(t *testing.T, conn *grpc.ClientConn) func(step uint32) ([]byte, error) {
	t.Helper()
	ep := pb.NewEndpointClient(conn)
	run, err := ep.BeginRun(t.Context(), &pb.BeginRunRequest{Deployment: "demo", Dims: demoDims})
	if err != nil {
		t.Fatal(err)
	}
	cond, tensors := request(t, "large red circle on blue")
	put, err := ep.PutConditioning(t.Context(), &pb.PutConditioningRequest{Run: run.Run, Tensors: cond})
	if err != nil {
		t.Fatal(err)
	}
	return func(step uint32) ([]byte, error) {
		res, err := ep.Forward(t.Context(), &pb.ForwardRequest{Run: run.Run, Step: step, Conditioning: put.Digest, Tensors: tensors})
		return res.GetOut().GetData(), err
	}
}

// awaitStopped waits until the kernel has stopped a process: the signal alone
// does not say so.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for range 5000 {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if _, after, _ := strings.Cut(string(raw), ") "); strings.HasPrefix(after, "T") {
			return
		}
		<-tick.C
	}
	t.Fatalf("process %d was not stopped in 10 s", pid)
}

func TestFrozenAndKilledAgents(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	startAgent(t, "a", token(t, conn), t.TempDir())
	spec := childSpec{Agent: "b", Token: token(t, conn), DataDir: t.TempDir()}
	b := spawn(t, spec, (*exec.Cmd).Start)
	b.await("ready")
	deploy(t, conn, &pb.Pin{Node: "a", Blocks: 2}, &pb.Pin{Node: "b", FirstBlock: 2, Blocks: 4})
	before := await(t, conn, "two stages", ready)
	forward := forwards(t, conn)
	want, err := forward(0)
	if err != nil {
		t.Fatal(err)
	}
	lost := func(forward func(uint32) ([]byte, error), step uint32, words ...string) {
		t.Helper()
		began := time.Now()
		_, err := forward(step)
		t.Logf("named after %s: %v", time.Since(began).Round(time.Millisecond), err)
		if status.Code(err) != codes.Unavailable {
			t.Errorf("the forward ended with %v", err)
		}
		wants(t, err, append(words, "stage 1 on node b (blocks 2-5)")...)
	}

	b.signal(syscall.SIGSTOP)
	awaitStopped(t, b.cmd.Process.Pid)
	lost(forward, 1, "silent", "frozen")
	b.signal(syscall.SIGCONT)
	forward = forwards(t, conn)
	if out, err := forward(0); err != nil || string(out) != string(want) {
		t.Errorf("after the freeze: other bits, or %v", err)
	}

	// Its record stays until its lease ends: forwards fail at once, with its name.
	killed := time.AfterFunc(0, b.kill)
	defer killed.Stop()
	for step := uint32(1); ; step++ {
		began := time.Now()
		if _, err := forward(step); err != nil {
			t.Logf("named after %s: %v", time.Since(began).Round(time.Millisecond), err)
			wants(t, err, "stage 1 on node b (blocks 2-5)")
			break
		}
	}

	// The same node in another process: the old plan does not fit it any more.
	spec.Token = ""
	again := spawn(t, spec, (*exec.Cmd).Start)
	again.await("ready")
	after := await(t, conn, "the other incarnation", func(s *pb.DeploymentStatus) bool { return s.Ready && s.Plan.Epoch > before.Plan.Epoch })
	if after.Plan.Stages[1].Node != before.Plan.Stages[1].Node || after.Plan.Stages[1].Incarnation == before.Plan.Stages[1].Incarnation {
		t.Errorf("placed as %v after %v", after.Plan.Stages[1], before.Plan.Stages[1])
	}
	if out, err := forwards(t, conn)(0); err != nil || string(out) != string(want) {
		t.Errorf("after the restart: other bits, or %v", err)
	}
}

// A full disk ends the start with a clear error; with room the same directory
// serves, so nothing half-written was left in it.
func TestDiskThatIsFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("mounting a small file system takes root; run the tests as root")
	}
	for name, size := range map[string]int{"identities": 8 << 10, "etcd": 96 << 10} {
		t.Run(name, func(t *testing.T) {
			c := spawn(t, childSpec{DataDir: t.TempDir(), Tmpfs: size}, (*exec.Cmd).Start)
			full := c.await("full")
			t.Log(full)
			for _, w := range []string{"no space left on device", "is full; free", "use another --data-dir"} {
				if !strings.Contains(full, w) {
					t.Errorf("a full disk gave %q, want %q in it", full, w)
				}
			}
			c.await("ready")
		})
	}
}

// listening are the ports in a namespace that some process listens on. It reads
// the calling thread's table.
func listening() ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		raw, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		for _, line := range strings.Split(string(raw), "\n")[1:] {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != "0A" {
				continue
			}
			addr, port, _ := strings.Cut(f[1], ":")
			b, err := hex.DecodeString(addr)
			if err != nil {
				return nil, err
			}
			for i := 0; i < len(b); i += 4 { // words in the machine's order
				binary.LittleEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
			}
			ip, _ := netip.AddrFromSlice(b)
			n, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				return nil, err
			}
			out = append(out, netip.AddrPortFrom(ip.Unmap(), uint16(n)))
		}
	}
	return out, nil
}

// A coordinator in one network namespace, an agent in another: they join,
// deploy and make a picture, and every port that is open in them refuses a
// client without a certificate.
func TestJoinAcrossNamespaces(t *testing.T) {
	network, err := netns.New(netns.Options{Hosts: 2})
	if errors.Is(err, netns.ErrUnsupported) && !errors.Is(err, syscall.EPERM) {
		t.Skipf("kernel facility missing: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	first, second := network.Hosts()[0], network.Hosts()[1]
	at := func(h *netns.Host, port string) string { return net.JoinHostPort(h.Addr().String(), port) }

	dir := t.TempDir()
	co := spawn(t, childSpec{DataDir: dir, Listen: at(first, "7801"), EtcdListen: at(first, "7802")}, first.Start)
	conn := operatorVia(t, openDir(t, dir), co.await("ready"), first)

	var names []string
	for i, h := range []*netns.Host{first, second} {
		names = append(names, fmt.Sprintf("agent%d", i))
		a := spawn(t, childSpec{Agent: names[i], Token: token(t, conn), DataDir: t.TempDir(), Listen: at(h, "7800")}, h.Start)
		a.await("ready")
	}
	deploy(t, conn, &pb.Pin{Node: names[0], Blocks: 2}, &pb.Pin{Node: names[1], FirstBlock: 2, Blocks: 4})
	await(t, conn, "two stages in two namespaces", ready)
	if _, stats, err := picture(t, conn); err != nil || len(stats) != 2 || stats[1].BlocksRun != 4 {
		t.Fatalf("the picture over two namespaces: %v, %v", stats, err)
	}

	var dialled []string
	for _, h := range []*netns.Host{first, second} {
		var open []netip.AddrPort
		if err := h.Do(func() (err error) { open, err = listening(); return err }); err != nil {
			t.Fatal(err)
		}
		for _, port := range open {
			dialled = append(dialled, port.String())
			for _, alpn := range [][]string{nil, {identity.ALPNControl}, {identity.ALPNBulk}, {identity.ALPNGossip}, {identity.ALPNControl, identity.ALPNJoin}} {
				dial := func() (net.Conn, error) {
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					defer cancel()
					return h.Dial(ctx, "tcp", port.String())
				}
				err := strangerVia(dial, alpn)
				if alpn == nil && port.String() == at(first, "7801") {
					err = wantsToken(dial) // the endpoint, which knows clients by their tokens
				}
				if err == nil {
					t.Errorf("%s served %v to a client without a certificate", port, alpn)
				}
			}
		}
	}
	slices.Sort(dialled)
	want := []string{at(first, "7800"), at(first, "7801"), at(first, "7802"), at(second, "7800")}
	if !slices.Equal(dialled, want) {
		t.Errorf("ports open in the namespaces: %v, want %v", dialled, want)
	}
}

// operatorVia connects as the coordinator's machine does, from a namespace.
func operatorVia(t *testing.T, dir identity.Dir, address string, h *netns.Host) *grpc.ClientConn {
	t.Helper()
	creds, err := dir.Load(identity.SlotOperator)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(creds.ClientCredentials(identity.Expect{Roles: []identity.Role{identity.RoleCoordinator}})),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return h.Dial(ctx, "tcp", addr) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
