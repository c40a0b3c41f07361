// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/distorch/distorch/agent/device"
	"github.com/distorch/distorch/model/tensor"
)

// card finds what is in the way of one card. What keeps it from being used
// comes first, and alone: what would be found behind it cannot be known.
func card(f Facts, g device.GPU) []Finding {
	stop := map[string]func(Facts, device.GPU) *Finding{device.NVIDIA: nvidiaStop, device.AMD: amdStop, device.Intel: intelStop}[g.Vendor]
	for _, look := range []func(Facts, device.GPU) *Finding{stop, modeStop, hiddenStop, torchStop, engineStop} {
		if look == nil {
			continue // a vendor that a newer version knows
		}
		if found := look(f, g); found != nil {
			found.Check, found.Subject, found.Unused = CheckCard, subject(g), true
			return []Finding{*found}
		}
	}
	var out []Finding
	for _, look := range []func(Facts, device.GPU) *Finding{instances, exclusive, taken, narrow} {
		if found := look(f, g); found != nil {
			found.Check, found.Subject = CheckCard, subject(g)
			out = append(out, *found)
		}
	}
	return append([]Finding{{Severity: OK, Check: CheckCard, Subject: subject(g), Text: describe(g)}}, out...)
}

// engineStop is an engine that computes on the CPU alone.
func engineStop(f Facts, g device.GPU) *Finding {
	if f.Engine != "native" {
		return nil
	}
	return &Finding{Severity: Note, Text: "nothing is in its way (" + describe(g) + "), but agent.engine is native, which computes on the CPU"}
}

// describe is a usable card in one line.
func describe(g device.GPU) string {
	var parts []string
	switch {
	case g.MemoryFree > 0 || g.MemoryUsed > 0:
		parts = append(parts, fmt.Sprintf("%v, %v free", g.MemoryTotal, g.MemoryFree))
	case g.MemoryTotal > 0:
		parts = append(parts, g.MemoryTotal.String())
	}
	if generation := cmp.Or(g.PCIe.MaxGeneration, g.PCIe.Generation); generation > 0 {
		parts = append(parts, fmt.Sprintf("PCIe %d x%d", generation, cmp.Or(g.PCIe.Width, g.PCIe.MaxWidth)))
	}
	if g.Architecture != "" {
		parts = append(parts, g.Architecture)
	}
	if n := len(g.NVLinks); n > 0 {
		parts = append(parts, fmt.Sprintf("%d NVLinks", n))
	}
	return strings.Join(append(parts, "seen by "+strings.Join(g.Sources, ", ")), "; ")
}

// nvidiaStop is what keeps NVIDIA's driver from a card.
func nvidiaStop(f Facts, g device.GPU) *Finding {
	d := f.Cards.NVIDIA
	switch {
	case g.Excluded:
		return &Finding{Severity: Warning, Text: "the driver is told to leave it alone (NVreg_ExcludedGpus)", Mend: "take it out of the options in /etc/modprobe.d, then: sudo reboot"}
	case !slices.Contains(g.Sources, device.SourceSysfs): // known from the driver alone: WSL, Windows
	case g.Driver == "nouveau" || g.Driver == "nova_core" || g.Driver == "nova-core":
		return &Finding{Severity: Broken, Text: "held by the driver " + g.Driver + ", which does not compute", Mend: installNVIDIA(f)}
	case g.Driver != "" && g.Driver != "nvidia":
		return given(g)
	case g.Driver == "" && d.Kernel != "":
		return &Finding{Severity: Broken, Text: fmt.Sprintf("NVIDIA's driver %s is loaded and does not take it: it may be too old or too new for the card", d.Kernel), Mend: "sudo dmesg | grep -i nvrm, which says why; " + installNVIDIA(f)}
	case g.Driver == "" && (d.SMI != "" || d.Library != ""):
		return &Finding{Severity: Broken, Text: "the driver is installed and its kernel module is not loaded" + onHost(f), Mend: "sudo modprobe nvidia; if that finds no module, install the driver again for this kernel; if it speaks of a key, sign the module or turn Secure Boot off"}
	case g.Driver == "":
		return &Finding{Severity: Broken, Text: "no driver: the card is on the PCI bus and nothing holds it" + onHost(f), Mend: installNVIDIA(f)}
	}
	if d.Fault == device.FaultMismatch {
		return &Finding{Severity: Broken, Text: fmt.Sprintf("driver and library differ: the kernel runs %s, the installed library is another one (an update without a restart)", cmp.Or(d.Kernel, "an older driver")), Mend: "sudo reboot"}
	}
	if found := nvidiaNodes(f, g); found != nil {
		return found
	}
	return nvidiaSilent(f, g)
}

