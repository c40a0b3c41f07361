// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

// Package demo is what surrounds the demo checkpoint: the words of a prompt
// become its conditioning, its latents become a picture. The rules are in
// demo/README.md at the root of the repository.
//
// Commands import it; it imports model/safetensors and the standard library's
// image packages. A Vocabulary does not change after it is read.
package demo
