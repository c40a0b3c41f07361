// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"
	"sync"

	"github.com/distorch/distorch/model/tensor"
)

// ErrNoMemory is in the chain of an error about an account's limit.
var ErrNoMemory = errors.New("device memory")

// Account counts what was handed out of a memory. Sessions that share a memory
// share its Account.
type Account struct {
	limit tensor.Bytes // 0: none
	mend  string       // what to do when it is full

	mu         sync.Mutex
	used, peak tensor.Bytes
}

// NewAccount is an empty account of limit bytes, 0 for no limit. mend is the
// end of the error about it: "raise agent.memory or place fewer blocks here".
func NewAccount(limit tensor.Bytes, mend string) *Account {
	return &Account{limit: limit, mend: mend}
}

// Take counts n bytes as used, or says with ErrNoMemory that they are not there.
func (a *Account) Take(n tensor.Bytes) error {
	if n < 0 {
		return fmt.Errorf("buffer of %d bytes", int64(n))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.limit > 0 && n > a.limit-a.used {
		return fmt.Errorf("%w: %v asked, %v of %v in use; %s", ErrNoMemory, n, a.used, a.limit, a.mend)
	}
	a.used += n
	a.peak = max(a.peak, a.used)
	return nil
}

// Give counts n bytes as free again.
func (a *Account) Give(n tensor.Bytes) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used -= n
}

// Use is what is in use, its peak and the limit.
func (a *Account) Use() (used, peak, limit tensor.Bytes) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.used, a.peak, a.limit
}

// Restart makes what is in use the peak, as when nothing had been before.
func (a *Account) Restart() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.peak = a.used
}
