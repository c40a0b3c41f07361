// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/distorch/distorch/placement/cluster"
)

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code int
	}{
		{nil, exitOK},
		{errors.New("x"), exitFailure},
		{fmt.Errorf("wrapped: %w", usage(errors.New("x"))), exitUsage},
		{notFound(errors.New("x")), exitNotFound},
		{infeasible(errors.New("x")), exitInfeasible},
		{unreachable(errors.New("x")), exitUnreachable},
		{fmt.Errorf("ask: %w", context.DeadlineExceeded), exitUnreachable},
		{usage(fmt.Errorf("wrapped: %w", interruptedError{os.Interrupt})), exitInterrupted},
		{fromRPC("", status.Error(codes.InvalidArgument, "x")), exitUsage},
		{fromRPC("", status.Error(codes.ResourceExhausted, "x")), exitInfeasible},
		{fromRPC("", status.Error(codes.Internal, "x")), exitFailure},
		{usage(nil), exitOK},
	} {
		if got := exitCode(tc.err); got != tc.code {
			t.Errorf("%v: exit code %d, want %d", tc.err, got, tc.code)
		}
	}
}

// TestProblemsOfAFile: each has a line, with its place; other errors have one
// line in all.
func TestProblemsOfAFile(t *testing.T) {
	_, err := cluster.Parse("den.yaml", []byte("nodes:\n- name: den\n  nick: 1gbps\n  devices: [{device: rtx309}]\n"))
	want := []string{`den.yaml:3:3: unknown key "nick"; did you mean nic?`, `den.yaml:4:22: the catalogue has no device "rtx309"; did you mean rtx3090?`}
	if diff := cmp.Diff(want, errorLines(usage(err))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"a; b"}, errorLines(errors.New("a\n b"))); diff != "" {
		t.Error(diff)
	}
}

// TestWireWordsAreTakenOut: a person reads what happened, not gRPC's wrapping.
func TestWireWordsAreTakenOut(t *testing.T) {
	for want, err := range map[string]error{
		"sample step 2: node b is gone":                fmt.Errorf("sample step 2: %w", status.Error(codes.Unavailable, "node b is gone")),
		"the connection to the coordinator broke: EOF": status.Error(codes.Unavailable, "error reading from server: EOF"),
		`the connection to the coordinator broke: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused`: status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`),
		"node b is gone: error reading from server: EOF":                                                                  status.Error(codes.Unavailable, "node b is gone: error reading from server: EOF"),
	} {
		if got := fromRPC("", err); got.Error() != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if err := errors.New("not from the wire"); !errors.Is(fromRPC("x", err), err) || fromRPC("x", err).Error() != err.Error() {
		t.Error("an error of this process was changed")
	}
}

func TestWorkloads(t *testing.T) {
	for text, want := range map[string]string{
		"1024x768":                               "1024x768,batch=1,tokens=512",
		"128x128,tokens=5,batch=2":               "128x128,batch=2,tokens=5",
		"16x16, text_tokens=7 ,in_flight=3":      "16x16,batch=1,tokens=7",
		"832x480,frames=81":                      "832x480,batch=1,frames=81,tokens=512",
		"1024x1024,ref=512x768,ref=64x72,mask=1": "1024x1024,mask=1,batch=1,ref=512x768,ref=64x72,tokens=512",
		"64x64,ref=64":                           "", "64x64,ref=": "", "64x64,mask": "", "64x64,ref=0x8": "", "64x64,mask=1,mask=1": "",
		"x": "", "0x1": "", "-1x5": "", "5x5,": "", "5x5,tokens=1,tokens=2": "", "5x5,frame=2": "", "9999999x1": "",
	} {
		words, _, err := parseWorkload(text)
		if (err == nil) != (want != "") || err == nil && showWorkload(words) != want {
			t.Errorf("%q: %v, %v; want %q", text, words, err, want)
		}
	}
	if words, inFlight, err := parseWorkload("16x16,in_flight=3"); err != nil || inFlight != 3 || words["in_flight"] != 0 {
		t.Errorf("%v, %d, %v", words, inFlight, err)
	}
}

func FuzzParseWorkload(f *testing.F) {
	for _, text := range []string{"1024x1024", "128x128,tokens=5,batch=2", "x,", "1x1,in_flight=9"} {
		f.Add(text)
	}
	f.Add("64x64,ref=8x16,ref=16x8,mask=1")
	f.Fuzz(func(t *testing.T, text string) {
		words, _, err := parseWorkload(text)
		if err != nil {
			return
		}
		again, _, err := parseWorkload(showWorkload(words))
		if err != nil || showWorkload(again) != showWorkload(words) {
			t.Errorf("%q reads as %v, is written as %q and reads as %v, %v", text, words, showWorkload(words), again, err)
		}
	})
}
