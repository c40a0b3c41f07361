// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/distorch/distorch/transport/identity"
)

// webClient calls a cluster's HTTPS endpoint.
type webClient struct {
	connection identity.Connection
	http       *http.Client
}

const tokenWithin = 10 * time.Second // from its making to the endpoint

// webClient makes a token and waits until the endpoint knows it.
func (c *cluster) webClient(ctx context.Context) (*webClient, error) {
	line, err := c.command(ctx, "token", "create", "--client", "bench")
	if err != nil {
		return nil, err
	}
	connection, err := identity.ParseConnection(string(line))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(connection.CA)
	w := &webClient{connection, &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: identity.WebHost}, MaxIdleConnsPerHost: loadClients,
		ReadBufferSize: 1 << 18, WriteBufferSize: 1 << 18,
	}}}
	ctx, cancel := context.WithTimeout(ctx, tokenWithin)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err = w.call(ctx, "GET", "/v1", nil); err == nil {
			return w, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

// call is the body of an answer that is a success.
func (w *webClient) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+w.connection.Addresses[0]+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+w.connection.Secret)
	res, err := w.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var out []byte
	if n := res.ContentLength; n > 0 {
		out = make([]byte, n)
		_, err = io.ReadFull(res.Body, out)
	} else {
		out, err = io.ReadAll(res.Body)
	}
	switch {
	case err != nil:
		return nil, err
	case res.StatusCode >= http.StatusBadRequest:
		return nil, fmt.Errorf("%s %s: %d %.300s", method, path, res.StatusCode, out)
	}
	return out, nil
}

// loopback is how long n bytes take over TLS from one end to the other, and n
// bytes back.
func loopback(ctx context.Context, n int64) (_ time.Duration, err error) {
	ca, err := identity.NewCA(time.Now())
	if err != nil {
		return 0, err
	}
	creds, err := ca.Issue(identity.Subject{Role: identity.RoleCoordinator, Name: "bench"}, time.Now())
	if err != nil {
		return 0, err
	}
	plain, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	ln := tls.NewListener(plain, creds.ServerTLS([]string{identity.ALPNBulk}))
	defer ln.Close()
	other := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			other <- err
			return
		}
		defer conn.Close()
		buf := make([]byte, n)
		for range 2 { // the first time for the connection's buffers
			if _, err = io.ReadFull(conn, buf); err == nil {
				_, err = conn.Write(buf)
			}
		}
		other <- err
	}()
	conn, err := creds.Dial(ctx, plain.Addr().String(), identity.ALPNBulk, identity.Expect{})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	buf := make([]byte, n)
	var took time.Duration
	for range 2 {
		began := time.Now()
		if _, err = conn.Write(buf); err == nil {
			_, err = io.ReadFull(conn, buf)
		}
		took = time.Since(began)
	}
	return took, errors.Join(err, <-other)
}
