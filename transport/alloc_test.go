// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"testing"
	"unsafe"
)

func TestAlloc(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 1 << 20, 2<<20 + 1, 5 << 20} {
		b, free, err := Alloc(n)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != n || cap(b) != n {
			t.Fatalf("%d bytes: len %d cap %d", n, len(b), cap(b))
		}
		if n > 0 {
			if uintptr(unsafe.Pointer(&b[0]))%64 != 0 {
				t.Errorf("%d bytes are not aligned", n)
			}
			for _, v := range b {
				if v != 0 {
					t.Fatalf("%d bytes are not zero", n)
				}
			}
			b[n-1] = 1
		}
		free()
		free()
	}
	if _, _, err := Alloc(-1); err == nil {
		t.Error("-1 bytes were given")
	}
}
