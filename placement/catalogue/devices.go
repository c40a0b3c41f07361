// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package catalogue

import (
	"slices"

	"github.com/distorch/distorch/placement"
)

const (
	gib  = 1 << 30
	giga = 1e9
	tera = 1e12
)

// peaks are TFLOP/s in bf16, f16 and f32.
func peaks(bf16, f16, f32 float64) []Peak {
	return []Peak{{"bf16", bf16 * tera}, {"f16", f16 * tera}, {"f32", f32 * tera}}
}

// Entries are all devices: GPUs by maker and age, then processors.
func Entries() []Entry { return slices.Concat(geForce(), professional(), others(), processors()) }

// geForce are NVIDIA's desktop cards.
func geForce() []Entry {
	return []Entry{
		{
			Name: "rtx3060-12gb", Aliases: []string{"rtx3060"}, Title: "NVIDIA GeForce RTX 3060", Kind: placement.KindGPU, Tier: Desktop,
			Memory: 12 * gib, Memrate: 360 * giga, Peaks: peaks(25.5, 25.5, 12.7),
			PCIe: Slot{4, 16}, Source: "NVIDIA GeForce RTX 30 product page; tensor rate as in the GA102 whitepaper",
		}, {
			Name: "rtx3080", Aliases: []string{"rtx3080-10gb"}, Title: "NVIDIA GeForce RTX 3080", Kind: placement.KindGPU, Tier: Desktop,
			Memory: 10 * gib, Memrate: 760 * giga, Peaks: peaks(59.5, 59.5, 29.8),
			PCIe: Slot{4, 16}, Source: "NVIDIA Ampere GA102 whitepaper, table of GeForce specifications",
		}, {
			Name: "rtx3090", Title: "NVIDIA GeForce RTX 3090", Kind: placement.KindGPU, Tier: Desktop,
			Memory: 24 * gib, Memrate: 936 * giga, Peaks: peaks(71, 71, 35.6),
			PCIe: Slot{4, 16}, Source: "NVIDIA Ampere GA102 whitepaper, table of GeForce specifications",
			Note: "with an NVLink bridge write peer: 50.8GB/s",
		}, {
			Name: "rtx4060ti-16gb", Aliases: []string{"rtx4060ti"}, Title: "NVIDIA GeForce RTX 4060 Ti", Kind: placement.KindGPU, Tier: Desktop,
			Memory: 16 * gib, Memrate: 288 * giga, Peaks: peaks(44.1, 44.1, 22.1),
			PCIe: Slot{4, 8}, Source: "NVIDIA Ada whitepaper, appendix",
		}, {
			Name: "rtx4070", Title: "NVIDIA GeForce RTX 4070", Kind: placement.KindGPU, Tier: Desktop,
			Memory: 12 * gib, Memrate: 504 * giga, Peaks: peaks(58.3, 58.3, 29.1),
			PCIe: Slot{4, 16}, Source: "NVIDIA Ada whitepaper, appendix",
		}, {
			Name: "rtx4080", Title: "NVIDIA GeForce RTX 4080", Kind: placement.KindGPU, Tier: Desktop,
			Memory: 16 * gib, Memrate: 716.8 * giga, Peaks: peaks(97.5, 97.5, 48.7),
			PCIe: Slot{4, 16}, Source: "NVIDIA Ada whitepaper, appendix",
		}, {
			Name: "rtx4090", Aliases: []string{"4090"}, Title: "NVIDIA GeForce RTX 4090", Kind: placement.KindGPU, Tier: Desktop,
			Memory: 24 * gib, Memrate: 1008 * giga, Peaks: peaks(165.2, 165.2, 82.6),
			PCIe: Slot{4, 16}, Source: "NVIDIA Ada whitepaper, appendix",
		}, {
			Name: "rtx5070ti", Title: "NVIDIA GeForce RTX 5070 Ti", Kind: placement.KindGPU, Tier: Desktop,
			Memory: 16 * gib, Memrate: 896 * giga, Peaks: peaks(87.9, 87.9, 43.9),
			PCIe: Slot{5, 16}, Source: "NVIDIA RTX Blackwell whitepaper, appendix",
		}, {
			Name: "rtx5080", Title: "NVIDIA GeForce RTX 5080", Kind: placement.KindGPU, Tier: Desktop,
			Memory: 16 * gib, Memrate: 960 * giga, Peaks: peaks(112.6, 112.6, 56.3),
			PCIe: Slot{5, 16}, Source: "NVIDIA RTX Blackwell whitepaper, appendix",
		}, {
			Name: "rtx5090", Aliases: []string{"5090"}, Title: "NVIDIA GeForce RTX 5090", Kind: placement.KindGPU, Tier: Desktop,
			Memory: 32 * gib, Memrate: 1792 * giga, Peaks: peaks(209.5, 209.5, 104.8),
			PCIe: Slot{5, 16}, Source: "NVIDIA RTX Blackwell whitepaper, appendix",
		}, {
			Name: "gtx1660ti", Aliases: []string{"1660ti"}, Title: "NVIDIA GeForce GTX 1660 Ti", Kind: placement.KindGPU, Tier: Desktop,
			Memory: 6 * gib, Memrate: 288 * giga, Peaks: peaks(5.4, 10.9, 5.4),
			PCIe: Slot{3, 16}, Source: "NVIDIA Turing whitepaper; product page",
			Note: "no tensor cores; bf16 runs as f32",
		},
	}
}

