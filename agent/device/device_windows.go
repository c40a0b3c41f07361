// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package device

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/distorch/distorch/model/tensor"
)

// memoryStatusEx is MEMORYSTATUSEX (sysinfoapi.h).
type memoryStatusEx struct {
	length, load                                 uint32
	totalPhys, availPhys, totalPage, availPage   uint64
	totalVirtual, availVirtual, availExtendedVir uint64
}

func ram() (Memory, error) {
	m := memoryStatusEx{length: uint32(unsafe.Sizeof(memoryStatusEx{}))}
	proc := windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalMemoryStatusEx")
	if ok, _, err := proc.Call(uintptr(unsafe.Pointer(&m))); ok == 0 {
		return Memory{}, fmt.Errorf("read this machine's memory: %w", err)
	}
	return Memory{Total: tensor.Bytes(m.totalPhys), Available: tensor.Bytes(m.availPhys)}, nil
}

func peakResident() tensor.Bytes { return 0 }

func cpuModel() string { return os.Getenv("PROCESSOR_IDENTIFIER") }

// cpuStepping: the model names the stepping already.
func cpuStepping() string { return os.Getenv("PROCESSOR_REVISION") }
