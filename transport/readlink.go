// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/xxh3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// readLink is the asking side towards one target: a queue of reads, one
// goroutine that owns the connection and asks, and a second one per stream that
// places what comes.
type readLink struct {
	host   *Host
	target target
	wake   chan struct{}
	slots  chan struct{}    // one per read in pending
	conn   *grpc.ClientConn // run's
	born   time.Time
	heard  atomic.Int64 // when the last byte came, in nanoseconds after born

	mu          sync.Mutex
	closed      bool
	lastID      uint64
	pending     []*reading // in order of id, none finished
	busy        time.Time  // since when pending is not empty
	breakStream context.CancelCauseFunc
	raw         net.Conn // newest connection dialled
	outage      outage
}

func (l *readLink) submit(ctx context.Context, r *reading) error {
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-l.host.ctx.Done():
		return ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		<-l.slots
		return ErrClosed
	}
	l.lastID++
	r.id = l.lastID
	if len(l.pending) == 0 {
		l.busy = time.Now()
	}
	l.pending = append(l.pending, r)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// finish ends a pending read; nothing is placed after it. It needs the mutex.
func (l *readLink) finish(r *reading, err error) {
	i := slices.Index(l.pending, r)
	if i < 0 {
		return
	}
	l.pending = slices.Delete(l.pending, i, i+1)
	r.err = err
	close(r.done)
	<-l.slots
}

// cancel ends r for its caller. What was asked for is not taken back: the
// stream is broken and the other reads resume on the next one.
func (l *readLink) cancel(r *reading, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-r.done:
		return
	default:
	}
	if r.asked && l.breakStream != nil {
		l.breakStream(errResume)
	}
	l.finish(r, cause)
}

// run owns the link until the Host closes.
func (l *readLink) run() {
	defer func() {
		l.mu.Lock()
		l.closed = true
		l.failAll(ErrClosed)
		l.mu.Unlock()
		l.closeConn()
	}()
	for l.waitForWork() {
		l.host.rest(l.settle(l.session()))
	}
}

func (l *readLink) closeConn() {
	if l.conn != nil {
		_ = l.conn.Close() // only says that it was closed before
		l.conn = nil
	}
}

func (l *readLink) waitForWork() bool {
	for {
		if l.host.ctx.Err() != nil {
			return false
		}
		if l.waiting() {
			return true
		}
		select {
		case <-l.wake:
		case <-l.host.ctx.Done():
			return false
		}
	}
}

func (l *readLink) waiting() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pending) > 0
}

// heardConn notes when bytes come. A frozen process's kernel acknowledges
// packets, but nothing comes from it.
type heardConn struct {
	net.Conn
	link *readLink
}

func (c heardConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.link.heard.Store(int64(time.Since(c.link.born)))
	}
	return n, err
}

func (l *readLink) dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := l.host.dialContext(ctx, addr)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.raw = c
	return heardConn{c, l}, nil
}

// session opens a stream, asks for what is pending and places what comes until
// the stream ends. It returns why it did.
func (l *readLink) session() error {
	if l.conn == nil {
		c, err := l.host.newConn(l.target, l.dial)
		if err != nil {
			return err
		}
		l.conn = c
	}
	ctx, cancel := context.WithCancelCause(l.host.ctx)
	defer cancel(nil)
	l.mu.Lock()
	left := l.outage.remaining(l.host.cfg.RedialFor)
	l.mu.Unlock()
	opening := time.AfterFunc(left, func() { cancel(errOpening) })
	st, err := l.conn.NewStream(ctx, frameStream(), methodRead, frameCallOptions()...)
	if !opening.Stop() {
		return fmt.Errorf("%w: %w", errOpening, errors.Join(err, context.Cause(ctx)))
	}
	if err != nil {
		return err
	}
	begun := time.Now()
	l.mu.Lock()
	l.breakStream = cancel
	for _, r := range l.pending {
		r.asked = false
	}
	l.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { cancel(l.take(st)) })
	err = l.ask(ctx, st, begun)
	if !errors.Is(err, io.EOF) { // io.EOF: the reader learns why
		cancel(err)
	}
	wg.Wait()
	return context.Cause(ctx)
}

// ask sends requests and watches for silence.
func (l *readLink) ask(ctx context.Context, st grpc.ClientStream, begun time.Time) error {
	watch := time.NewTimer(l.host.cfg.SilentFor)
	defer watch.Stop()
	for {
		if h, ok := l.nextRequest(); ok {
			if err := st.SendMsg(control(&h)); err != nil {
				return err
			}
			continue
		}
		left, busy := l.patience(begun)
		if left <= 0 {
			return fmt.Errorf("%w: nothing came for %v", errStalled, l.host.cfg.SilentFor)
		}
		watch.Reset(left)
		tick := watch.C
		if !busy {
			tick = nil
		}
		select {
		case <-tick:
		case <-l.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// patience is how long the peer may still be silent; busy says whether anything
// is expected of it.
func (l *readLink) patience(begun time.Time) (left time.Duration, busy bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) == 0 {
		return l.host.cfg.SilentFor, false
	}
	last := l.born.Add(time.Duration(l.heard.Load()))
	for _, t := range []time.Time{begun, l.busy} {
		if t.After(last) {
			last = t
		}
	}
	return l.host.cfg.SilentFor - time.Since(last), true
}

func (l *readLink) nextRequest() (header, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.pending {
		if !r.asked {
			r.asked = true
			return r.request(), true
		}
	}
	return header{}, false
}

// take places chunks and takes refusals until the stream ends.
func (l *readLink) take(st grpc.ClientStream) error {
	for {
		var m rawMessage
		if err := st.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("peer ended the stream")
			}
			return err
		}
		ok := l.arrived(m.buffers)
		m.free()
		if !ok {
			return errResume
		}
	}
}

