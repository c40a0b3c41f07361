// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/distorch/distorch/model/safetensors"
)

// maxCase bounds case.json.
const maxCase = 4 << 20

// goldenCase is a case.json.
type goldenCase struct {
	dir string
	io  *safetensors.File

	Name         string                     `json:"name"`
	Model        string                     `json:"model"` // relative to the folder
	Architecture string                     `json:"architecture"`
	Weights      string                     `json:"weights_dtype"`
	Options      map[string]json.RawMessage `json:"options"`
	LoRA         json.RawMessage            `json:"lora"`
	Strengths    []float64                  `json:"strengths"`
	RawTolerance json.RawMessage            `json:"tolerance"`
	Shift        map[string]float64         `json:"shift"`

	tolerances map[string]float64 // nil where RawTolerance is a text
}

// openCase reads a folder's case.json and the header of its io.safetensors.
func openCase(dir string) (*goldenCase, error) {
	c := &goldenCase{dir: dir, Name: filepath.Base(dir)}
	f, err := os.Open(filepath.Join(dir, "case.json"))
	if err != nil {
		return c, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxCase+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return c, err
	}
	if err := c.parse(text); err != nil {
		return c, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	c.io, err = safetensors.Open(filepath.Join(dir, "io.safetensors"))
	return c, err
}

// parse reads the text of a case.json.
func (c *goldenCase) parse(text []byte) error {
	if len(text) > maxCase {
		return fmt.Errorf("longer than %d bytes", maxCase)
	}
	if err := json.Unmarshal(text, c); err != nil {
		return err
	}
	if !strings.HasPrefix(strings.TrimSpace(string(c.RawTolerance)), "{") {
		return nil
	}
	if err := json.Unmarshal(c.RawTolerance, &c.tolerances); err != nil {
		return fmt.Errorf("tolerance: %w", err)
	}
	return nil
}

func (c *goldenCase) close() {
	if c.io != nil {
		_ = c.io.Close() // was only read
	}
}

// tolerance is that of the longest name in case.json that begins the output's
// name, up to a dot. The inner values of a bf16 run have that of its output
// unless case.json says otherwise.
func (c *goldenCase) tolerance(output string) (float64, bool) {
	best, tol := "", 0.0
	for prefix, v := range c.tolerances {
		if (output == prefix || strings.HasPrefix(output, prefix+".")) && len(prefix) > len(best) {
			best, tol = prefix, v
		}
	}
	if best == "" && strings.HasPrefix(output, "tap_bf16.") {
		tol, ok := c.tolerances["out.bf16"]
		return tol, ok
	}
	return tol, best != ""
}

// names are the tensors of io.safetensors under a prefix, which is cut off.
func (c *goldenCase) names(prefix string) (names []string) {
	for _, t := range c.io.Tensors() {
		if rest, ok := strings.CutPrefix(t.Name, prefix); ok {
			names = append(names, rest)
		}
	}
	return names
}

func (c *goldenCase) values(name string) ([]float32, error) {
	v, _, err := c.io.Float32s(name)
	return v, err
}

// run picks what kind of case it is.
func (v *verifier) runCase(dir string) {
	c, err := openCase(dir)
	defer c.close()
	if err == nil {
		err = v.dispatch(c)
	}
	if err != nil {
		v.emit(Record{Case: c.Name, Failure: err.Error()})
	}
}

func (v *verifier) dispatch(c *goldenCase) error {
	switch {
	case len(c.names("freq.")) > 0:
		return v.tables(c)
	case c.tolerances == nil:
		return errors.New("case.json has no tolerances")
	case len(c.LoRA) > 0:
		return v.lora(c)
	case c.unknownOption() != "":
		return fmt.Errorf("not supported: option %s of the case", c.unknownOption())
	case c.Model == "" && len(c.Shift) > 0:
		return v.schedules(c)
	case c.Model == "":
		return errors.New("case.json names no model")
	}
	if _, ok := c.tolerances["dequantised"]; ok {
		return v.stored(c)
	}
	if _, ok := c.tolerances["samples"]; ok {
		return v.sampling(c)
	}
	return v.forward(c)
}
