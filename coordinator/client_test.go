// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package coordinator

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/store"
	"github.com/distorch/distorch/transport/identity"
)

func TestClientTokens(t *testing.T) {
	c := newCluster(t)
	co, op := c.new("one:1"), c.as(identity.RoleOperator)
	for name, tc := range map[string]struct {
		req  *pb.CreateTokenRequest
		text string
	}{
		"name":     {&pb.CreateTokenRequest{Client: "a/b"}, "client: name"},
		"scope":    {&pb.CreateTokenRequest{Client: "a", Scopes: []string{"run", "all"}}, `scope "all": use [run deploy lend]`},
		"lifetime": {&pb.CreateTokenRequest{Client: "a", Ttl: durationpb.New(time.Millisecond)}, "use 1s to"},
		"forever":  {&pb.CreateTokenRequest{Client: "a", Ttl: durationpb.New(100 * 365 * 24 * time.Hour)}, "use 1s to"},
	} {
		if _, err := co.CreateToken(op, tc.req); status.Code(err) != codes.InvalidArgument || !strings.Contains(fmt.Sprint(err), tc.text) {
			t.Errorf("%s: %v, want %q", name, err, tc.text)
		}
	}
	made, err := co.CreateToken(op, &pb.CreateTokenRequest{Client: "comfy", Scopes: []string{"lend", "run", "run"}})
	if err != nil {
		t.Fatal(err)
	}
	line, err := identity.ParseConnection(made.Token)
	if err != nil || line.Addresses[0] != "one:1" || !line.CA.Equal(c.ca.Certificate()) {
		t.Fatalf("%v, %v", line, err)
	}
	e, err := store.Get(t.Context(), c.store, store.ClientKey("comfy"))
	if err != nil {
		t.Fatal(err)
	}
	hash := identity.SecretHash(line.Secret)
	if r := e.Value; string(r.SecretHash) != string(hash[:]) || strings.Join(r.Scopes, ",") != "run,lend" || r.ExpiresUnix-r.CreatedUnix != int64(DefaultClientTTL/time.Second) {
		t.Errorf("record %v", r)
	}
	if _, err := co.CreateToken(op, &pb.CreateTokenRequest{Client: "comfy"}); status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), "distorch token revoke comfy") {
		t.Errorf("a second one: %v", err)
	}
	// One that expired makes place.
	e.Value.ExpiresUnix = time.Now().Add(-time.Minute).Unix()
	if _, err := store.Update(t.Context(), c.store, store.ClientKey("comfy"), e.Value, e.Revision); err != nil {
		t.Fatal(err)
	}
	if _, err := co.CreateToken(op, &pb.CreateTokenRequest{Client: "comfy"}); err != nil {
		t.Errorf("in the place of one that expired: %v", err)
	}
	if _, err := co.RevokeToken(op, &pb.RevokeTokenRequest{Client: "comfi"}); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), `did you mean "comfy"? (`+"`distorch token list` lists them)") {
		t.Errorf("another name: %v", err)
	}
	if _, err := co.RevokeToken(op, &pb.RevokeTokenRequest{Client: "comfy"}); err != nil {
		t.Error(err)
	}
}