// arrived takes one message; false when the stream must be restarted.
func (l *readLink) arrived(frame mem.BufferSlice) bool {
	var raw [replyBytes + maxMessage]byte
	n := fetch(raw[:], frame)
	l.mu.Lock()
	defer l.mu.Unlock()
	if n > 5 && frameKind(raw[5]) == kindRefusal && frame.Len() == n {
		r, err := parseReply(raw[:n])
		if err != nil {
			return l.damaged(err)
		}
		return l.refused(&r)
	}
	hd, err := parseHeader(raw[:min(n, headerBytes)], frame.Len())
	if err == nil && hd.kind != kindChunk {
		err = fmt.Errorf("frame of kind %d: %w", hd.kind, ErrUnexpectedFrame)
	}
	if err != nil {
		return l.damaged(err)
	}
	return l.place(&hd, frame)
}

// place puts a chunk where the oldest read wants it. It needs the mutex, so
// that a cancelled read's buffer is never touched again.
func (l *readLink) place(hd *header, frame mem.BufferSlice) bool {
	if len(l.pending) == 0 {
		return l.damaged(fmt.Errorf("chunk of transfer %d: %w", hd.transfer, ErrUnexpectedFrame))
	}
	r := l.pending[0]
	if hd.transfer != r.id || hd.region != r.src.Region || hd.offset != r.off || hd.position != r.got || hd.total != uint64(len(r.dst)) {
		return l.damaged(fmt.Errorf("bytes %d to %d of transfer %d: %w", hd.position, hd.position+uint64(hd.payload), hd.transfer, ErrUnexpectedFrame))
	}
	dst := r.dst[hd.position : hd.position+uint64(hd.payload)]
	if n := scatter(dst, frame, headerBytes); n != len(dst) || xxh3.Hash(dst) != hd.sum {
		return l.damaged(fmt.Errorf("bytes %d to %d of transfer %d: %w", hd.position, hd.position+uint64(hd.payload), hd.transfer, ErrChecksum))
	}
	r.got += uint64(hd.payload)
	r.integrity, l.outage = 0, outage{}
	if r.got == hd.total {
		l.finish(r, nil)
	}
	return true
}

// refused takes a refusal. It needs the mutex.
func (l *readLink) refused(r *reply) bool {
	i := slices.IndexFunc(l.pending, func(x *reading) bool { return x.id == r.transfer })
	err := &RefusedError{Op: "read from", Node: l.target.node, Addr: l.target.addr, Reason: r.message, Kind: r.code.sentinel()}
	if i < 0 || r.code == codeMalformed || r.code == codeChecksum {
		return l.damaged(err) // the request was damaged on its way
	}
	l.outage = outage{}
	err.Region = l.pending[i].src.Region
	l.finish(l.pending[i], err)
	return true
}

// damaged counts damage against the oldest read, which fails when there is too
// much of it. What follows was sent in vain, so the stream is restarted; it
// needs the mutex and returns false.
func (l *readLink) damaged(err error) bool {
	if len(l.pending) == 0 {
		return false
	}
	r := l.pending[0]
	r.integrity++
	l.host.log.Warn("bulk read damaged", "node_id", string(l.target.node), "transfer", r.id, "times", r.integrity, "error", err)
	if r.integrity > maxIntegrity {
		l.finish(r, err)
	}
	return false
}

// settle decides after a session whether pending reads go on, and after what
// pause.
func (l *readLink) settle(cause error) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breakStream = nil
	if errors.Is(cause, errResume) {
		return 0
	}
	if errors.Is(cause, errStalled) && l.raw != nil {
		_ = l.raw.Close() // TLS would first say farewell to a peer that takes nothing
		l.raw = nil
	}
	if len(l.pending) == 0 || l.host.ctx.Err() != nil {
		l.outage = outage{}
		return 0
	}
	switch status.Code(cause) {
	case codes.Unimplemented, codes.Unauthenticated, codes.PermissionDenied:
		l.failAll(&RefusedError{Op: "read from", Node: l.target.node, Addr: l.target.addr, Reason: cause.Error(), Kind: ErrNotPermitted})
		return 0
	}
	pause, spent := l.outage.again(l.host.cfg.RedialFor, errors.Is(cause, errOpening))
	if spent {
		l.failAll(ErrPeerUnreachable{Node: l.target.node, Addr: l.target.addr, Err: cause})
		l.outage = outage{}
		l.closeConn() // or gRPC would dial on for ever
		return 0
	}
	l.host.log.Info("bulk connection broken, dialling again", "node_id", string(l.target.node), "error", cause)
	return pause
}

// failAll needs the mutex.
func (l *readLink) failAll(err error) {
	for len(l.pending) > 0 {
		l.finish(l.pending[0], err)
	}
}
