// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

func attention(*target) {}