// given is a card that a driver for virtual machines holds.
func given(g device.GPU) *Finding {
	return &Finding{Severity: Warning, Text: "held by the driver " + g.Driver + ", which gives it to a virtual machine", Mend: "run an agent in that machine, or take the card back from it and bind the vendor's driver"}
}

// onHost says where to act for a process in a container.
func onHost(f Facts) string {
	if f.Container == "" {
		return ""
	}
	return " (on the host, not in this container)"
}

// installNVIDIA is how a system gets NVIDIA's driver.
func installNVIDIA(f Facts) string {
	switch f.OS {
	case "ubuntu", "linuxmint", "pop":
		return "sudo ubuntu-drivers install && sudo reboot"
	case "debian":
		return "sudo apt install nvidia-driver && sudo reboot (from contrib and non-free)"
	case "fedora":
		return "sudo dnf install akmod-nvidia xorg-x11-drv-nvidia-cuda && sudo reboot (from RPM Fusion)"
	case "arch", "manjaro":
		return "sudo pacman -S nvidia-open && sudo reboot"
	}
	return "install the driver of https://www.nvidia.com/drivers, then restart the machine"
}

// nvidiaNodes looks at the device files.
func nvidiaNodes(f Facts, g device.GPU) *Finding {
	own := "/dev/nvidia" + strconv.Itoa(g.Minor)
	for _, path := range []string{"/dev/nvidiactl", own, "/dev/nvidia-uvm"} {
		switch state := f.Cards.Node(path); {
		case state == device.NodeDenied:
			return &Finding{Severity: Broken, Text: "this user may not open " + path, Mend: "sudo usermod -aG video,render $USER, then log in again"}
		case state != device.NodeMissing:
		case path == own && f.Container != "":
			return &Finding{Severity: Warning, Text: "this container was not given it: " + path + " is not there", Mend: giveAll(f)}
		case f.Container != "":
			return &Finding{Severity: Broken, Text: "this container runs without NVIDIA's runtime: the card is there and " + path + " is not", Mend: giveAll(f)}
		default:
			return &Finding{Severity: Broken, Text: "the driver is loaded and " + path + " is not there", Mend: "sudo nvidia-modprobe -u -c=0"}
		}
	}
	return nil
}

// giveAll is how a container gets cards.
func giveAll(f Facts) string {
	switch f.Container {
	case "kubernetes":
		return "in the pod: runtimeClassName: nvidia, and resources.limits: nvidia.com/gpu: 1 (the cluster needs NVIDIA's device plugin)"
	case "podman":
		return "podman run --device nvidia.com/gpu=all … (after: sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml)"
	case "lxc":
		return "lxc config device add CONTAINER gpu gpu"
	}
	return "docker run --gpus all … (needs nvidia-container-toolkit on the host)"
}

// nvidiaSilent is a driver that is there and does not answer, or not for this
// card.
func nvidiaSilent(f Facts, g device.GPU) *Finding {
	d := f.Cards.NVIDIA
	answered := slices.ContainsFunc(f.Cards.Sources, func(s device.Source) bool {
		return (s.Name == device.SourceNVML || s.Name == device.SourceSMI) && s.Error == ""
	})
	switch {
	case g.Listed:
		return nil
	case answered && f.Container != "":
		return &Finding{Severity: Warning, Text: "this container was not given it", Mend: giveAll(f)}
	case answered:
		return &Finding{Severity: Broken, Text: "on the PCI bus, and the driver does not list it: it may have fallen off the bus", Mend: "sudo dmesg | grep -iE 'nvrm|xid', which says why; then switch the machine off and on"}
	case d.Library == "" && f.Container != "" && f.Platform != "":
		return &Finding{Severity: Broken, Text: "the driver's libraries are not in this container", Mend: "set NVIDIA_DRIVER_CAPABILITIES=compute,utility for it"}
	case d.Fault == device.FaultNoLibrary && d.Library == "":
		return &Finding{Severity: Broken, Text: "the kernel module is loaded and the driver's libraries are not found", Mend: installNVIDIA(f)}
	case d.Fault == device.FaultNoDriver:
		return &Finding{Severity: Broken, Text: "NVIDIA's library does not find the kernel module", Mend: "sudo modprobe nvidia, or: sudo reboot"}
	case d.Fault == device.FaultPermission:
		return &Finding{Severity: Broken, Text: "this user may not ask the driver", Mend: "sudo usermod -aG video,render $USER, then log in again"}
	case d.Fault == device.FaultSilent:
		return &Finding{Severity: Broken, Text: "the driver hangs: " + d.Detail, Mend: "sudo dmesg | grep -iE 'nvrm|xid', which says why; then: sudo reboot"}
	case d.Fault == device.FaultOther:
		return &Finding{Severity: Broken, Text: "the driver does not answer: " + d.Detail, Mend: "nvidia-smi, which says more; sudo dmesg | grep -iE 'nvrm|xid'"}
	}
	return nil
}

