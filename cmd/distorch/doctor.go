// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/agent/diagnose"
	"github.com/distorch/distorch/agent/examine"
	"github.com/distorch/distorch/cmd/internal/assemble"
	"github.com/distorch/distorch/cmd/internal/config"
	"github.com/distorch/distorch/cmd/internal/output"
	pb "github.com/distorch/distorch/proto/distorch/v1"
	"github.com/distorch/distorch/transport/identity"
)

// doctorView is a diagnosis of one node, or of several with what is between
// them.
type doctorView struct {
	Worst   diagnose.Severity  `json:"worst"`
	Nodes   []diagnosisView    `json:"nodes"`
	Cluster []diagnose.Finding `json:"cluster,omitempty"`
}

type diagnosisView struct {
	Node     string             `json:"node"`
	Findings []diagnose.Finding `json:"findings"`
	Facts    json.RawMessage    `json:"facts,omitempty"`
}

const (
	// doctorTime bounds the answer of a node: PyTorch's start from a cold disk.
	doctorTime = 90 * time.Second
	// doctorCalls is how many nodes are asked at one time.
	doctorCalls = 16
	// maxFacts bounds a file of --facts.
	maxFacts = 16 << 20
)

func newDoctor(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor [NODE]",
		Short: "Say why a device is not used and what else is wrong, with what mends it",
		Long: `Looks at this machine, or at NODE through its agent: cards that are there and not
used, PyTorch, memory, checkpoints, disk, clock, and with a cluster whether nodes
reach each other and fit together. Each finding that can be mended comes with the
command that does. Nothing is changed.

Without NODE neither a cluster nor an agent is needed. With NODE, or --cluster for
all nodes, a coordinator is asked, and each node dials the others.

Ends with code 6 if something is broken, and with 0 if there are warnings at most.`,
		Args: arguments(0, "NODE"),
	}
	operatorFlags(cmd)
	config.Flag(cmd.Flags(), "models", "models.dirs", "folders with checkpoints (of this machine)")
	format := outputFlag(cmd)
	all := cmd.Flags().Bool("cluster", false, "all nodes of the cluster")
	facts := cmd.Flags().String("facts", "", "diagnose what -o json wrote to this file, on any machine")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var v *doctorView
		var err error
		switch {
		case *facts != "" && (*all || len(args) > 0), *all && len(args) > 0:
			return usage(errors.New("give one of NODE, --cluster and --facts"))
		case *facts != "":
			v, err = diagnoseFile(*facts)
		case *all || len(args) > 0:
			v, err = a.diagnoseNodes(cmd, strings.Join(args, ""))
		default:
			v, err = a.diagnoseHere(cmd)
		}
		if err != nil {
			return err
		}
		return a.writeDiagnosis(v, *format)
	}
	return cmd
}

// diagnoseHere looks at this machine.
func (a *app) diagnoseHere(cmd *cobra.Command) (*doctorView, error) {
	cfg, _, err := a.load(cmd)
	if err != nil {
		return nil, err
	}
	look := examine.Config{}
	if _, err := os.Stat(cfg.DataDir); err == nil { // a doctor makes no folder
		dir, err := identity.OpenDir(cfg.DataDir)
		if err != nil {
			return nil, err
		}
		look = assemble.Examination(cfg, dir, version)
		if creds, err := dir.Load(identity.SlotNode); err == nil {
			look.Node = creds.Self().Name
		}
	} else {
		look = assemble.Examination(cfg, identity.Dir{}, version)
		look.Certificate = ""
	}
	look.Running = listening(cmd.Context(), cfg.Agent.Listen)
	facts := examine.Examine(cmd.Context(), look)
	return newDoctorView(facts)
}

