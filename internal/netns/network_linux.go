// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Network is a bridge and the hosts behind it.
type Network struct {
	ns    netns.NsHandle // holds the bridge
	nl    *netlink.Handle
	hosts []*Host
}

// Host is one namespace with one link to the bridge.
type Host struct {
	addr netip.Addr
	ns   netns.NsHandle
	nl   *netlink.Handle
	link netlink.Link // the host's end
	port netlink.Link // the bridge's end
	net  *Network
}

// New builds the network. On an error nothing of it is left.
func New(o Options) (*Network, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	n := &Network{ns: netns.None()}
	if err := n.build(o); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *Network) build(o Options) error {
	var err error
	if n.ns, n.nl, err = namespace(); err != nil {
		return err
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bridge0"}}
	if err := n.nl.LinkAdd(bridge); err != nil {
		return unsupported("add a bridge", err)
	}
	if err := n.nl.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("set the bridge up: %w", err)
	}
	for i := range o.Hosts {
		h := &Host{addr: hostAddr(i), ns: netns.None(), net: n}
		n.hosts = append(n.hosts, h)
		if err := h.build(bridge, fmt.Sprintf("port%d", i)); err != nil {
			return fmt.Errorf("host %s: %w", h.addr, err)
		}
		if o.BitsPerSecond > 0 {
			if err := h.SetRate(o.BitsPerSecond); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *Host) build(bridge netlink.Link, port string) error {
	var err error
	if h.ns, h.nl, err = namespace(); err != nil {
		return err
	}
	sw := h.net.nl
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: port, MasterIndex: bridge.Attrs().Index})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(h.ns)
	if err := sw.LinkAdd(veth); err != nil {
		return unsupported("add a veth pair", err)
	}
	if h.port, err = sw.LinkByName(port); err != nil {
		return fmt.Errorf("find link %s: %w", port, err)
	}
	if h.link, err = h.nl.LinkByName("eth0"); err != nil {
		return fmt.Errorf("find link eth0: %w", err)
	}
	mask := &net.IPNet{IP: h.addr.AsSlice(), Mask: net.CIDRMask(16, 32)}
	if err := h.nl.AddrAdd(h.link, &netlink.Addr{IPNet: mask}); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	lo, err := h.nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return errors.Join(h.nl.LinkSetUp(lo), h.nl.LinkSetUp(h.link), sw.LinkSetUp(h.port))
}

// Close frees the namespaces, and with them the links, once the processes
// started in them have ended. It may be called twice.
func (n *Network) Close() error {
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, release(&h.ns, h.nl))
		h.nl = nil
	}
	errs = append(errs, release(&n.ns, n.nl))
	n.nl, n.hosts = nil, nil
	return errors.Join(errs...)
}

// Hosts lists the hosts in order of address.
func (n *Network) Hosts() []*Host { return n.hosts }

// Addr is the host's address in the network.
func (h *Host) Addr() netip.Addr { return h.addr }

// SetLink plugs the host's cable in or pulls it. Packets of a host whose cable
// is pulled are lost without an error, as in a partition.
func (h *Host) SetLink(up bool) error {
	set := h.net.nl.LinkSetDown
	if up {
		set = h.net.nl.LinkSetUp
	}
	if err := set(h.port); err != nil {
		return fmt.Errorf("set the link of host %s: %w", h.addr, err)
	}
	return nil
}

// SetRate limits the host's link each way with a token bucket; 0 lifts the limit.
func (h *Host) SetRate(bitsPerSecond uint64) error {
	for _, end := range []struct {
		nl   *netlink.Handle
		link netlink.Link
	}{{h.nl, h.link}, {h.net.nl, h.port}} {
		if err := shape(end.nl, end.link, bitsPerSecond/8); err != nil {
			return fmt.Errorf("limit host %s to %d bit/s: %w", h.addr, bitsPerSecond, err)
		}
	}
	return nil
}

func shape(nl *netlink.Handle, link netlink.Link, bytesPerSecond uint64) error {
	attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	if bytesPerSecond == 0 {
		err := nl.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "tbf"})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			return nil // no limit was set
		}
		return err
	}
	// The bucket holds 2 ms and at least two of the largest offloaded
	// segments, the queue another 50 ms, which is a switch's usual order.
	burst := max(bytesPerSecond/500, 128<<10)
	micros := float64(burst) / float64(bytesPerSecond) * 1e6
	tbf := &netlink.Tbf{
		QdiscAttrs: attrs,
		Rate:       bytesPerSecond,
		Limit:      uint32(bytesPerSecond/20 + burst),
		Buffer:     uint32(micros * netlink.TickInUsec()),
	}
	if err := nl.QdiscReplace(tbf); err != nil {
		return unsupported("add a token bucket queue", err)
	}
	return nil
}

// Start starts cmd in the host's namespace, as cmd.Start does. The caller waits
// for it.
func (h *Host) Start(cmd *exec.Cmd) error {
	return h.Do(cmd.Start)
}

// Do runs f on a thread that is in the host's namespace. Sockets that f opens
// stay in it for good; goroutines that f starts are not in it.
func (h *Host) Do(f func() error) error {
	if !h.ns.IsOpen() {
		return fmt.Errorf("host %s: the network is closed", h.addr)
	}
	return inThread(func() error {
		if err := netns.Set(h.ns); err != nil {
			return fmt.Errorf("enter the namespace of host %s: %w", h.addr, err)
		}
		return f()
	})
}

// Dial connects from the host. The address is a literal, as names are looked up
// on other threads.
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial from host %s: want a literal address: %w", h.addr, err)
	}
	err = h.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on the host.
func (h *Host) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("listen on host %s: want a literal address: %w", h.addr, err)
	}
	err = h.Do(func() error {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// namespace makes a namespace that no thread is in.
func namespace() (ns netns.NsHandle, nl *netlink.Handle, err error) {
	err = inThread(func() error {
		ns, err = netns.New()
		return err
	})
	if err != nil {
		return netns.None(), nil, unsupported("make a network namespace", err)
	}
	if nl, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
		return netns.None(), nil, errors.Join(fmt.Errorf("open netlink: %w", err), ns.Close())
	}
	return ns, nl, nil
}

// inThread runs f on a thread of its own and puts that thread back into the
// namespace it came from. A thread that cannot go back ends with its goroutine.
func inThread(f func() error) error {
	type outcome struct {
		err      error
		panicked any
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() { done <- o }()
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			o.err = fmt.Errorf("read this thread's namespace: %w", err)
			runtime.UnlockOSThread()
			return
		}
		defer func() {
			o.panicked = recover()
			if netns.Set(home) == nil {
				runtime.UnlockOSThread()
			}
			_ = home.Close()
		}()
		o.err = f()
	}()
	o := <-done
	if o.panicked != nil {
		panic(o.panicked)
	}
	return o.err
}

func release(ns *netns.NsHandle, nl *netlink.Handle) error {
	if nl != nil {
		nl.Close()
	}
	if !ns.IsOpen() {
		return nil
	}
	return ns.Close()
}

func unsupported(what string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %s as uid %d: %w; run as root or with CAP_SYS_ADMIN and CAP_NET_ADMIN", ErrUnsupported, what, os.Getuid(), err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: %s: %w; the kernel lacks it (modules veth, bridge, sch_tbf)", ErrUnsupported, what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