// professional are NVIDIA's workstation and server cards.
func professional() []Entry {
	return []Entry{
		{
			Name: "a4000", Aliases: []string{"rtxa4000"}, Title: "NVIDIA RTX A4000", Kind: placement.KindGPU, Tier: Full,
			Memory: 16 * gib, Memrate: 448 * giga, Peaks: peaks(76.7, 76.7, 19.2),
			PCIe: Slot{4, 16}, Source: "NVIDIA RTX A4000 datasheet, half of the sparse tensor rate",
		}, {
			Name: "a5000", Aliases: []string{"rtxa5000"}, Title: "NVIDIA RTX A5000", Kind: placement.KindGPU, Tier: Full,
			Memory: 24 * gib, Memrate: 768 * giga, Peaks: peaks(111.1, 111.1, 27.8),
			PCIe: Slot{4, 16}, Source: "NVIDIA RTX A5000 datasheet, half of the sparse tensor rate",
			Note: "with an NVLink bridge write peer: 50GB/s",
		}, {
			Name: "a6000", Aliases: []string{"rtxa6000"}, Title: "NVIDIA RTX A6000", Kind: placement.KindGPU, Tier: Full,
			Memory: 48 * gib, Memrate: 768 * giga, Peaks: peaks(154.8, 154.8, 38.7),
			PCIe: Slot{4, 16}, Source: "NVIDIA RTX A6000 datasheet, half of the sparse tensor rate",
			Note: "with an NVLink bridge write peer: 50GB/s",
		}, {
			Name: "l4", Title: "NVIDIA L4", Kind: placement.KindGPU, Tier: Limited,
			Memory: 24 * gib, Memrate: 300 * giga, Peaks: peaks(121, 121, 30.3),
			PCIe: Slot{4, 16}, Source: "NVIDIA L4 datasheet, half of the sparse tensor rate",
		}, {
			Name: "l40s", Title: "NVIDIA L40S", Kind: placement.KindGPU, Tier: Full,
			Memory: 48 * gib, Memrate: 864 * giga, Peaks: peaks(362, 362, 91.6),
			PCIe: Slot{4, 16}, Source: "NVIDIA L40S datasheet",
		}, {
			Name: "a100-40g-pcie", Title: "NVIDIA A100-PCIE-40GB", Kind: placement.KindGPU, Tier: Full,
			Memory: 40 * gib, Memrate: 1555 * giga, Peaks: peaks(312, 312, 19.5),
			PCIe: Slot{4, 16}, Source: "NVIDIA A100 datasheet",
		}, {
			Name: "a100-40g-sxm", Aliases: []string{"a100-40g"}, Title: "NVIDIA A100-SXM4-40GB", Kind: placement.KindGPU, Tier: Full,
			Memory: 40 * gib, Memrate: 1555 * giga, Peaks: peaks(312, 312, 19.5),
			PCIe: Slot{4, 16}, Fabric: 300 * giga, Source: "NVIDIA A100 datasheet",
		}, {
			Name: "a100-80g-pcie", Title: "NVIDIA A100 80GB PCIe", Kind: placement.KindGPU, Tier: Full,
			Memory: 80 * gib, Memrate: 1935 * giga, Peaks: peaks(312, 312, 19.5),
			PCIe: Slot{4, 16}, Source: "NVIDIA A100 datasheet",
		}, {
			Name: "a100-80g-sxm", Aliases: []string{"a100-80g", "a100"}, Title: "NVIDIA A100-SXM4-80GB", Kind: placement.KindGPU, Tier: Full,
			Memory: 80 * gib, Memrate: 2039 * giga, Peaks: peaks(312, 312, 19.5),
			PCIe: Slot{4, 16}, Fabric: 300 * giga, Source: "NVIDIA A100 datasheet",
		}, {
			Name: "h100-pcie", Title: "NVIDIA H100 PCIe", Kind: placement.KindGPU, Tier: Full,
			Memory: 80 * gib, Memrate: 2000 * giga, Peaks: peaks(756, 756, 51),
			PCIe: Slot{5, 16}, Source: "NVIDIA H100 datasheet, half of the sparse tensor rate",
		}, {
			Name: "h100-sxm", Aliases: []string{"h100"}, Title: "NVIDIA H100 80GB HBM3", Kind: placement.KindGPU, Tier: Full,
			Memory: 80 * gib, Memrate: 3350 * giga, Peaks: peaks(989.4, 989.4, 67),
			PCIe: Slot{5, 16}, Fabric: 450 * giga, Source: "NVIDIA H100 whitepaper",
		}, {
			Name: "h200-sxm", Aliases: []string{"h200"}, Title: "NVIDIA H200", Kind: placement.KindGPU, Tier: Full,
			Memory: 141 * giga, Memrate: 4800 * giga, Peaks: peaks(989.4, 989.4, 67),
			PCIe: Slot{5, 16}, Fabric: 450 * giga, Source: "NVIDIA H200 datasheet",
		}, {
			Name: "t4", Title: "NVIDIA T4", Kind: placement.KindGPU, Tier: Limited,
			Memory: 16 * gib, Memrate: 320 * giga, Peaks: peaks(8.1, 65, 8.1),
			PCIe: Slot{3, 16}, Source: "NVIDIA T4 datasheet",
			Note: "bf16 runs as f32",
		}, {
			Name: "v100-pcie", Aliases: []string{"v100"}, Title: "NVIDIA V100-PCIE-32GB", Kind: placement.KindGPU, Tier: Full,
			Memory: 32 * gib, Memrate: 900 * giga, Peaks: peaks(14, 112, 14),
			PCIe: Slot{3, 16}, Source: "NVIDIA V100 datasheet",
			Note: "bf16 runs as f32",
		}, {
			Name: "v100-sxm2", Title: "NVIDIA V100-SXM2-32GB", Kind: placement.KindGPU, Tier: Full,
			Memory: 32 * gib, Memrate: 900 * giga, Peaks: peaks(15.7, 125, 15.7),
			PCIe: Slot{3, 16}, Fabric: 50 * giga, Source: "NVIDIA V100 datasheet",
			Note: "bf16 runs as f32; NVLink to one neighbour over two of six links",
		},
	}
}