// listening says whether something has the agent's port: the agent, most likely.
func listening(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

func newDoctorView(facts ...diagnose.Facts) (*doctorView, error) {
	v := &doctorView{Nodes: []diagnosisView{}}
	for _, f := range facts {
		text, err := json.Marshal(f)
		if err != nil {
			return nil, err
		}
		v.Nodes = append(v.Nodes, diagnosisView{f.Node, diagnose.Check(f), text})
	}
	v.judge()
	return v, nil
}

func (v *doctorView) judge() {
	v.Worst = diagnose.Worst(v.Cluster)
	for _, n := range v.Nodes {
		v.Worst = diagnose.Worst([]diagnose.Finding{{Severity: v.Worst}, {Severity: diagnose.Worst(n.Findings)}})
	}
}

// diagnoseFile judges facts that were collected elsewhere.
func diagnoseFile(name string) (*doctorView, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, usage(fmt.Errorf("--facts: %w", err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFacts+1))
	if err != nil {
		return nil, fmt.Errorf("--facts: %w", err)
	}
	facts, err := readFacts(b)
	if err != nil {
		return nil, usage(fmt.Errorf("--facts %s: %w", name, err))
	}
	return newDoctorView(facts...)
}

// readFacts reads what `doctor -o json` writes.
func readFacts(b []byte) ([]diagnose.Facts, error) {
	if len(b) > maxFacts {
		return nil, fmt.Errorf("it has more than %d bytes; `distorch doctor -o json` writes less", maxFacts)
	}
	var v doctorView
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(&v); err != nil {
		return nil, fmt.Errorf("it is not what `distorch doctor -o json` writes: %w", err)
	}
	var out []diagnose.Facts
	for _, n := range v.Nodes {
		if len(n.Facts) == 0 {
			continue // of a node that did not answer
		}
		var f diagnose.Facts
		if err := json.Unmarshal(n.Facts, &f); err != nil {
			return nil, fmt.Errorf("facts of node %.40q: %w", n.Node, err)
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		return nil, errors.New("it has no facts; `distorch doctor -o json` writes them")
	}
	return out, nil
}

// diagnoseNodes asks the agents, of one node or all. The nodes that are not
// looked at are asked whether they reach the one that is.
func (a *app) diagnoseNodes(cmd *cobra.Command, name string) (*doctorView, error) {
	o, err := a.connect(cmd)
	if err != nil {
		return nil, err
	}
	defer o.close()
	answer, err := ask(cmd.Context(), o, "list nodes", o.Control.ListNodes, &pb.ListNodesRequest{})
	if err != nil {
		return nil, err
	}
	v := &doctorView{Nodes: []diagnosisView{}}
	var about []string
	for _, n := range answer.Nodes {
		if r := n.GetRecord(); name == "" || r.GetName() == name || r.GetId() == name {
			about = append(about, r.GetName())
		}
	}
	if len(about) == 0 && name != "" { // the coordinator knows the nearest name
		_, err := ask(cmd.Context(), o, "", o.Control.Diagnose, &pb.DiagnoseRequest{Node: name})
		if err == nil {
			err = notFound(fmt.Errorf("node %q came a moment ago; ask again", name))
		}
		return nil, err
	}
	members := make([]diagnose.Member, len(answer.Nodes))
	found := make([]*diagnosisView, len(answer.Nodes))
	var group sync.WaitGroup
	turn := make(chan struct{}, doctorCalls)
	for i, n := range answer.Nodes {
		group.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			members[i], found[i] = askNode(cmd.Context(), o, n.GetRecord(), about)
		})
	}
	group.Wait()
	if err := cmd.Context().Err(); err != nil {
		return nil, context.Cause(cmd.Context())
	}
	for _, f := range found {
		if f != nil {
			v.Nodes = append(v.Nodes, *f)
		}
	}
	v.Cluster = diagnose.Cluster(members, about)
	v.judge()
	return v, nil
}

