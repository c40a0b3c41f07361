// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"

	"github.com/coder/websocket"
)

// maxFrame is of one frame: a preview, a final picture as PNG, or the progress of
// a large graph.
const maxFrame = 256 << 20

// frame is one message of a worker's socket.
type frame struct {
	binary bool
	body   []byte
}

// socket is the one connection over which a worker says what it does.
type socket struct{ conn *websocket.Conn }

// dial opens the socket and says that previews may carry the node's id. It waits for
// the worker's first words: before those it does not know the socket yet, and what it
// says of a prompt would be lost. With flags it answers what is said here.
func dial(ctx context.Context, client *http.Client, base, id string, flags bool) (*socket, error) {
	dctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, resp, err := websocket.Dial(dctx, base+"/ws?clientId="+url.QueryEscape(id), &websocket.DialOptions{HTTPClient: client}) //nolint:bodyclose // closed by the package
	if err != nil {
		if resp != nil {
			return nil, fmt.Errorf("/ws answered %s: %w", resp.Status, err)
		}
		return nil, err
	}
	conn.SetReadLimit(maxFrame)
	s := &socket{conn}
	if err := conn.Write(dctx, websocket.MessageText, []byte(`{"type":"feature_flags","data":{"supports_preview_metadata":true}}`)); err != nil {
		s.close()
		return nil, err
	}
	for {
		f, err := s.read(dctx)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("no first message: %w", err)
		}
		if !flags || bytes.HasPrefix(f.body, []byte(`{"type":"feature_flags"`)) || bytes.HasPrefix(f.body, []byte(`{"type": "feature_flags"`)) {
			return s, nil
		}
	}
}

func (s *socket) read(ctx context.Context) (frame, error) {
	kind, body, err := s.conn.Read(ctx)
	return frame{kind == websocket.MessageBinary, body}, err
}

func (s *socket) ping(ctx context.Context) error { return s.conn.Ping(ctx) }

func (s *socket) close() { _ = s.conn.CloseNow() } //nolint:errcheck // the other side may be gone
