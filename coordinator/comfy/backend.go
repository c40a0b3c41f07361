// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// Backend runs whole prompts on ComfyUI workers. All methods may be called at once
// and, but for those with a context, return without waiting for a worker.
type Backend interface {
	// ObjectInfo is the union over live workers of what GET /object_info lists,
	// by class, each as its worker gave it; changed is closed when it is no longer
	// that. The map is not written to by anyone.
	ObjectInfo() (classes map[string]json.RawMessage, changed <-chan struct{})
	// Check says whether a worker that lives could run p, busy or not: nil or a
	// *NoWorkerError.
	Check(p *Prompt) error
	// Reserve takes a free worker that can run p, the least busy first. Its error
	// is ErrBusy when all of those are busy, ErrNoneFree when no worker at all is
	// free, or a *NoWorkerError. The lease is held until Release.
	Reserve(p *Prompt) (Lease, error)
	// Changed is closed when a worker comes, goes or gets free after the call.
	Changed() <-chan struct{}
	// HasFile says whether View would find the file, as far as is known without
	// asking a worker.
	HasFile(f FileRef) bool
	// View is GET /view, wherever the file is. The caller closes the body.
	View(ctx context.Context, v View) (*http.Response, error)
	// Upload keeps a file on the coordinator; a worker gets it before a prompt that
	// names it. The answer has the name that it was stored under. An upload whose
	// place is outside the folder is ErrBadFile.
	Upload(ctx context.Context, u *Upload) (FileRef, error)
	// Get passes a GET on to a worker, path without the prefix /api. Where several
	// workers have lists (of models, say) the answer is their union.
	Get(ctx context.Context, path string, query url.Values) (*http.Response, error)
	// Free is POST /free to every worker; body is a JSON object.
	Free(ctx context.Context, body json.RawMessage) error
	// Stats is what GET /system_stats answers.
	Stats() SystemStats
}

// Lease is one worker held for one prompt.
type Lease interface {
	// Worker names the worker, for logs and errors.
	Worker() string
	// Run gives the worker the prompt and returns when it is done with it. Every
	// frame that the worker sends for the prompt goes to sink in order, the last
	// (execution_success, execution_error, execution_interrupted) too; status and
	// the executing frame with a null node are left out, as the front has its own.
	// nil: executed. *PromptError: refused or failed. ErrInterrupted.
	// ErrWorkerLost: the worker went, or never took the prompt; it is queued again.
	Run(ctx context.Context, sink Sink) error
	// Interrupt asks the worker to stop this prompt, and does not wait. It may be
	// called at any time between Reserve and Release, more than once, also before Run.
	Interrupt()
	Release()
}

// Sink gets a run's frames from one goroutine. Node ids and the prompt id in them
// are the front's. Neither method waits for a client.
type Sink interface {
	Text(m Message)
	// Binary takes a frame as it is on the socket: event, then its body, of which
	// events 1 and 4 (previews) are translated to what each client understands.
	// The sink may keep frame.
	Binary(frame []byte)
}

// Message is a text frame, with type first: clients look at the first bytes.
type Message struct {
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
}

// Prompt is a validated prompt.
type Prompt struct {
	ID string
	// Graph is the prompt as a worker takes it: a JSON object of nodes in the
	// client's order, with values converted to their inputs' types.
	Graph json.RawMessage
	// Classes are the class types of its nodes, sorted, each once.
	Classes []string
	// Choices are the values of inputs that take one of a list, files among them.
	Choices []Choice
	// Outputs are the valid output nodes, which alone are to run: a worker gets
	// them as partial_execution_targets.
	Outputs []string
	// ExtraData is an object, for the worker: it may have keys of paid services
	// and is never logged or shown.
	ExtraData json.RawMessage
}

// Choice is a text that an input takes from a list, which not every worker need have.
type Choice struct {
	Node, Class, Input string
	Value              string
	// File: it names a file, in the input folder unless it ends in " [output]" or
	// " [temp]". A worker's list need not have it if HasFile does.
	File bool
}

// FileRef is a file as the API names it. Its Type is input, output or temp.
type FileRef struct {
	Name      string `json:"name"`
	Subfolder string `json:"subfolder"`
	Type      string `json:"type"`
}

// View is a GET /view whose names are checked.
type View struct {
	File  FileRef
	Query url.Values // as the client sent it: preview, channel and whatever else
	Range string     // the Range header, or ""
}

// Upload is a file that a client sent.
type Upload struct {
	FileRef
	Overwrite bool
	// Original is the file whose picture gets the alpha channel of Content
	// (POST /upload/mask), or nil.
	Original *FileRef
	Content  io.ReadSeeker // Size bytes, at their beginning; read before Upload returns
	Size     int64
}

// SystemStats is the answer of GET /system_stats; sizes are in bytes.
type SystemStats struct {
	System  SystemInfo    `json:"system"`
	Devices []DeviceStats `json:"devices"`
}

// SystemInfo is the part of SystemStats about a host.
type SystemInfo struct {
	OS                        string   `json:"os"`
	RAMTotal                  int64    `json:"ram_total"`
	RAMFree                   int64    `json:"ram_free"`
	ComfyUIVersion            string   `json:"comfyui_version"`
	RequiredFrontendVersion   string   `json:"required_frontend_version"`
	InstalledTemplatesVersion string   `json:"installed_templates_version"`
	RequiredTemplatesVersion  string   `json:"required_templates_version"`
	PythonVersion             string   `json:"python_version"`
	PyTorchVersion            string   `json:"pytorch_version"`
	EmbeddedPython            bool     `json:"embedded_python"`
	Argv                      []string `json:"argv"`
}

// DeviceStats is one device of SystemStats. Index is nil for a CPU.
type DeviceStats struct {
	Name           string `json:"name"`
	Type           string `json:"type"`
	Index          *int   `json:"index"`
	VRAMTotal      int64  `json:"vram_total"`
	VRAMFree       int64  `json:"vram_free"`
	TorchVRAMTotal int64  `json:"torch_vram_total"`
	TorchVRAMFree  int64  `json:"torch_vram_free"`
}

var (
	// ErrBusy is Reserve's when every worker that could run the prompt is busy.
	ErrBusy = errors.New("all workers that can run the prompt are busy")
	// ErrNoneFree is an ErrBusy that holds for any other prompt as well.
	ErrNoneFree = fmt.Errorf("no worker is free: %w", ErrBusy)
	// ErrInterrupted is Run's when the worker stopped as asked.
	ErrInterrupted = errors.New("interrupted")
	// ErrWorkerLost is Run's when the worker went before it was done.
	ErrWorkerLost = errors.New("worker lost")
	// ErrBadFile is a file name that leads out of its folder.
	ErrBadFile = errors.New("file name leads out of its folder")
)

// NoWorkerError says that no worker that lives can run a prompt.
type NoWorkerError struct {
	Classes []string // node classes, or class.input=value, that no one worker has
}

func (e *NoWorkerError) Error() string {
	if len(e.Classes) == 0 {
		return "no ComfyUI worker is there; add one with `distorch comfy add URL`"
	}
	return "no ComfyUI worker has " + strings.Join(e.Classes, ", ") + "; add one that does with `distorch comfy add URL`"
}

// PromptError is a prompt that a worker refused or that failed in a node.
type PromptError struct {
	Node, NodeType string // where known
	Type           string // the exception's, or the error's that the worker answered with
	Message        string
	Traceback      []string
}

func (e *PromptError) Error() string {
	if e.Node == "" {
		return e.Message
	}
	return fmt.Sprintf("node %s (%s): %s", e.Node, e.NodeType, e.Message)
}
