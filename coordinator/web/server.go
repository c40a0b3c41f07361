// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/distorch/distorch/coordinator"
	"github.com/distorch/distorch/coordinator/endpoint"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// Protocol is the version of the endpoint's routes and bodies.
const Protocol = 1

// Control is what the endpoint asks a coordinator, with coordinator.OnBehalf.
type Control interface {
	endpoint.Plans
	Version(context.Context, *pb.VersionRequest) (*pb.VersionResponse, error)
	ListNodes(context.Context, *pb.ListNodesRequest) (*pb.ListNodesResponse, error)
	ListModels(context.Context, *pb.ListModelsRequest) (*pb.ListModelsResponse, error)
	Plan(context.Context, *pb.PlanRequest) (*pb.PlanResponse, error)
	Deploy(context.Context, *pb.DeployRequest) (*pb.DeployResponse, error)
	Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error)
	Undeploy(context.Context, *pb.UndeployRequest) (*pb.UndeployResponse, error)
	Lend(context.Context, *pb.LendRequest) (*pb.LendResponse, error)
	// Changed is closed when any record of the cluster has changed.
	Changed() <-chan struct{}
}

// Forwards runs forwards: endpoint.Server.
type Forwards interface {
	BeginRun(context.Context, *pb.BeginRunRequest) (*pb.BeginRunResponse, error)
	PutConditioning(context.Context, *pb.PutConditioningRequest) (*pb.PutConditioningResponse, error)
	Forward(context.Context, *pb.ForwardRequest) (*pb.ForwardResponse, error)
	EndRun(context.Context, *pb.EndRunRequest) (*pb.EndRunResponse, error)
}

// Limits of the endpoint. A field that is 0 has its default.
type Limits struct {
	ForwardBytes int64 `json:"forward_bytes"` // of a forward's body: 256 MiB
	BlobBytes    int64 `json:"blob_bytes"`    // of one blob: 4 GiB
	StoreBytes   int64 `json:"store_bytes"`   // of all blobs: 8 GiB
	MemoryBytes  int64 `json:"memory_bytes"`  // of all bodies and answers at one time: 1 GiB; a client's: half of it
	Forwards     int   `json:"forwards"`      // at one time, queued ones too: 256; a client's: half of it
	Runs         int   `json:"runs"`          // open at one time; the one idle longest makes place: 48
	Connections  int   `json:"connections"`   // at one time: 512; from one address: a quarter
	// Stall is how long a client may send nothing of a body, or take nothing of an
	// answer: 10 s. Besides, a body must come with BytesPerSecond on average: 128 KiB/s.
	Stall          time.Duration `json:"-"`
	BytesPerSecond int64         `json:"-"`
	// Deadline of a forward that names none: 10 min; the longest is 30 min.
	Deadline    time.Duration `json:"-"`
	MaxDeadline time.Duration `json:"-"`
	RunIdle     time.Duration `json:"-"` // after which a run ends: 15 min
}

func (l Limits) filled() Limits {
	fill := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	count := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	wait := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	fill(&l.ForwardBytes, 256<<20)
	fill(&l.BlobBytes, 4<<30)
	fill(&l.StoreBytes, 8<<30)
	fill(&l.MemoryBytes, 1<<30)
	fill(&l.BytesPerSecond, 128<<10)
	count(&l.Forwards, 256)
	count(&l.Runs, 48)
	count(&l.Connections, 512)
	wait(&l.Stall, 10*time.Second)
	wait(&l.Deadline, 10*time.Minute)
	wait(&l.MaxDeadline, 30*time.Minute)
	wait(&l.RunIdle, 15*time.Minute)
	l.BlobBytes = min(l.BlobBytes, l.StoreBytes)
	l.ForwardBytes = min(l.ForwardBytes, l.MemoryBytes/4) // a body counts twice, and a client has half of it
	return l
}

// Config of a Server. LoRAs and Log may be nil.
type Config struct {
	Control  Control
	Forwards Forwards
	Clients  Clients
	LoRAs    LoRAs
	BlobDir  string // of the blob store; made if it is not there
	Limits   Limits
	Log      *slog.Logger
}

// Server is the endpoint.
type Server struct {
	cfg    Config
	limits Limits
	log    *slog.Logger
	blobs  *Blobs
	memory *budget
	mux    *http.ServeMux

	mu       sync.Mutex
	sessions map[runKey]*session
	flying   map[flightKey]*flight
	forwards int
	perName  map[string]int // forwards by client

	conns      connections
	background sync.WaitGroup // ends of runs that nobody waits for
}

// New checks the configuration and opens the blob store.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Control == nil, cfg.Forwards == nil, cfg.Clients == nil, cfg.BlobDir == "":
		return nil, errors.New("web: control, forwards, clients and a folder for blobs are all needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg: cfg, limits: cfg.Limits.filled(), log: cfg.Log, mux: http.NewServeMux(),
		sessions: map[runKey]*session{}, flying: map[flightKey]*flight{}, perName: map[string]int{},
	}
	var err error
	if s.blobs, err = OpenBlobs(cfg.BlobDir, s.limits.StoreBytes); err != nil {
		return nil, err
	}
	s.memory = newBudget(s.limits.MemoryBytes)
	s.conns = connections{most: s.limits.Connections, perHost: map[string]int{}}
	for _, r := range s.routes() {
		s.mux.HandleFunc(r.method+" "+r.pattern, s.handler(r))
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.refuse(w, r, fail(CodeNotFound, "there is no route %.10s %.80s; GET /v1/openapi.yaml lists them", r.Method, r.URL.Path))
	})
	return s, nil
}

