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
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

var (
	errResume  = errors.New("stream is restarted to resume after damage")
	errStalled = errors.New("peer has stopped reading")
	errOpening = errors.New("no connection")
)

// link is the sending side towards one target: a queue of transfers, one
// goroutine that owns the connection and its stream, and a second one per
// stream that reads the answers. It sleeps when there is nothing to send.
type link struct {
	host   *Host
	target target
	id     [16]byte
	wake   chan struct{}
	slots  chan struct{} // one per transfer in pending

	// Owned by run.
	conn       *grpc.ClientConn
	generation uint64

	mu          sync.Mutex
	closed      bool
	lastID      uint64
	pending     []*transfer // in order of id, none finished
	aborts      []uint64
	breakStream context.CancelCauseFunc // nil between streams
	raw         net.Conn                // newest connection dialled
	outage      outage                  // since when nothing was acknowledged
}

// submit queues t; it waits for its turn when maxOutstanding are under way.
func (l *link) submit(ctx context.Context, t *transfer) error {
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
	t.id = l.lastID
	if l.breakStream != nil {
		t.holds = append(t.holds, &hold{})
	}
	l.pending = append(l.pending, t)
	l.signal()
	return nil
}

func (l *link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// finish ends a pending transfer. It needs the mutex.
func (l *link) finish(t *transfer, err error) {
	i := slices.Index(l.pending, t)
	if i < 0 {
		return
	}
	l.pending = slices.Delete(l.pending, i, i+1)
	t.err = err
	close(t.done)
	<-l.slots
}

// cancel ends t for its caller and tells the receiver if bytes have left.
func (l *link) cancel(t *transfer, cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-t.done:
		return
	default:
	}
	if l.breakStream != nil && t.begun {
		l.aborts = append(l.aborts, t.id)
	}
	l.finish(t, cause)
	l.signal()
}

// release waits until gRPC holds no reference to t's source.
func (l *link) release(t *transfer) {
	l.mu.Lock()
	holds := slices.Clone(t.holds)
	l.mu.Unlock()
	timer := time.NewTimer(sourceGrace)
	defer timer.Stop()
	for _, h := range holds {
		if h.wait(timer.C) {
			continue
		}
		l.breakConnection()
		timer.Reset(sourceGrace)
		if !h.wait(timer.C) {
			h.abandon()
		}
		timer.Reset(sourceGrace)
	}
}

// breakConnection ends the stream and its connection, so that gRPC drops what
// it has queued; other transfers resume on the next one.
func (l *link) breakConnection() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.breakStream != nil {
		l.breakStream(errStalled)
	}
	if l.raw != nil {
		_ = l.raw.Close() // the reader reports what matters
	}
}

// run owns the link until the Host closes.
func (l *link) run() {
	defer l.shutdown()
	for l.waitForWork() {
		l.ended(l.session())
	}
}

func (l *link) shutdown() {
	l.mu.Lock()
	l.closed = true
	for len(l.pending) > 0 {
		l.finish(l.pending[0], ErrClosed)
	}
	l.mu.Unlock()
	l.closeConn()
}

func (l *link) closeConn() {
	if l.conn != nil {
		_ = l.conn.Close() // only says that it was closed before
		l.conn = nil
	}
}

func (l *link) waitForWork() bool {
	for {
		if l.host.ctx.Err() != nil {
			return false
		}
		l.mu.Lock()
		n := len(l.pending)
		l.mu.Unlock()
		if n > 0 {
			return true
		}
		select {
		case <-l.wake:
		case <-l.host.ctx.Done():
			return false
		}
	}
}

// dial remembers the connection so that breakConnection can close it.
func (l *link) dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := l.host.dialContext(ctx, addr)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.raw = c
	return c, nil
}

// remaining is how long the outage may still last.
func (l *link) remaining() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.outage.remaining(l.host.cfg.RedialFor)
}

// session opens a stream, resumes what is pending and sends until the stream
// ends. It returns why it did.
func (l *link) session() error {
	if l.conn == nil {
		c, err := l.host.newConn(l.target, l.dial)
		if err != nil {
			return err
		}
		l.conn = c
	}
	ctx, cancel := context.WithCancelCause(l.host.ctx)
	defer cancel(nil)
	opening := time.AfterFunc(l.remaining(), func() { cancel(errOpening) })
	st, err := l.conn.NewStream(ctx, frameStream(), methodWrite, frameCallOptions()...)
	if err != nil {
		if !opening.Stop() {
			return fmt.Errorf("%w: %w", errOpening, err)
		}
		return err
	}
	if !opening.Stop() {
		return errOpening
	}
	l.generation++
	hello := header{kind: kindHello, transfer: l.generation, key: l.id}
	l.attach(cancel)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(l.readReplies(st)) })
	err = l.send(ctx, st, &hello)
	if !errors.Is(err, io.EOF) { // io.EOF: the reader learns why
		cancel(err)
	}
	wg.Wait()
	return context.Cause(ctx)
}

// attach resets pending transfers to what was acknowledged.
func (l *link) attach(cancel context.CancelCauseFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breakStream = cancel
	for _, t := range l.pending {
		t.sent, t.begun = t.acked, false
		t.holds = append(t.holds, &hold{})
	}
}

