// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// outFile is a file that is to be written later. Its room on the disk is taken
// at once, so that a full disk or a folder that cannot be written shows before
// the work and not after it. The file of that name stays as it is until commit.
type outFile struct {
	path string
	temp *os.File
}

// reserve takes room for size bytes beside path. The file gets the given
// permissions, less the umask.
func reserve(path string, size int, mode os.FileMode) (_ *outFile, err error) {
	fail := func(err error) error {
		if inner, ok := errors.AsType[*fs.PathError](err); ok { // it names the temporary file
			err = inner.Err
		}
		return fmt.Errorf("write %s: %w; free some space or choose another place", path, err)
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fail(errors.New("not a regular file"))
	}
	name := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d.part", filepath.Base(path), os.Getpid()))
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return nil, fail(err)
	}
	o := &outFile{path: path, temp: f}
	// Written, not truncated to: a sparse file takes no room.
	zeros := make([]byte, min(size, 1<<20))
	for left := size; left > 0 && err == nil; left -= len(zeros) {
		_, err = f.Write(zeros[:min(left, len(zeros))])
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		o.abort()
		return nil, fail(err)
	}
	return o, nil
}

// commit writes the content and gives the file its name.
func (o *outFile) commit(content []byte) error {
	_, err := o.temp.WriteAt(content, 0)
	if err == nil {
		err = o.temp.Truncate(int64(len(content)))
	}
	if err == nil {
		err = o.temp.Sync()
	}
	err = errors.Join(err, o.temp.Close())
	if err == nil {
		err = os.Rename(o.temp.Name(), o.path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", o.path, errors.Join(err, os.Remove(o.temp.Name())))
	}
	o.temp = nil
	return nil
}

// abort removes what was reserved; after commit it does nothing.
func (o *outFile) abort() {
	if o == nil || o.temp == nil {
		return
	}
	_ = o.temp.Close()
	_ = os.Remove(o.temp.Name()) // an empty file with a dot before its name
	o.temp = nil
}
