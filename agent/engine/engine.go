// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package engine is the contract between the stage runtime and whatever
// computes: one device, one compute queue, one copy queue, accounted memory,
// and programs made from graphs.
//
// Imported by the stage runtime (its user) and by the engines below it. An
// engine never calls back, opens a socket or knows an architecture; nothing
// here imports the wire, the store or placement. Buffers are owned by the
// Session that made them and are freed once by Free or Close.
package engine

import (
	"context"
	"errors"

	"github.com/distorch/distorch/model/graph"
	"github.com/distorch/distorch/model/tensor"
)

// ErrLost is in the chain of every error of a session whose device is gone: a
// driver or a worker process that failed. Nothing more can be done with the
// session but to close it; Engine.Open may give a new one.
var ErrLost = errors.New("the device was lost")

// DeviceID names a device within its node: "cpu", "cuda:0".
type DeviceID string

// Device is what an engine offers.
type Device struct {
	ID      DeviceID
	UUID    string
	Model   string       // what the vendor calls it
	Memory  tensor.Bytes // total
	Threads int
	ISA     string
	Kind    string // "cpu", "cuda", "rocm", "xpu", "mps", "sim"
	// Unified says that the device computes in the host's memory: Buffer and
	// HostBuffer are of one account, and every buffer's Host is there.
	Unified   bool
	Simulated bool                      // made of host memory and rates from the configuration
	DTypes    []tensor.DType            // compute dtypes
	Class     func(tensor.DType) string `json:"-"` // numerics class of a compute dtype, "native/1/bf16"
}

// Engine opens sessions on devices.
type Engine interface {
	Devices(ctx context.Context) ([]Device, error)
	Open(ctx context.Context, id DeviceID) (Session, error)
}

// Event is a point on one of a session's queues; the zero Event has passed.
type Event uint64

// Buffer is memory of the device's account, or of the host's that the device
// copies from. Host returns its bytes where the host can see them (always, of a
// HostBuffer and on a Unified device), nil otherwise.
type Buffer interface {
	Bytes() tensor.Bytes
	Host() []byte
	Free()
}

// Weight is one tensor of a block as it is stored in a source buffer.
type Weight struct {
	Name   string // resolved, without the checkpoint's prefix
	DType  tensor.DType
	Shape  tensor.Shape
	Offset tensor.Bytes // in the source buffer, row-major little-endian
	// Scale multiplies every value in float32 before it is rounded to the
	// compute dtype; 0 is 1.
	Scale float32
	// Kept says that the weight lies in the destination already, as Pack would lay
	// it out; Pack leaves it so, and Offset means nothing.
	Kept bool
}

// Program is a compiled segment. It states what it needs before anything is
// allocated.
type Program interface {
	Segment() *graph.Segment
	// Scratch is the arena that one Run uses (liveness peak, 64-byte aligned).
	Scratch() tensor.Bytes
	// PackedBytes is the size of one block's weights in the engine's layout.
	PackedBytes() tensor.Bytes
}

// Placer is a Program that says where its packed weights lie, so that those of
// another program can be taken over.
type Placer interface {
	// Placed is where weight i, in the segment's order, lies in a packed block.
	// Equal shapes of programs of one session with one compute dtype have equal
	// bytes.
	Placed(i int) (offset, n tensor.Bytes)
}

// Binding gives one argument of a Run.
type Binding struct {
	Name   string // a segment input, constant or output; "" with Weights set binds the packed weights
	Buffer Buffer
	Offset tensor.Bytes
}

// Session is one open device: a compute queue and a copy queue. Each runs its
// work in the order in which it was issued; the two run beside each other, and
// work waits for the events in after, of either queue of this session. Work
// that comes after failed work fails with its error.
type Session interface {
	// Device is what was opened.
	Device() Device
	// Compile checks the segment against the op set and states its needs.
	Compile(ctx context.Context, s *graph.Segment) (Program, error)
	// Buffer takes n bytes from the device's account; ErrNoMemory names what
	// was asked, used and allowed.
	Buffer(n tensor.Bytes) (Buffer, error)
	// HostBuffer takes n bytes that host and device share (pinned where the
	// device copies from it), from the host's account.
	HostBuffer(n tensor.Bytes) (Buffer, error)
	// Pack lays the weights of one block out for the program, expanding stored
	// dtypes exactly: src holds weights as in the file, dst PackedBytes. Copy queue.
	Pack(p Program, dst Buffer, dstOffset tensor.Bytes, src Buffer, weights []Weight, after ...Event) Event
	// Fetch moves bytes between buffers of any sessions of this engine. Copy queue.
	Fetch(dst Buffer, dstOffset tensor.Bytes, src Buffer, srcOffset, n tensor.Bytes, after ...Event) Event
	// Copy moves bytes between buffers of this session. Compute queue.
	Copy(dst Buffer, dstOffset tensor.Bytes, src Buffer, srcOffset, n tensor.Bytes, after ...Event) Event
	// Run executes the program once on the compute queue. Weights is the packed
	// block, scratch at least Scratch() bytes; bindings are device memory.
	Run(p Program, weights Buffer, weightsOffset tensor.Bytes, scratch Buffer, bindings []Binding, after ...Event) Event
	// Wait returns when the event has passed; every error surfaces here.
	Wait(ctx context.Context, e Event) error
	// Account says what is in use of the device and the peak since Open,
	// HostAccount the same of the host's memory.
	Account() (used, peak, limit tensor.Bytes)
	HostAccount() (used, peak, limit tensor.Bytes)
	Close() error
}