// amdStop is what keeps AMD's driver from a card.
func amdStop(f Facts, g device.GPU) *Finding {
	switch {
	case g.Integrated:
		return &Finding{Severity: Note, Text: "graphics in the processor, which share its RAM"}
	case g.Driver == "":
		return &Finding{Severity: Broken, Text: "no driver: the card is on the PCI bus and nothing holds it" + onHost(f), Mend: "sudo modprobe amdgpu; if that finds no module: https://rocm.docs.amd.com, for this system"}
	case g.Driver == "radeon":
		return &Finding{Severity: Broken, Text: "held by the driver radeon, which does not compute: the card is too old for ROCm"}
	case g.Driver != "amdgpu":
		return given(g)
	}
	return renderStop(f, g, "/dev/kfd", "docker run --device /dev/kfd --device /dev/dri …", "resources.limits: amd.com/gpu: 1 (the cluster needs AMD's device plugin)")
}

// intelStop is what keeps Intel's driver from a card.
func intelStop(f Facts, g device.GPU) *Finding {
	switch g.Driver {
	case "":
		return &Finding{Severity: Broken, Text: "no driver: the card is on the PCI bus and nothing holds it" + onHost(f), Mend: "sudo modprobe xe (kernel 6.8 or newer)"}
	case "xe", "i915":
		return renderStop(f, g, g.Render, "docker run --device /dev/dri …", "resources.limits: gpu.intel.com/xe: 1 (the cluster needs Intel's device plugin)")
	}
	return given(g)
}

// renderStop looks at the files by which programs compute on cards of AMD and
// Intel.
func renderStop(f Facts, g device.GPU, first, docker, pod string) *Finding {
	for _, path := range []string{first, g.Render} {
		switch state := f.Cards.Node(path); {
		case state == device.NodeDenied:
			return &Finding{Severity: Broken, Text: "this user may not open " + path, Mend: "sudo usermod -aG render,video $USER, then log in again"}
		case state == device.NodeMissing && f.Container == "kubernetes":
			return &Finding{Severity: Broken, Text: "this container was not given it: " + path + " is not there", Mend: "in the pod: " + pod}
		case state == device.NodeMissing && f.Container != "":
			return &Finding{Severity: Broken, Text: "this container was not given it: " + path + " is not there", Mend: docker}
		case state == device.NodeMissing:
			return &Finding{Severity: Broken, Text: "the driver " + g.Driver + " is loaded and " + path + " is not there", Mend: "sudo dmesg | grep -iE 'amdgpu|kfd|xe|i915', which says why"}
		}
	}
	return nil
}

// modeStop is a mode of the card in which nobody computes on it.
func modeStop(_ Facts, g device.GPU) *Finding {
	switch {
	case g.ComputeMode == device.ModeProhibited:
		return &Finding{Severity: Broken, Text: "its compute mode is prohibited", Mend: "sudo nvidia-smi -i " + id(g) + " -c DEFAULT"}
	case g.MIG.Enabled && len(g.MIG.Instances) == 0:
		return &Finding{Severity: Broken, Text: "MIG is on and the card has no instance, so that CUDA finds no device", Mend: "sudo nvidia-smi -i " + id(g) + " -mig 0"}
	case g.ComputeMode == device.ModeExclusiveProcess && len(others(g)) > 0:
		return &Finding{Severity: Broken, Text: "in exclusive mode, and held by " + names(others(g)), Mend: "sudo nvidia-smi -i " + id(g) + " -c DEFAULT"}
	}
	return nil
}

// id is what nvidia-smi knows a card by.
func id(g device.GPU) string { return cmp.Or(g.PCI, g.UUID) }

