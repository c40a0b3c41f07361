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
	"time"

	"github.com/spf13/cobra"

	"github.com/distorch/distorch/cmd/internal/output"
)

const (
	watchEvery  = 2 * time.Second
	watchSpeedy = 100 * time.Millisecond // the least interval
)

// answer is what a command shows: a value, and how it looks as a table.
type answer struct {
	value any
	table func(io.Writer) error
}

// write prints the answer.
func (v answer) write(w io.Writer, format output.Format) error {
	if format == output.Table {
		return v.table(w)
	}
	return output.Write(w, format, v.value)
}

// document is the answer as one of a stream: a line of JSON, a YAML document
// behind its marker, or a table.
func (v answer) document(format output.Format) (string, error) {
	var b bytes.Buffer
	switch format {
	case output.JSON:
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		err := enc.Encode(v.value)
		return b.String(), err
	case output.YAML:
		b.WriteString("---\n")
	}
	err := v.write(&b, format)
	return b.String(), err
}

// watching are the flags of a command that can show an answer again and again.
type watching struct {
	on    bool
	every time.Duration
}

// watchFlags adds --watch and --interval.
func watchFlags(cmd *cobra.Command) *watching {
	w := &watching{}
	cmd.Flags().BoolVarP(&w.on, "watch", "w", false, "show it again whenever it changes, until Ctrl-C")
	cmd.Flags().DurationVar(&w.every, "interval", watchEvery, "with --watch: how often to look")
	return w
}

// show prints what ask answers, once or until the command is interrupted.
func (a *app) show(cmd *cobra.Command, w *watching, format output.Format, ask func(*cobra.Command, *operator) (answer, error)) error {
	switch {
	case !w.on && cmd.Flags().Changed("interval"):
		return usage(errors.New("--interval is of use with --watch only"))
	case w.every < watchSpeedy:
		return usage(fmt.Errorf("--interval %s: want %s or more", w.every, watchSpeedy))
	}
	o, err := a.connect(cmd)
	if err != nil {
		return err
	}
	if w.on {
		v := &viewer{app: a, cmd: cmd, format: format, every: w.every, ask: ask, operator: o, screen: output.NewScreen(a.stdout)}
		return v.watch(cmd.Context())
	}
	defer o.close()
	v, err := ask(cmd, o)
	if err != nil {
		return err
	}
	return v.write(a.stdout, format)
}

// viewer shows an answer again whenever it is another.
type viewer struct {
	*app
	cmd    *cobra.Command
	format output.Format
	every  time.Duration
	ask    func(*cobra.Command, *operator) (answer, error)
	screen *output.Screen

	operator *operator // nil: the coordinator is lost
	text     string    // the last answer
	shown    bool
	trouble  string // what was said of the coordinator last
}

// watch ends without an error when the command is interrupted: that is how it
// is meant to end.
func (v *viewer) watch(ctx context.Context) error {
	defer v.disconnect()
	tick := time.NewTicker(v.every)
	defer tick.Stop()
	for {
		text, err := v.fetch()
		if isInterrupt(context.Cause(ctx)) {
			return nil
		}
		if err := v.update(text, err); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// update shows what came of asking. Its error is one that asking again will not
// mend.
func (v *viewer) update(text string, err error) error {
	switch code := exitCode(err); {
	case err == nil:
	case code == exitUnreachable || code == exitFailure:
		v.disconnect() // the next one may be another coordinator
		return v.lost(err)
	default:
		return err
	}
	back := v.trouble != ""
	v.trouble = ""
	if back && !v.screen.Terminal() {
		fmt.Fprintf(v.stderr, "distorch: coordinator %s answers again\n", v.operator.Address)
		back = false // nothing is to be wiped away
	}
	if v.shown && v.text == text && !back {
		return nil
	}
	v.text, v.shown = text, true
	return v.screen.Show(text)
}

func (v *viewer) fetch() (string, error) {
	if v.operator == nil {
		o, err := v.connect(v.cmd)
		if err != nil {
			return "", err
		}
		v.operator = o
	}
	a, err := v.ask(v.cmd, v.operator)
	if err != nil {
		return "", err
	}
	return a.document(v.format)
}

// lost says once that the coordinator does not answer: below the table on a
// terminal, on standard error elsewhere.
func (v *viewer) lost(err error) error {
	if v.trouble != "" {
		return nil
	}
	v.trouble = fmt.Sprintf("distorch: %s; trying again every %s\n", oneLine(err), v.every)
	if v.screen.Terminal() {
		return v.screen.Show(v.text + v.trouble)
	}
	_, werr := io.WriteString(v.stderr, v.trouble)
	return werr
}

func (v *viewer) disconnect() {
	if v.operator != nil {
		v.operator.close()
		v.operator = nil
	}
}
