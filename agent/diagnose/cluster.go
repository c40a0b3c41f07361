// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Member is a node of a cluster, as the coordinator and the node itself tell.
type Member struct {
	Name        string
	Address     string
	Version     string
	ProtocolMin uint32
	ProtocolMax uint32
	OpSet       uint32
	// Asked says that the node was asked; Error why it did not answer.
	Asked bool
	Error string
	// Offset is how far the node's clock is ahead of the one who asked, and
	// Within how well that is known: half of the call's duration.
	Offset, Within time.Duration
	Peers          []Peer // that it dialled
}

const (
	// skew is when clocks are worth a word, farSkew when certificates made on one
	// machine are refused on another.
	skew, farSkew = 5 * time.Second, 5 * time.Minute
)

// Cluster finds what is wrong between nodes: versions, clocks, and which do not
// reach each other. Peers of members are not looked at where the members'
// own findings have them: about lists the members whose own findings are shown.
func Cluster(members []Member, about []string) []Finding {
	var out []Finding
	for _, m := range members {
		if m.Error != "" {
			out = append(out, Finding{Severity: Broken, Check: CheckPort, Subject: m.Name, Text: "its agent does not answer: " + m.Error, Mend: "look at the log of the agent on " + m.Name + "; an agent of an older version has no doctor"})
		}
		if slices.Contains(about, m.Name) {
			continue
		}
		for _, p := range m.Peers {
			if slices.Contains(about, p.Name) {
				out = append(out, reach(m.Name, m.Address, p))
			}
		}
	}
	out = append(out, clocks(members)...)
	return append(out, versions(members)...)
}

func clocks(members []Member) []Finding {
	var out []Finding
	for _, m := range members {
		off := m.Offset.Abs() - m.Within
		if !m.Asked || m.Error != "" || off < skew {
			continue
		}
		way := "ahead of"
		if m.Offset < 0 {
			way = "behind"
		}
		f := Finding{Severity: Warning, Check: CheckClock, Subject: m.Name, Text: fmt.Sprintf("its clock is %s %s this machine's", m.Offset.Abs().Round(time.Second), way), Mend: "on both: " + setClock}
		if off >= farSkew {
			f.Severity = Broken
		}
		out = append(out, f)
	}
	return out
}

// versions says which nodes run another version than most, and which cannot
// talk to each other.
func versions(members []Member) []Finding {
	if len(members) == 0 {
		return nil
	}
	by := map[string][]string{}
	for _, m := range members {
		by[m.Version] = append(by[m.Version], m.Name)
	}
	var out []Finding
	for i, a := range members {
		for _, b := range members[i+1:] {
			if a.ProtocolMax < b.ProtocolMin || b.ProtocolMax < a.ProtocolMin {
				older := a
				if b.ProtocolMax < a.ProtocolMax {
					older = b
				}
				out = append(out, Finding{Severity: Broken, Check: CheckVersion, Subject: a.Name + ", " + b.Name,
					Text: fmt.Sprintf("they speak no common protocol (%d to %d and %d to %d)", a.ProtocolMin, a.ProtocolMax, b.ProtocolMin, b.ProtocolMax), Mend: "update distorch on " + older.Name})
			}
		}
	}
	newest := slices.MaxFunc(members, func(a, b Member) int { return cmp.Compare(a.OpSet, b.OpSet) })
	for _, m := range members {
		if m.OpSet < newest.OpSet {
			out = append(out, Finding{Severity: Warning, Check: CheckVersion, Subject: m.Name,
				Text: fmt.Sprintf("it knows the operations of set %d, %s those of set %d: models that need the newer are not placed on it", m.OpSet, newest.Name, newest.OpSet), Mend: "update distorch on " + m.Name})
		}
	}
	if len(by) == 1 {
		return append(out, Finding{Severity: OK, Check: CheckVersion, Text: fmt.Sprintf("%s on %s", members[0].Version, plural(len(members), "node"))})
	}
	var list []string
	names := make([]string, 0, len(by))
	for v := range by {
		names = append(names, v)
	}
	slices.Sort(names)
	for _, v := range names {
		slices.Sort(by[v])
		list = append(list, v+" on "+strings.Join(by[v], ", "))
	}
	return append(out, Finding{Severity: Warning, Check: CheckVersion, Text: "nodes run different versions: " + strings.Join(list, "; "), Mend: "install the same release everywhere"})
}