func (l *link) send(ctx context.Context, st grpc.ClientStream, hello *header) error {
	if err := st.SendMsg(control(hello)); err != nil {
		return err
	}
	for {
		m := l.nextMessage()
		if m == nil {
			select {
			case <-l.wake:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err := st.SendMsg(m); err != nil {
			return err
		}
	}
}

// control is a frame without payload.
func control(h *header) *rawMessage {
	b := make([]byte, headerBytes)
	h.put(b)
	return &rawMessage{mem.BufferSlice{mem.SliceBuffer(b)}}
}

// nextMessage is an abort, the next chunk in order, or nil.
func (l *link) nextMessage() *rawMessage {
	l.mu.Lock()
	if n := len(l.aborts); n > 0 {
		h := header{kind: kindAbort, transfer: l.aborts[0]}
		l.aborts = slices.Delete(l.aborts, 0, 1)
		l.mu.Unlock()
		return control(&h)
	}
	for _, t := range l.pending {
		if t.sent < t.total || !t.begun {
			c := t.next()
			l.mu.Unlock()
			return c.seal()
		}
	}
	l.mu.Unlock()
	return nil
}

func (l *link) readReplies(st grpc.ClientStream) error {
	for {
		var m rawMessage
		if err := st.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("peer ended the stream")
			}
			return err
		}
		var raw [replyBytes + maxMessage]byte
		var r reply
		err := fmt.Errorf("reply of %d bytes: %w", m.buffers.Len(), ErrMalformed)
		if m.buffers.Len() <= len(raw) {
			r, err = parseReply(raw[:fetch(raw[:], m.buffers)])
		}
		m.free()
		if err != nil {
			l.damaged(nil, err)
			return errResume
		}
		if !l.answer(&r) {
			return errResume
		}
	}
}

// answer takes a reply; false when the stream must be restarted.
func (l *link) answer(r *reply) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.pending, func(t *transfer) bool { return t.id == r.transfer })
	if i < 0 {
		if r.kind == kindRefusal && r.code == codeMalformed && len(l.pending) > 0 {
			return l.resume(l.pending[0], l.refused(l.pending[0], r))
		}
		return true // cancelled, or answered before
	}
	t := l.pending[i]
	if r.kind == kindAck {
		if r.position > t.total || r.position < t.acked {
			return l.resume(t, fmt.Errorf("acknowledged %d of %d bytes after %d: %w", r.position, t.total, t.acked, ErrMalformed))
		}
		t.acked = r.position
		l.outage, t.integrity = outage{}, 0
		if t.acked == t.total {
			l.finish(t, nil)
		}
		return true
	}
	err := l.refused(t, r)
	switch r.code {
	case codeChecksum, codeMalformed:
		return l.resume(t, err)
	case codeGap:
		if r.position >= t.acked {
			return l.resume(t, err)
		}
	}
	l.finish(t, err)
	return true
}

func (l *link) refused(t *transfer, r *reply) error {
	return &RefusedError{Op: "write to", Node: l.target.node, Addr: l.target.addr, Region: t.dst.Region, Reason: r.message, Kind: r.code.sentinel()}
}

// damaged is resume for damage that names no transfer.
func (l *link) damaged(t *transfer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t == nil && len(l.pending) > 0 {
		t = l.pending[0]
	}
	if t != nil {
		l.resume(t, err)
	}
}

// resume counts damage against t, which fails when there is too much of it.
// The stream must be restarted in any case, since what follows the damaged
// frame was sent in vain; it needs the mutex and returns false.
func (l *link) resume(t *transfer, err error) bool {
	t.integrity++
	l.host.log.Warn("bulk transfer damaged", "node_id", string(l.target.node), "transfer", t.id, "times", t.integrity, "error", err)
	if t.integrity > maxIntegrity {
		l.finish(t, err)
	}
	return false
}

// ended decides after a session whether pending transfers go on.
func (l *link) ended(cause error) {
	l.host.rest(l.settle(cause))
}

func (l *link) settle(cause error) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.breakStream, l.aborts = nil, nil
	if errors.Is(cause, errResume) {
		return 0
	}
	if c := status.Code(cause); c == codes.Unavailable || errors.Is(cause, errStalled) {
		// The HTTP/2 connection is gone. gRPC does not count down what such a
		// connection had queued, but nothing reads it any more either.
		if l.raw != nil {
			_ = l.raw.Close()
			l.raw = nil
		}
		for _, t := range l.pending {
			for _, h := range t.holds {
				h.abandon()
			}
		}
	}
	if len(l.pending) == 0 || l.host.ctx.Err() != nil {
		l.outage = outage{}
		return 0
	}
	switch status.Code(cause) {
	case codes.Unimplemented, codes.Unauthenticated, codes.PermissionDenied:
		l.failAll(&RefusedError{Op: "write to", Node: l.target.node, Addr: l.target.addr, Reason: cause.Error(), Kind: ErrNotPermitted})
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

func (l *link) failAll(err error) {
	for len(l.pending) > 0 {
		l.finish(l.pending[0], err)
	}
}
