// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"reflect"
)

// Setting is the value of one key and where it came from.
type Setting struct {
	Key    string
	Value  any // a string, int or []string, as a file would have it
	Origin Origin
}

// Settings are all keys with their values, in the order of the fields of Config.
func (c *Config) Settings() []Setting {
	var out []Setting
	walk(reflect.ValueOf(*c), "", func(key string, v reflect.Value) {
		value := v.Interface()
		switch x := value.(type) {
		case fmt.Stringer: // an amount or a duration
			value = x.String()
		case []Device:
			all := []string{}
			for _, d := range x {
				all = append(all, d.String())
			}
			value = all
		case []string:
			value = append([]string{}, x...)
		}
		out = append(out, Setting{key, value, c.origins[key]})
	})
	return out
}