// others are the cards of other makers.
func others() []Entry {
	return []Entry{
		{
			Name: "mi300x", Title: "AMD Instinct MI300X", Kind: placement.KindGPU, Tier: OtherGPU,
			Memory: 192 * gib, Memrate: 5300 * giga, Peaks: peaks(1307.4, 1307.4, 163.4),
			PCIe: Slot{5, 16}, Fabric: 64 * giga, Source: "AMD Instinct MI300X data sheet",
		}, {
			Name: "rx7900xtx", Aliases: []string{"7900xtx"}, Title: "AMD Radeon RX 7900 XTX", Kind: placement.KindGPU, Tier: OtherGPU,
			Memory: 24 * gib, Memrate: 960 * giga, Peaks: peaks(122.8, 122.8, 61.4),
			PCIe: Slot{4, 16}, Source: "AMD Radeon RX 7900 XTX product page",
		}, {
			Name: "arc-a770", Aliases: []string{"a770"}, Title: "Intel Arc A770 16GB", Kind: placement.KindGPU, Tier: OtherGPU,
			Memory: 16 * gib, Memrate: 560 * giga, Peaks: peaks(131, 131, 17.2),
			PCIe: Slot{4, 16}, Source: "Intel Arc A770 product page, half of the INT8 rate",
		}, {
			Name: "arc-b580", Aliases: []string{"b580"}, Title: "Intel Arc B580", Kind: placement.KindGPU, Tier: OtherGPU,
			Memory: 12 * gib, Memrate: 456 * giga, Peaks: peaks(116.5, 116.5, 13.7),
			PCIe: Slot{4, 8}, Source: "Intel Arc B580 product page, half of the INT8 rate",
		},
	}
}

