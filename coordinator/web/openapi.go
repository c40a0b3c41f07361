// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	_ "embed" // openapi.yaml
	"net/http"
)

//go:embed openapi.yaml
var openAPIText []byte

func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request, _ Client) error {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(openAPIText) // a client that is gone is nobody to tell
	return nil
}