// route is one of the endpoint's calls.
type route struct {
	method, pattern string
	scope           coordinator.Scope // that a token needs; empty: any token
	open            bool              // takes no token
	operator        string            // the command that an operator has instead; every client is refused
	serve           func(w http.ResponseWriter, r *http.Request, c Client) error
}

func (s *Server) routes() []route {
	run, deploy, lend := coordinator.ScopeRun, coordinator.ScopeDeploy, coordinator.ScopeLend
	return []route{
		{method: "GET", pattern: "/healthz", open: true, serve: s.healthz},
		{method: "GET", pattern: "/v1", serve: s.about},
		{method: "GET", pattern: "/v1/openapi.yaml", serve: s.openAPI},
		{method: "GET", pattern: "/v1/nodes", scope: run, serve: s.nodes},
		{method: "DELETE", pattern: "/v1/nodes/{name}", operator: "distorch nodes remove NAME"},
		{method: "GET", pattern: "/v1/models", scope: run, serve: s.models},
		{method: "GET", pattern: "/v1/models/{model}", scope: run, serve: s.model},
		{method: "POST", pattern: "/v1/plan", scope: run, serve: s.plan},
		{method: "GET", pattern: "/v1/deployments", scope: run, serve: s.deployments},
		{method: "GET", pattern: "/v1/deployments/{name}", scope: run, serve: s.deployment},
		{method: "PUT", pattern: "/v1/deployments/{name}", scope: deploy, serve: s.deploy},
		{method: "DELETE", pattern: "/v1/deployments/{name}", scope: deploy, serve: s.undeploy},
		{method: "PUT", pattern: "/v1/blobs/{sha256}", scope: run, serve: s.putBlob},
		{method: "HEAD", pattern: "/v1/blobs/{sha256}", scope: run, serve: s.headBlob},
		{method: "POST", pattern: "/v1/deployments/{name}/forward", scope: run, serve: s.forward},
		{method: "POST", pattern: "/v1/forwards/{id}/cancel", scope: run, serve: s.cancel},
		{method: "DELETE", pattern: "/v1/runs/{run}", scope: run, serve: s.endRun},
		{method: "POST", pattern: "/v1/lend", scope: lend, serve: s.lend},
		{method: "GET", pattern: "/v1/tokens", operator: "distorch token list"},
		{method: "POST", pattern: "/v1/tokens", operator: "distorch token create --client NAME"},
		{method: "DELETE", pattern: "/v1/tokens/{name}", operator: "distorch token revoke NAME"},
	}
}

func (s *Server) handler(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w = &steady{ResponseWriter: w, control: http.NewResponseController(w), stall: s.limits.Stall}
		w.Header().Set("Cache-Control", "no-store")
		var c Client
		var err error
		if !rt.open {
			c, err = s.admit(r, rt.scope)
		}
		switch {
		case err != nil:
		case rt.operator != "":
			err = fail(CodeForbidden, "%s %s is an operator's call; run `%s` where the coordinator runs", rt.method, rt.pattern, rt.operator)
		default:
			if c.Name != "" {
				r = r.WithContext(coordinator.OnBehalf(r.Context(), c.Name))
			}
			err = rt.serve(w, r, c)
		}
		if err != nil {
			if r.ContentLength != 0 { // what is left of the body is not read
				w.Header().Set("Connection", "close")
			}
			s.refuse(w, r, err)
		}
	}
}

// Timeouts of a connection.
const (
	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10
	closeTimeout   = 5 * time.Second
)

// Run serves the connections of ln until ctx ends, then ends every run.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	// Requests outlive ctx by nothing: their contexts follow it.
	server := &http.Server{
		Handler: s.mux, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnState:   s.conns.state,
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	var wg sync.WaitGroup
	defer s.background.Wait()
	defer wg.Wait()
	wg.Go(func() { s.expire(ctx) })
	stopped := make(chan struct{})
	wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-stopped:
			return
		}
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close() // what is left is cut off
		}
	})
	err := server.Serve(ln)
	close(stopped)
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve HTTPS: %w", err)
}

// connections bounds them, in all and from one address.
type connections struct {
	mu      sync.Mutex
	most    int
	all     int
	perHost map[string]int
}

func (c *connections) state(conn net.Conn, state http.ConnState) {
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		host = conn.RemoteAddr().String()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		c.all++
		c.perHost[host]++
		if c.all > c.most || c.perHost[host] > max(c.most/4, 1) {
			cut(conn)
		}
	case http.StateClosed, http.StateHijacked:
		c.all--
		if c.perHost[host]--; c.perHost[host] <= 0 {
			delete(c.perHost, host)
		}
	}
}

// cut closes a connection without a word: TLS's own may wait for a peer that
// does not read.
func cut(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	_ = conn.Close()
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request, _ Client) error {
	answer(w, http.StatusOK, map[string]string{"status": "ok"})
	return nil
}

func (s *Server) about(w http.ResponseWriter, r *http.Request, c Client) error {
	v, err := s.cfg.Control.Version(r.Context(), &pb.VersionRequest{})
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, map[string]any{
		"version": v.Version, "protocol": Protocol, "cluster": v.Cluster,
		"client": map[string]any{"name": c.Name, "scopes": append([]coordinator.Scope{}, c.Scopes...), "expires": c.Expires.UTC().Format(time.RFC3339)},
		"limits": s.limits,
	})
	return nil
}