// processors have their rate from cores, base clock and vector width.
func processors() []Entry {
	return []Entry{
		{
			Name: "ryzen-5950x", Title: "AMD Ryzen 9 5950X", Kind: placement.KindCPU, Tier: Processor,
			Memrate: 51.2 * giga, Peaks: peaks(1.741, 1.741, 1.741),
			Source: "AMD product page: 16 cores, 3.4 GHz, DDR4-3200",
			Note:   "32 FLOP a cycle and core; bf16 and f16 run as f32",
		}, {
			Name: "ryzen-7950x", Title: "AMD Ryzen 9 7950X", Kind: placement.KindCPU, Tier: Processor,
			Memrate: 83.2 * giga, Peaks: peaks(4.608, 2.304, 2.304),
			Source: "AMD product page: 16 cores, 4.5 GHz, DDR5-5200",
			Note:   "32 FLOP a cycle and core, twice in bf16; f16 runs as f32",
		}, {
			Name: "ryzen-9950x", Title: "AMD Ryzen 9 9950X", Kind: placement.KindCPU, Tier: Processor,
			Memrate: 89.6 * giga, Peaks: peaks(8.806, 4.403, 4.403),
			Source: "AMD product page: 16 cores, 4.3 GHz, DDR5-5600",
			Note:   "64 FLOP a cycle and core, twice in bf16; f16 runs as f32",
		}, {
			Name: "i9-13900k", Aliases: []string{"core-i9-13900k"}, Title: "Intel Core i9-13900K", Kind: placement.KindCPU, Tier: Processor,
			Memrate: 89.6 * giga, Peaks: peaks(1.331, 1.331, 1.331),
			Source: "Intel ARK: 8 cores at 3.0 and 16 at 2.2 GHz, DDR5-5600",
			Note:   "32 and 16 FLOP a cycle and core; bf16 and f16 run as f32",
		}, {
			Name: "epyc-9654", Title: "AMD EPYC 9654", Kind: placement.KindCPU, Tier: Processor,
			Memrate: 460.8 * giga, Peaks: peaks(14.746, 7.373, 7.373),
			Source: "AMD product page: 96 cores, 2.4 GHz, 12 channels of DDR5-4800",
			Note:   "32 FLOP a cycle and core, twice in bf16; f16 runs as f32",
		}, {
			Name: "m2-ultra", Aliases: []string{"apple-m2-ultra"}, Title: "Apple M2 Ultra", Kind: placement.KindCPU, Tier: Integrated,
			Memrate: 800 * giga, Peaks: peaks(27.2, 27.2, 27.2),
			Source: "Apple newsroom, June 2023: 76 GPU cores, 27.2 TFLOP/s, 800 GB/s",
			Note:   "its GPU, which shares the host's memory",
		}, {
			Name: "m4-max", Aliases: []string{"apple-m4-max"}, Title: "Apple M4 Max", Kind: placement.KindCPU, Tier: Integrated,
			Memrate: 546 * giga, Peaks: peaks(18.4, 18.4, 18.4),
			Source: "Apple newsroom, October 2024: 40 GPU cores, 546 GB/s; 128 FMA units a core at 1.8 GHz",
			Note:   "its GPU, which shares the host's memory",
		},
	}
}
