// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"strconv"
	"strings"
)

// Pin forces blocks onto a node. Pins together force the whole cut: they are listed in pipeline order and cover every
// block once; the head runs with the first and the tail with the last.
type Pin struct {
	Node   string // id or name
	Ranged bool   // First says where the blocks start; otherwise they follow the pin before
	First  int    // global block index
	Count  int
}

// String is the form that [ParsePins] reads.
func (p Pin) String() string {
	if p.Ranged {
		return fmt.Sprintf("%s=%d-%d", p.Node, p.First, p.First+p.Count-1)
	}
	return fmt.Sprintf("%s=%d", p.Node, p.Count)
}

const (
	maxPinText = 1 << 16
	maxPinNode = 253
)

// PinError says which pin cannot be read or kept, and why.
type PinError struct {
	Pins    []string // the pins at fault, as text
	Problem string
	Barred  ReasonKind // set when the pins are fine but a node cannot be used now
}

func (e *PinError) Error() string {
	quoted := make([]string, len(e.Pins))
	for i, p := range e.Pins {
		quoted[i] = strconv.Quote(p)
	}
	switch len(quoted) {
	case 0:
		return "pins: " + e.Problem
	case 1:
		return "pin " + quoted[0] + ": " + e.Problem
	default:
		return "pins " + strings.Join(quoted, " and ") + ": " + e.Problem
	}
}

// ParsePins reads pins separated by commas, in pipeline order. A pin is AGENT=BLOCKS, where AGENT is a node's id or
// name and BLOCKS is either a count ("a=21": the next 21 blocks) or an inclusive range of global block indices counted
// over all runs ("a=0-20"). White space around pins is ignored; the empty string has no pins. Errors are *[PinError].
func ParsePins(text string) ([]Pin, error) {
	if len(text) > maxPinText {
		return nil, &PinError{Problem: fmt.Sprintf("%d characters: at most %d", len(text), maxPinText)}
	}
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	fields := strings.Split(text, ",")
	if len(fields) > maxNodes {
		return nil, &PinError{Problem: fmt.Sprintf("%d pins: at most %d", len(fields), maxNodes)}
	}
	pins := make([]Pin, 0, len(fields))
	for _, f := range fields {
		p, err := parsePin(strings.TrimSpace(f))
		if err != nil {
			return nil, err
		}
		pins = append(pins, p)
	}
	return pins, nil
}

func parsePin(text string) (Pin, error) {
	bad := func(format string, args ...any) (Pin, error) {
		return Pin{}, &PinError{Pins: []string{text}, Problem: fmt.Sprintf(format, args...)}
	}
	node, blocks, ok := strings.Cut(text, "=")
	if !ok {
		return bad("want AGENT=BLOCKS, such as a=0-20 or a=21")
	}
	node, blocks = strings.TrimSpace(node), strings.TrimSpace(blocks)
	if node == "" || len(node) > maxPinNode || strings.ContainsAny(node, " \t\r\n") {
		return bad("the agent must be a name of 1 to %d characters without spaces", maxPinNode)
	}
	from, to, ranged := strings.Cut(blocks, "-")
	low, err := parseBlock(from)
	if err != nil {
		return bad("%q is not a number of blocks up to %d or a range such as 0-20", blocks, maxBlocks*2)
	}
	if !ranged {
		if low == 0 {
			return bad("a pin holds at least one block")
		}
		return Pin{Node: node, Count: low}, nil
	}
	high, err := parseBlock(to)
	if err != nil {
		return bad("%q is not a range such as 0-20", blocks)
	}
	if high < low {
		return bad("the range runs backwards; write %d-%d", high, low)
	}
	return Pin{Node: node, Ranged: true, First: low, Count: high - low + 1}, nil
}

func parseBlock(text string) (int, error) {
	if text == "" || text[0] == '+' {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, err
	}
	if n > maxBlocks*2 {
		return 0, strconv.ErrRange
	}
	return int(n), nil
}

// cut is one stage of a given pipeline: a node's index and its blocks per run.
type cut struct {
	node   int
	blocks [2]int
}

// resolvePins turns pins into stages over these nodes, or says which of them contradict each other, the model or the
// other constraints.
func (p Problem) resolvePins(nodes []Node) ([]cut, error) {
	pins := p.Constraints.Pins
	if len(pins) > maxNodes {
		return nil, &PinError{Problem: fmt.Sprintf("%d pins: at most %d", len(pins), maxNodes)}
	}
	total, next := p.Model.Blocks(), 0
	seen := make(map[int]Pin, len(pins))
	cuts := make([]cut, 0, len(pins))
	for i, pin := range pins {
		at, err := lookup(nodes, "pin "+strconv.Quote(pin.String()), pin.Node)
		if err != nil {
			return nil, err
		}
		if other, ok := seen[at]; ok {
			return nil, &PinError{Pins: []string{other.String(), pin.String()}, Problem: "one node runs one stage; give its blocks in one pin"}
		}
		seen[at] = pin
		if err := p.checkPin(i, next); err != nil {
			return nil, err
		}
		cuts = append(cuts, cut{at, p.Model.folded(true).split(next, pin.Count)})
		next += pin.Count
	}
	if next < total {
		return nil, &PinError{Problem: fmt.Sprintf("they cover blocks 0-%d of 0-%d; pin blocks %d-%d too", next-1, total-1, next, total-1)}
	}
	if n := p.Constraints.MaxNodes; n > 0 && len(pins) > n {
		return nil, &PinError{Problem: fmt.Sprintf("they use %d nodes, max nodes is %d", len(pins), n)}
	}
	return cuts, nil
}

// checkPin checks pin i against the block index at which it has to start.
func (p Problem) checkPin(i, next int) error {
	pin, total := p.Constraints.Pins[i], p.Model.Blocks()
	texts := []string{pin.String()}
	if i > 0 {
		texts = []string{p.Constraints.Pins[i-1].String(), pin.String()}
	}
	if pin.Count < 1 || pin.Count > total {
		return &PinError{Pins: texts[len(texts)-1:], Problem: fmt.Sprintf("%d blocks; model %s has %d", pin.Count, p.Model.Name, total)}
	}
	switch {
	case pin.Ranged && pin.First < next:
		return &PinError{Pins: texts, Problem: fmt.Sprintf("block %d is given twice or out of order; the next free block is %d", pin.First, next)}
	case pin.Ranged && pin.First > next:
		return &PinError{Pins: texts, Problem: fmt.Sprintf("blocks %d-%d are given to nobody", next, pin.First-1)}
	case next+pin.Count > total:
		return &PinError{Pins: texts, Problem: fmt.Sprintf("they reach block %d; model %s has blocks 0-%d", next+pin.Count-1, p.Model.Name, total-1)}
	}
	return nil
}

// split gives count blocks from global index at, per run.
func (m Model) split(at, count int) [2]int {
	var out [2]int
	for i, r := range m.Runs {
		n := min(max(r.Count-at, 0), count)
		out[i] = n
		count -= n
		at = max(at-r.Count, 0)
	}
	return out
}