func exclusive(_ Facts, g device.GPU) *Finding {
	if g.ComputeMode != device.ModeExclusiveProcess && g.ComputeMode != device.ModeExclusiveThread {
		return nil
	}
	return &Finding{Severity: Warning, Text: "in exclusive mode: one process alone may use it, so that the agent and ComfyUI cannot share it", Mend: "sudo nvidia-smi -i " + id(g) + " -c DEFAULT"}
}

func instances(_ Facts, g device.GPU) *Finding {
	if !g.MIG.Enabled {
		return nil
	}
	var list []string
	for _, m := range g.MIG.Instances {
		list = append(list, strings.TrimSpace(m.Model+" "+m.UUID))
	}
	return &Finding{Severity: Warning, Text: fmt.Sprintf("MIG cuts it into %s; CUDA gives a process one of them", strings.Join(list, ", ")),
		Mend: "sudo nvidia-smi -i " + id(g) + " -mig 0 for the whole card, or CUDA_VISIBLE_DEVICES=" + g.MIG.Instances[0].UUID + " for one instance"}
}

// names lists processes: "python3 (pid 4242, 10.7 GB)", the largest first.
func names(all []device.Process) string {
	sorted := slices.Clone(all)
	slices.SortStableFunc(sorted, func(a, b device.Process) int { return cmp.Compare(b.Memory, a.Memory) })
	var out []string
	for i, p := range sorted {
		if i == 5 {
			out = append(out, fmt.Sprintf("%d more", len(sorted)-i))
			break
		}
		s := fmt.Sprintf("%s (pid %d", cmp.Or(p.Name, "a process"), p.PID)
		if p.Memory > 0 {
			s += ", " + p.Memory.String()
		}
		out = append(out, s+")")
	}
	return strings.Join(out, ", ")
}

// others are the processes that are not distorch's own.
func others(g device.GPU) []device.Process {
	return slices.DeleteFunc(slices.Clone(g.Processes), func(p device.Process) bool { return p.Own })
}

// taken is memory of the card that others hold. Less than a sixteenth, and less
// than a desktop takes, is no news.
func taken(_ Facts, g device.GPU) *Finding {
	used := g.MemoryTotal - g.MemoryFree
	for _, p := range g.Processes {
		if p.Own {
			used -= p.Memory
		}
	}
	if g.MemoryTotal == 0 || g.MemoryUsed == 0 || used < g.MemoryTotal/16 || used < tensor.GB {
		return nil
	}
	found := &Finding{Severity: Warning, Text: fmt.Sprintf("%v of %v is taken", used, g.MemoryTotal), Mend: "end what holds it, or leave it that much: agent.reserve"}
	if by := others(g); len(by) > 0 {
		largest := slices.MaxFunc(by, func(a, b device.Process) int { return cmp.Compare(a.Memory, b.Memory) })
		found.Text += " by " + names(by)
		found.Mend = fmt.Sprintf("kill %d if nobody needs it, or leave it that much: agent.reserve", largest.PID)
	}
	return found
}

// narrow is a link with fewer lanes than card and slot have.
func narrow(_ Facts, g device.GPU) *Finding {
	l := g.PCIe
	if l.Width == 0 || l.MaxWidth == 0 || l.Width >= l.MaxWidth {
		return nil
	}
	found := &Finding{Severity: Note, Text: fmt.Sprintf("its link has %d of %d lanes: weights that rest in RAM come at that part of the speed", l.Width, l.MaxWidth)}
	if l.Width*4 <= l.MaxWidth {
		found.Severity, found.Mend = Warning, "put it in a slot with more lanes (the board's manual says which), without a riser"
	}
	return found
}

// cards looks at the machine's cards together.
func cards(f Facts) []Finding {
	if len(f.Cards.GPUs) == 0 {
		return []Finding{{Severity: Note, Check: CheckCards, Text: "no card of NVIDIA, AMD or Intel: the machine computes on its CPU and lends its RAM"}}
	}
	unknown := slices.ContainsFunc(f.Cards.Of(device.NVIDIA), func(g device.GPU) bool { return !g.Listed && nvidiaStop(f, g) == nil })
	if unknown {
		text, mend := "neither NVML nor nvidia-smi tells the cards' memory", "install nvidia-smi (with the driver's utilities)"
		if !f.NVML {
			text = "this build has no NVML and there is no nvidia-smi: the cards' memory is not known"
		}
		return []Finding{{Severity: Warning, Check: CheckCards, Text: text, Mend: mend}}
	}
	return nil
}
