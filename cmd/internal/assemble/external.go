// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/distorch/distorch/cmd/internal/config"
)

// externalTLS is for an etcd that is not distorch's own: its CA and the
// certificate that it knows us by.
func externalTLS(e config.Etcd) (*tls.Config, error) {
	pem, err := os.ReadFile(e.CAFile)
	if err != nil {
		return nil, fmt.Errorf("coordinator.etcd.ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("coordinator.etcd.ca_file: %s holds no PEM certificate", e.CAFile)
	}
	cert, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("coordinator.etcd.cert_file and key_file: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{cert}}, nil
}
