// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distorch/distorch/agent/device"
)

// Variables are those of the environment that hide cards.
func Variables() []string {
	return []string{"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"}
}

// hiddenStop is a variable that hides the card from CUDA, ROCm or Level Zero.
func hiddenStop(f Facts, g device.GPU) *Finding {
	var by []string
	switch g.Vendor {
	case device.NVIDIA:
		by = []string{"CUDA_VISIBLE_DEVICES"}
	case device.AMD:
		by = []string{"HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"}
	case device.Intel:
		by = []string{"ZE_AFFINITY_MASK"}
	}
	for _, name := range by {
		value, set := f.Environment[name]
		if !set || name == "ZE_AFFINITY_MASK" && value == "" {
			continue
		}
		peers := listed(f, g.Vendor)
		seen := visible(value, peers)
		i := slices.IndexFunc(peers, func(o device.GPU) bool { return o.PCI == g.PCI && o.UUID == g.UUID })
		if i >= 0 && !seen[i] {
			return &Finding{Severity: Warning, Text: fmt.Sprintf("hidden by %s=%s, which leaves %d of %d cards", name, value, count(seen), len(peers)), Mend: "unset " + name + " where the agent is started"}
		}
	}
	return nil
}

// listed are the cards that a vendor's runtime counts, in the order of the bus,
// which is how the torch engine has CUDA count.
func listed(f Facts, vendor string) []device.GPU {
	var out []device.GPU
	for _, g := range f.Cards.Of(vendor) {
		if !g.Integrated && (g.Listed || vendor != device.NVIDIA || f.Cards.NVIDIA.Fault != device.FaultNone) {
			out = append(out, g)
		}
	}
	return out
}

func count(seen []bool) (n int) {
	for _, s := range seen {
		if s {
			n++
		}
	}
	return n
}

// visible says which cards a list of numbers or UUIDs leaves. As CUDA does, it
// stops at the first entry that names nothing (CUDA programming guide,
// environment variables).
func visible(value string, cards []device.GPU) []bool {
	seen := make([]bool, len(cards))
	for entry := range strings.SplitSeq(value, ",") {
		entry = strings.TrimSpace(entry)
		i := slices.IndexFunc(cards, func(g device.GPU) bool {
			return strings.HasPrefix(entry, "GPU-") && strings.HasPrefix(g.UUID, entry) ||
				slices.ContainsFunc(g.MIG.Instances, func(m device.MIGInstance) bool { return m.UUID != "" && m.UUID == entry })
		})
		if n, err := strconv.Atoi(strings.SplitN(entry, ".", 2)[0]); err == nil && n >= 0 && n < len(cards) {
			i = n
		}
		if i < 0 {
			break
		}
		seen[i] = true
	}
	return seen
}

// torchStop is a PyTorch that cannot use the card.
func torchStop(f Facts, g device.GPU) *Finding {
	t := f.Torch
	if t == nil {
		return nil
	}
	if t.Problem != "" {
		return &Finding{Severity: Broken, Text: torchText(t), Mend: torchMend(f, t, g)}
	}
	if g.Architecture != "" && len(t.Archs) > 0 && sameVendor(t, g) && !Covers(t.Archs, g.Architecture) {
		return &Finding{Severity: Broken, Text: fmt.Sprintf("PyTorch %s+%s has no code for %s (it has %s)", t.Version, t.Runtime, g.Architecture, strings.Join(t.Archs, " ")), Mend: install(t.Python, g, f.Cards.NVIDIA)}
	}
	if !sameVendor(t, g) {
		return &Finding{Severity: Broken, Text: fmt.Sprintf("PyTorch %s+%s in %s is not built for %s", t.Version, t.Runtime, t.Python, kindOf(g)), Mend: install(t.Python, g, f.Cards.NVIDIA)}
	}
	return unseenStop(f, g)
}

// unseenStop is a card that PyTorch could use and does not list. Cards are told
// apart by UUID; where PyTorch has none, only their number can be compared.
func unseenStop(f Facts, g device.GPU) *Finding {
	var same []TorchDevice
	for _, d := range f.Torch.Devices {
		if d.Kind == kindOf(g) {
			same = append(same, d)
		}
	}
	at := slices.IndexFunc(same, func(d TorchDevice) bool { return d.UUID != "" && strings.EqualFold(d.UUID, g.UUID) })
	byUUID := g.UUID != "" && slices.ContainsFunc(same, func(d TorchDevice) bool { return d.UUID != "" })
	switch {
	case at >= 0 && same[at].Lacks:
		return &Finding{Severity: Broken, Text: fmt.Sprintf("PyTorch %s+%s has no code for it", f.Torch.Version, f.Torch.Runtime), Mend: install(f.Torch.Python, g, f.Cards.NVIDIA)}
	case at >= 0, !byUUID && len(same) >= len(listed(f, g.Vendor)), g.MIG.Enabled:
		return nil
	}
	return &Finding{Severity: Broken, Text: fmt.Sprintf("PyTorch %s+%s does not see it: it lists %d of %d cards", f.Torch.Version, f.Torch.Runtime, len(same), len(listed(f, g.Vendor))),
		Mend: f.Torch.Python + " -c 'import torch; torch.zeros(1, device=\"" + name(g) + "\")', which says why"}
}

