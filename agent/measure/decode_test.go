// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package measure

import "testing"

func TestDecode(t *testing.T) {
	rate, err := Decode()
	if err != nil || rate < 1e6 || rate > 1e12 {
		t.Errorf("%v bytes/s, %v", rate, err)
	}
	t.Logf("%.0f MB/s", rate/1e6)
}
