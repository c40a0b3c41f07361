// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// A driver's library of long ago, with one card: what it does not have would end
// a process that calls it.
#include <stdlib.h>
#include <string.h>

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t;
struct memory { unsigned long long total, free, used; };
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };

static int started;
static int card;

nvmlReturn_t nvmlInit_v2(void) {
	const char *fails = getenv("FAKE_NVML_INIT");
	started = !fails;
	return fails ? atoi(fails) : 0;
}
nvmlReturn_t nvmlShutdown(void) { started = 0; return 0; }
nvmlReturn_t nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "331.20", n); return 0; }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *n) { *n = started; return 0; }
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned i, nvmlDevice_t *d) { *d = &card; return i ? 2 : 0; }
nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *s, unsigned n) { strncpy(s, "GPU-old", n); return 0; }
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *s, unsigned n) { strncpy(s, "Tesla K80", n); return 0; }
nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t d, unsigned *n) { *n = 0; return 0; }
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, struct memory *m) {
	m->total = 12ull << 30, m->free = 11ull << 30, m->used = 1ull << 30;
	return 0;
}
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, struct pci *p) {
	memset(p, 0, sizeof *p);
	strcpy(p->bus_id, "00000000:84:00.0");
	return 0;
}
nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t d, unsigned *mode) { *mode = 3; return 0; }