// askNode asks one node for everything, or, if it is not what the doctor is
// asked about, whether it reaches the one that is.
func askNode(ctx context.Context, o *operator, r *pb.NodeRecord, about []string) (diagnose.Member, *diagnosisView) {
	m := diagnose.Member{
		Name: r.GetName(), Address: r.GetAddress(), Version: r.GetVersion(), ProtocolMin: r.GetProtocolMin(), ProtocolMax: r.GetProtocolMax(), OpSet: r.GetOpSet(), Asked: true,
	}
	req := &pb.DiagnoseRequest{Node: r.GetId()}
	whole := slices.Contains(about, m.Name)
	if !whole {
		req.Reach = about[0]
	}
	ctx, cancel := context.WithTimeout(ctx, max(doctorTime, o.timeout))
	defer cancel()
	begin := time.Now()
	res, err := o.Control.Diagnose(ctx, req)
	took := time.Since(begin)
	if err != nil {
		m.Error = fromRPC("", err).Error()
		if whole {
			return m, &diagnosisView{Node: m.Name, Findings: []diagnose.Finding{}}
		}
		return m, nil
	}
	// The node took its time between the call's begin and end.
	m.Offset, m.Within = time.Unix(0, res.GetUnixNanos()).Sub(begin.Add(took/2)), took/2
	for _, p := range res.GetPeers() {
		m.Peers = append(m.Peers, diagnose.Peer{
			Name: p.GetName(), Address: p.GetAddress(), Failure: diagnose.Failure(p.GetFailure()), Error: p.GetError(), RoundTrip: p.GetRoundTrip().AsDuration(),
		})
	}
	if !whole {
		return m, nil
	}
	v := &diagnosisView{Node: m.Name, Findings: []diagnose.Finding{}, Facts: res.GetFacts()}
	for _, f := range res.GetFindings() {
		v.Findings = append(v.Findings, findingFromProto(f))
	}
	if !json.Valid(v.Facts) {
		v.Facts = nil
	}
	return m, v
}

func findingFromProto(f *pb.Finding) diagnose.Finding {
	severity := map[pb.Finding_Severity]diagnose.Severity{
		pb.Finding_OK: diagnose.OK, pb.Finding_NOTE: diagnose.Note, pb.Finding_BROKEN: diagnose.Broken,
	}[f.GetSeverity()]
	if severity == "" { // one that this version does not know is worth a look
		severity = diagnose.Warning
	}
	return diagnose.Finding{Severity: severity, Check: f.GetCheck(), Subject: f.GetSubject(), Text: f.GetText(), Mend: f.GetMend(), Unused: f.GetUnused()}
}

// writeDiagnosis prints the findings; something broken is the command's error.
func (a *app) writeDiagnosis(v *doctorView, format output.Format) error {
	var err error
	if format != output.Table {
		err = output.Write(a.stdout, format, v)
	} else {
		err = v.write(a.stdout)
	}
	if err != nil {
		return err
	}
	if n := v.count(diagnose.Broken); n > 0 {
		return withCode(exitBroken, fmt.Errorf("%s broken; each is above, with what mends it", things(n)))
	}
	return nil
}

func things(n int) string {
	if n == 1 {
		return "1 thing is"
	}
	return fmt.Sprintf("%d things are", n)
}

// count is how many findings have a severity.
func (v *doctorView) count(s diagnose.Severity) (n int) {
	count := func(all []diagnose.Finding) {
		for _, f := range all {
			if f.Severity == s {
				n++
			}
		}
	}
	count(v.Cluster)
	for _, d := range v.Nodes {
		count(d.Findings)
	}
	return n
}

func (v *doctorView) write(w io.Writer) error {
	p := &printer{w: w}
	for _, n := range v.Nodes {
		p.line("%s", output.Clean(n.Node))
		p.findings(n.Findings)
	}
	if len(v.Cluster) > 0 {
		p.line("between the nodes")
		p.findings(v.Cluster)
	}
	broken, warnings := v.count(diagnose.Broken), v.count(diagnose.Warning)
	if broken+warnings == 0 {
		p.line("all is well")
	} else {
		p.line("%d broken, %d to look at", broken, warnings)
	}
	return p.err
}

// findings prints one finding a line, and what mends it on the next.
func (p *printer) findings(all []diagnose.Finding) {
	for _, f := range all {
		text := f.Text
		if f.Subject != "" {
			text = f.Subject + ": " + text
		}
		p.line("  %-8s %-8s %s", f.Severity, output.Clean(f.Check), output.Clean(text))
		if f.Mend != "" {
			p.line("  %-8s %-8s mend: %s", "", "", output.Clean(f.Mend))
		}
	}
}
