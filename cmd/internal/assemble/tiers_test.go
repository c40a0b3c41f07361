// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package assemble

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/distorch/distorch/cmd/internal/config"
	pb "github.com/distorch/distorch/proto/distorch/v1"
)

// deployAs replaces the demo deployment, or says why it is refused.
func deployAs(t testing.TB, conn *grpc.ClientConn, spec *pb.DeploymentSpec) (*pb.DeploymentSpec, error) {
	t.Helper()
	spec.Name, spec.Model, spec.Workload = "demo", "demo.safetensors", &pb.Workload{Dims: demoDims, InFlight: 2}
	ctl := pb.NewControlClient(conn)
	planned, err := ctl.Plan(t.Context(), &pb.PlanRequest{Spec: spec})
	if err != nil {
		return nil, err
	}
	if why := planned.Plan.GetInfeasible(); why != "" {
		return nil, fmt.Errorf("no room: %s", why)
	}
	res, err := ctl.Deploy(t.Context(), &pb.DeployRequest{Spec: spec})
	return res.GetSpec(), err
}

// tiersOf lists the tiers of a plan's stages: "sim:0: ram 1-2, disk 4".
func tiersOf(p *pb.Plan) string {
	var out []string
	for _, s := range p.GetStages() {
		text := s.NodeName + "/" + s.Device + ":"
		for _, x := range s.Tiers {
			where := x.Device + x.NodeName
			if where != "" {
				where = " " + where
			}
			text += fmt.Sprintf(" %s%s %d-%d", strings.ToLower(x.Kind.String()), where, x.FirstBlock, x.FirstBlock+x.Blocks-1)
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

// TestTiersOfACluster deploys the demo model on simulated devices of little
// memory: its blocks rest in every kind of tier, and the picture is the one that
// a device with room for all gives.
func TestTiersOfACluster(t *testing.T) {
	co := startCoordinator(t, testConfig(t.TempDir()))
	conn := operator(t, co)
	gpu := testConfig(t.TempDir())
	gpu.Agent.Devices = []config.Device{
		{Name: "sim:0", Memory: 14e6, H2D: 4e8}, {Name: "sim:1", Memory: 12e6, H2D: 4e8}, {Name: "sim:2", Memory: 60e6, H2D: 4e8},
	}
	startAgentWith(t, "gpu", token(t, conn), gpu)
	ram := testConfig(t.TempDir())
	ram.Models.Dirs, ram.Agent.Memory = nil, 5e8
	donor := startAgentWith(t, "ram", token(t, conn), ram)
	var resident []byte
	for _, c := range []struct {
		name string
		spec *pb.DeploymentSpec
		want string // tiers
	}{
		{"resident", &pb.DeploymentSpec{Allocation: "gpu/sim:2,*#gpu/sim:2"}, "gpu/sim:2:"},
		{"RAM", &pb.DeploymentSpec{Allocation: "gpu/sim:0,2%;gpu/cpu,98%#gpu/sim:0"}, "ram"},
		{"donor", &pb.DeploymentSpec{Allocation: "gpu/sim:1,30%;gpu/cpu,70%#gpu/sim:0"}, "donor sim:1"},
		{"another node", &pb.DeploymentSpec{Allocation: "gpu/sim:0,20%;ram/cpu,80%#gpu/sim:0"}, "remote ram"},
		{"virtual VRAM", &pb.DeploymentSpec{VirtualVramBytes: 8e6}, "ram"},
		{"automatic", &pb.DeploymentSpec{}, ""},
		{"fp8", &pb.DeploymentSpec{Storage: "fp8", Allocation: "gpu/sim:0,20%;gpu/cpu,80%#gpu/sim:0"}, "ram"},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec, err := deployAs(t, conn, c.spec)
			if err != nil {
				t.Fatal(err)
			}
			s := await(t, conn, "ready", func(s *pb.DeploymentStatus) bool {
				for _, o := range s.Observed {
					if o.State == pb.Observed_FAILED && o.Epoch == s.Plan.GetEpoch() {
						t.Fatal(o.Message)
					}
				}
				return s.Ready && s.Plan.GetDeploymentId() == spec.Id
			})
			tiers := tiersOf(s.Plan)
			t.Log(tiers)
			if !strings.Contains(tiers, c.want) {
				t.Errorf("tiers are %s, want %s", tiers, c.want)
			}
			out, stats, err := picture(t, conn)
			if err != nil {
				t.Fatal(err)
			}
			if resident == nil {
				resident = out
			}
			if same := slices.Equal(out, resident); same == (c.spec.Storage != "") {
				t.Errorf("the same picture as resident: %v", same)
			}
			after := await(t, conn, "ready", ready)
			if len(after.Stages) != len(s.Plan.Stages) || after.Stages[0].Forwards != 1 || after.Stages[0].ForwardSeconds == 0 {
				t.Errorf("status says of the stages: %v", after.Stages)
			}
			for i, x := range stats {
				f := s.Plan.Stages[i].Forecast
				near(t, "device peak", f.PeakBytes, x.AccountPeakBytes)
				near(t, "device peak by the agent's count", x.AccountNeedBytes, x.AccountPeakBytes)
				near(t, "host peak", f.HostPeakBytes, x.HostPeakBytes)
				if c.want != "gpu/sim:2:" && c.want != "" && x.Tiers[len(x.Tiers)-1].StreamedBytes == 0 {
					t.Errorf("nothing was streamed: %v", x.Tiers)
				}
			}
		})
	}
	t.Run("the donor leaves", func(t *testing.T) { donorLeaves(t, conn, donor) })
}

// donorLeaves stops the node that keeps blocks, which a person named: the
// deployment says so, and nothing else breaks.
func donorLeaves(t *testing.T, conn *grpc.ClientConn, donor *process) {
	if _, err := deployAs(t, conn, &pb.DeploymentSpec{Allocation: "gpu/sim:0,20%;ram/cpu,80%#gpu/sim:0"}); err != nil {
		t.Fatal(err)
	}
	await(t, conn, "ready", ready)
	donor.stop()
	s := await(t, conn, "a plan without the donor", func(s *pb.DeploymentStatus) bool { return s.Plan.GetInfeasible() != "" })
	if !strings.Contains(s.Plan.Infeasible, "ram") {
		t.Errorf("it says %q", s.Plan.Infeasible)
	}
	if _, err := deployAs(t, conn, &pb.DeploymentSpec{}); err != nil {
		t.Fatal(err)
	}
	await(t, conn, "ready without the donor", ready)
	if _, _, err := picture(t, conn); err != nil {
		t.Error(err)
	}
}

// near holds a peak against its forecast: 5 %.
func near(t *testing.T, what string, forecast, real uint64) {
	t.Helper()
	if off := float64(forecast)/float64(real) - 1; off < -0.05 || off > 0.05 {
		t.Errorf("%s: forecast %d bytes, %d were used: %+.1f %% off", what, forecast, real, 100*off)
	}
}

// TestTiersByThemselves: without a word about memory, blocks that a small device
// cannot hold rest in RAM, and on disk where there is no RAM; strict refuses them.
func TestTiersByThemselves(t *testing.T) {
	for _, c := range []struct {
		name   string
		memory config.Bytes
		want   string
	}{
		{"RAM", 5e8, "ram"},
		{"disk", 112e6, "disk"},
	} {
		t.Run(c.name, func(t *testing.T) {
			co := startCoordinator(t, testConfig(t.TempDir()))
			conn := operator(t, co)
			gpu := testConfig(t.TempDir())
			gpu.Agent.Memory = c.memory
			gpu.Agent.Devices = []config.Device{{Name: "sim:0", Memory: 14e6, H2D: 4e8}}
			startAgentWith(t, "gpu", token(t, conn), gpu)
			if _, err := deployAs(t, conn, &pb.DeploymentSpec{}); err != nil {
				t.Fatal(err)
			}
			s := await(t, conn, "ready", ready)
			if !strings.Contains(tiersOf(s.Plan), c.want) {
				t.Errorf("tiers are %s, want %s", tiersOf(s.Plan), c.want)
			}
			_, stats, err := picture(t, conn)
			if err != nil {
				t.Fatal(err)
			}
			near(t, "device peak", s.Plan.Stages[0].Forecast.PeakBytes, stats[0].AccountPeakBytes)
			near(t, "host peak", s.Plan.Stages[0].Forecast.HostPeakBytes, stats[0].HostPeakBytes)
			for _, x := range []struct {
				spec *pb.DeploymentSpec
				says []string
			}{
				{&pb.DeploymentSpec{Fit: "strict"}, []string{"needs 18.4 MB", "gpu/sim:0: ", "let weights be streamed", "6.1 MB more"}},
				{&pb.DeploymentSpec{Allocation: "sim:0,*#sim:0"}, []string{"sim:0 would hold 17.56 MiB (6 blocks)", "short", "nearest string that fits: sim:0,*;cpu,*#sim:0"}},
				{&pb.DeploymentSpec{VirtualVramBytes: 1e6}, []string{"sim:0 would hold", "short", "nearest string"}},
				{&pb.DeploymentSpec{Allocation: "sim:1,*"}, []string{"sim:1"}},
			} {
				_, err := deployAs(t, conn, x.spec)
				for _, text := range x.says {
					if err == nil || !strings.Contains(err.Error(), text) {
						t.Errorf("%v: %v, want %q", x.spec, err, text)
					}
				}
			}
		})
	}
}