// kindOf is PyTorch's word for a vendor's runtime, as agent/engine/torch has it.
func kindOf(g device.GPU) string {
	return map[string]string{device.NVIDIA: "cuda", device.AMD: "rocm", device.Intel: "xpu"}[g.Vendor]
}

// name is PyTorch's own name of a device of a vendor.
func name(g device.GPU) string {
	if g.Vendor == device.Intel {
		return "xpu"
	}
	return "cuda"
}

// sameVendor says whether a build of PyTorch is for a card's vendor.
func sameVendor(t *Torch, g device.GPU) bool {
	switch g.Vendor {
	case device.NVIDIA:
		return strings.HasPrefix(t.Runtime, "cu")
	case device.AMD:
		return strings.HasPrefix(t.Runtime, "rocm")
	}
	return strings.HasPrefix(t.Runtime, "xpu")
}

// Covers says whether code for archs runs on a card: machine code for its
// compute capability or an older one of the same major number, or PTX (compute_)
// of any older one (CUDA programming guide, binary and PTX compatibility).
// Architectures with a letter (sm_90a) and AMD's run on themselves alone.
func Covers(archs []string, card string) bool {
	have := capability(card)
	for _, a := range archs {
		c := capability(strings.Replace(a, "compute_", "sm_", 1))
		switch {
		case strings.SplitN(a, ":", 2)[0] == card: // gfx90a:sramecc+:xnack-
			return true
		case c == 0 || have == 0:
		case strings.HasPrefix(a, "sm_") && c/10 == have/10 && c <= have:
			return true
		case strings.HasPrefix(a, "compute_") && c <= have:
			return true
		}
	}
	return false
}

// capability reads sm_86 as 86; 0 for anything else.
func capability(arch string) int {
	m := regexp.MustCompile(`^sm_(\d{2,3})$`).FindStringSubmatch(arch)
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	return n
}

// wheels is the folder of PyTorch's wheels for a card: CUDA 12.6 is the last
// with code for cards before Turing, 13 needs a driver of its time.
func wheels(g device.GPU, d device.Driver) string {
	switch {
	case g.Vendor == device.AMD:
		return "rocm6.4"
	case g.Vendor == device.Intel:
		return "xpu"
	case capability(g.Architecture) > 0 && capability(g.Architecture) < 75:
		return "cu126"
	}
	major, _, _ := strings.Cut(d.CUDA, ".")
	if n, err := strconv.Atoi(major); err == nil && n < 13 {
		return "cu128"
	}
	return "cu130"
}

// install is the command that gets PyTorch for a card.
func install(python string, g device.GPU, d device.Driver) string {
	return fmt.Sprintf("%s -m pip install --upgrade torch --index-url https://download.pytorch.org/whl/%s", cmp.Or(python, "python3"), wheels(g, d))
}

func torchText(t *Torch) string {
	switch {
	case t.Problem == TorchAbsent && t.Python == "":
		return "no Python with PyTorch is found, which computes on cards"
	case t.Problem == TorchAbsent:
		return "no PyTorch in " + t.Python + ", which computes on cards"
	case t.Problem == TorchTooOld:
		return "PyTorch is too old: " + t.Error
	case t.Problem == TorchBroken:
		return "PyTorch does not load: " + t.Error
	}
	return "PyTorch cannot be asked: " + t.Error
}

func torchMend(f Facts, t *Torch, g device.GPU) string {
	switch t.Problem {
	case TorchAbsent:
		return install(t.Python, g, f.Cards.NVIDIA) + ", or agent.torch.python: that of a ComfyUI"
	case TorchBroken:
		return install(t.Python, g, f.Cards.NVIDIA) + " --force-reinstall"
	case TorchTooOld:
		return install(t.Python, g, f.Cards.NVIDIA)
	}
	return cmp.Or(t.Python, "python3") + " -c 'import torch; print(torch.__version__)', which says more"
}

// torch is the machine's PyTorch.
func torch(f Facts) []Finding {
	t := f.Torch
	switch {
	case t == nil:
		return nil
	case t.Problem == "":
		var kinds []string
		for _, d := range t.Devices {
			kinds = append(kinds, d.ID)
		}
		text := fmt.Sprintf("PyTorch %s+%s in %s", t.Version, t.Runtime, t.Python)
		if len(kinds) > 0 {
			text += "; sees " + strings.Join(kinds, ", ")
		}
		return []Finding{{Severity: OK, Check: CheckTorch, Text: text}}
	case len(f.Cards.GPUs) == 0:
		// The native engine needs none, and macOS's cards are seen by PyTorch alone.
		if f.Engine == "torch" {
			return []Finding{{Severity: Broken, Check: CheckTorch, Text: torchText(t), Mend: cmp.Or(t.Python, "python3") + " -m pip install torch"}}
		}
		return []Finding{{Severity: Note, Check: CheckTorch, Text: torchText(t)}}
	}
	return nil // said of each card
}
