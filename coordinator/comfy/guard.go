// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package comfy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// guard keeps out clients of networks that are not allowed and pages of other
// origins, since the API knows no password.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		origin := r.Header.Get("Origin")
		named := origin != "" && s.originNamed(origin)
		switch {
		case !s.fromAllowedNetwork(r.RemoteAddr):
			plain(w, http.StatusForbidden, "403: clients of this network are not allowed; add it to comfy.allow")
			return
		case !s.hostKnown(r):
			plain(w, http.StatusForbidden, "403: this host name is not known; add its origin to comfy.origins")
			return
		case !named && r.Header.Get("Sec-Fetch-Site") == "cross-site",
			!named && origin != "" && !sameOrigin(r.Host, origin):
			empty(w, http.StatusForbidden)
			return
		}
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		if named {
			h.Set("Access-Control-Allow-Origin", origin)
			h.Set("Access-Control-Allow-Methods", "POST, GET, DELETE, PUT, OPTIONS, PATCH")
			h.Set("Access-Control-Allow-Headers", "Content-Type, Authorization, Comfy-User")
			h.Set("Access-Control-Allow-Credentials", "true")
			h.Add("Vary", "Origin")
		}
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusOK)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) fromAllowedNetwork(remote string) bool {
	at, err := netip.ParseAddrPort(remote)
	if err != nil {
		return false
	}
	a := at.Addr().Unmap().WithZone("")
	return a.IsLoopback() || slices.ContainsFunc(s.cfg.Allow, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (s *Server) originNamed(origin string) bool {
	return slices.ContainsFunc(s.cfg.Origins, func(o string) bool { return o == "*" || strings.EqualFold(o, origin) })
}

// hostKnown refuses a name that a foreign page may have had pointed at a loopback
// address: there, the name is localhost or an address, or one that the config names.
func (s *Server) hostKnown(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local == nil {
		return true
	}
	at, err := netip.ParseAddrPort(local.String())
	if err != nil || !at.Addr().Unmap().IsLoopback() {
		return true
	}
	name, _ := splitHost(r.Host)
	if _, err := netip.ParseAddr(name); err == nil || name == "" || name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return true
	}
	return slices.ContainsFunc(s.cfg.Origins, func(o string) bool {
		u, err := url.Parse(o)
		return o == "*" || err == nil && strings.EqualFold(u.Hostname(), name)
	})
}

// splitHost is the lower-case name and the port, or "", of a Host header.
func splitHost(host string) (name, port string) {
	u := url.URL{Host: strings.ToLower(host)}
	return u.Hostname(), u.Port()
}

// sameOrigin compares names, and ports where both have one. An origin without a
// host (null, file://) is of no web page.
func sameOrigin(host, origin string) bool {
	u, err := url.Parse(strings.ToLower(origin))
	if err != nil {
		return false
	}
	name, port := splitHost(host)
	if u.Host == "" || name == "" {
		return true
	}
	if u.Port() != "" && port != "" && u.Port() != port {
		return false
	}
	return u.Hostname() == name
}

// body reads a whole request; it has answered when ok is false.
func (s *Server) body(w http.ResponseWriter, r *http.Request) (b []byte, ok bool) {
	size := r.ContentLength
	if size > s.cfg.MaxUploadBytes {
		s.tooLarge(w)
		return nil, false
	}
	if size < 0 {
		size = s.cfg.MaxUploadBytes
	}
	if size > smallBody {
		if err := s.bodies.Acquire(r.Context(), size); err != nil {
			return nil, false // the client went
		}
		defer s.bodies.Release(size)
	}
	var buf bytes.Buffer
	if r.ContentLength > 0 {
		buf.Grow(int(min(size, 8<<20)))
	}
	_, err := io.Copy(&buf, s.bodyOf(w, r))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		s.tooLarge(w)
		return nil, false
	}
	if err != nil {
		empty(w, http.StatusBadRequest)
		return nil, false
	}
	return buf.Bytes(), true
}

// bodyOf is a request's body, which ends with an error when it gets too large or
// comes too slowly. The time begins with the call.
func (s *Server) bodyOf(w http.ResponseWriter, r *http.Request) io.ReadCloser {
	b := &steadyBody{ReadCloser: r.Body, conn: http.NewResponseController(w), until: time.Now().Add(s.cfg.BodyPause)}
	return http.MaxBytesReader(w, b, s.cfg.MaxUploadBytes)
}

type steadyBody struct {
	io.ReadCloser
	conn  *http.ResponseController
	until time.Time // when more is to have come
}

// Read is io.Reader's.
func (b *steadyBody) Read(p []byte) (int, error) {
	_ = b.conn.SetReadDeadline(b.until) // not there in a test without a connection
	n, err := b.ReadCloser.Read(p)
	b.until = b.until.Add(time.Duration(n) * time.Second / slowestBody)
	if errors.Is(err, io.EOF) { // what is read from now on shows that the client is there
		_ = b.conn.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (s *Server) tooLarge(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	plain(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("Maximum request body size exceeded: the limit is %d bytes", s.cfg.MaxUploadBytes))
}

// readJSON reads a body that is a JSON object; it has answered when ok is false.
func (s *Server) readJSON(w http.ResponseWriter, r *http.Request) (o *object, ok bool) {
	b, ok := s.body(w, r)
	if !ok {
		return nil, false
	}
	v, err := compact(b)
	if err == nil {
		o, err = readObject(v)
	}
	if err != nil {
		s.trouble(w, r, err)
		return nil, false
	}
	return o, true
}

// query is the request's query, in which ; is a character as any other: Go would
// drop preview=webp;90.
func query(r *http.Request) url.Values {
	q, _ := url.ParseQuery(strings.ReplaceAll(r.URL.RawQuery, ";", "%3B")) // what can be read of it
	return q
}
