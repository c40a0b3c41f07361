// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package calibration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/distorch/distorch/agent/feedback"
	"github.com/distorch/distorch/model/tensor"
)

// Dir is a folder of calibrations. The empty Dir holds none and keeps none.
type Dir string

// Path is the file of an identity.
func (d Dir) Path(id Identity) string { return filepath.Join(string(d), id.Key()+".json") }

func (d Dir) learned(id Identity) string { return filepath.Join(string(d), id.Key()+".learned.json") }

// maxFile bounds what is read.
const maxFile = 1 << 20

// Load reads the calibration of an identity. It is nil without an error when
// there is none; the error of one that cannot be used names the file.
func (d Dir) Load(id Identity) (*Calibration, error) {
	if d == "" {
		return nil, nil
	}
	b, err := read(d.Path(id))
	if b == nil || err != nil {
		return nil, err
	}
	c, err := Parse(b)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", d.Path(id), err)
	case c.Identity != id:
		return nil, fmt.Errorf("%s is of another machine, build or number of threads", d.Path(id))
	}
	return c, nil
}

// Parse reads a calibration and checks it.
func Parse(b []byte) (*Calibration, error) {
	var version struct{ Version int }
	if err := json.Unmarshal(b, &version); err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	var c Calibration
	if version.Version != Version { // whose form this build may not know
		c.Version = version.Version
		return nil, c.Check()
	}
	if err := strict(b, &c); err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	return &c, nil
}

func strict(b []byte, to any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode(to)
}

// Save replaces the calibration of its identity and says where it lies.
func (d Dir) Save(c *Calibration) (string, error) {
	if d == "" {
		return "", nil
	}
	if err := c.Check(); err != nil {
		return "", fmt.Errorf("keep the calibration: %w", err)
	}
	path := d.Path(c.Identity)
	return path, d.write(path, c)
}

// Lesson is what forwards of one dtype and size of activations have taught.
type Lesson struct {
	DType    string  `json:"dtype"`
	Elements uint64  `json:"elements"` // tokens times hidden size
	Ratio    float64 `json:"ratio"`    // measured over forecast
	Samples  uint64  `json:"samples"`
	Base     float64 `json:"base"` // what the ratio was when the device was measured last; 0: 1
	Again    bool    `json:"again"`
	Told     float64 `json:"told"` // the ratio that the cluster knows; 0: none
}

// State is where the lesson goes on.
func (l Lesson) State() feedback.State {
	return feedback.State{Ratio: l.Ratio, Samples: l.Samples, Base: l.Base, Again: l.Again}
}

// learned is the file of lessons.
type learned struct {
	Version     int      `json:"version"`
	Calibration string   `json:"calibration"` // the rates that they were learned with
	Lessons     []Lesson `json:"lessons"`
}

// MaxLessons is how many are kept.
const MaxLessons = 32

// Lessons reads what was learned with a calibration; none where the file is
// of another one.
func (d Dir) Lessons(c *Calibration) ([]Lesson, error) {
	if d == "" {
		return nil, nil
	}
	path := d.learned(c.Identity)
	b, err := read(path)
	if b == nil || err != nil {
		return nil, err
	}
	l, err := parseLessons(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if l.Calibration != c.ID() {
		return nil, nil
	}
	return l.Lessons, nil
}

func parseLessons(b []byte) (*learned, error) {
	var l learned
	if err := strict(b, &l); err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	if l.Version != Version || len(l.Lessons) > MaxLessons {
		return nil, fmt.Errorf("it is of version %d and has %d lessons; this build takes version %d and %d", l.Version, len(l.Lessons), Version, MaxLessons)
	}
	for _, x := range l.Lessons {
		if _, err := tensor.ParseDType(x.DType); err != nil {
			return nil, err
		}
		// What Step bounds is bounded here too.
		if !(x.Ratio > 0.1) || !(x.Ratio < 10) || !(x.Base >= 0) || !(x.Base < 10) || !(x.Told >= 0) || !(x.Told < 10) {
			return nil, fmt.Errorf("the ratio %g over %g is out of bounds", x.Ratio, x.Base)
		}
	}
	return &l, nil
}

// SaveLessons replaces what was learned with a calibration.
func (d Dir) SaveLessons(c *Calibration, lessons []Lesson) error {
	if d == "" {
		return nil
	}
	return d.write(d.learned(c.Identity), learned{Version, c.ID(), lessons})
}

// read is nil without an error when there is no file.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return append([]byte{}, b...), nil // an empty file is not none
}

// write lets no reader see half a file.
func (d Dir) write(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(string(d), ".writing-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}
