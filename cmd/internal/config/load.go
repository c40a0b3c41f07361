// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

const (
	envPrefix = "DISTORCH_"
	// annotation marks a flag with the key that it sets.
	annotation = "distorch_config_key"
	// maxFileBytes bounds a configuration file.
	maxFileBytes = 1 << 20
)

// Origin says where the value of a key came from.
type Origin struct {
	Source string // "flag", "environment", "file" or "default"
	Name   string // of the flag, variable or file
	Line   int    // in the file; 0: not known
}

func (o Origin) String() string {
	if o.Name == "" {
		return o.Source
	}
	if o.Line > 0 {
		return fmt.Sprintf("%s %s:%d", o.Source, o.Name, o.Line)
	}
	return o.Source + " " + o.Name
}

// Origin says where the value of key came from; the zero Origin if there is no
// such key.
func (c *Config) Origin(key string) Origin { return c.origins[key] }

// Keys lists every key in order of name.
func Keys() []string {
	keys := make([]string, 0, 32)
	walk(reflect.ValueOf(Default()), "", func(key string, _ reflect.Value) { keys = append(keys, key) })
	slices.Sort(keys)
	return keys
}

// Env is the environment variable of key.
func Env(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// walk visits the fields of a Config with their keys.
func walk(v reflect.Value, prefix string, visit func(key string, v reflect.Value)) {
	for i := range v.NumField() {
		name, ok := v.Type().Field(i).Tag.Lookup("mapstructure")
		switch {
		case !ok:
		case v.Field(i).Kind() == reflect.Struct:
			walk(v.Field(i), prefix+name+".", visit)
		default:
			visit(prefix+name, v.Field(i))
		}
	}
}

// Flag adds a flag that sets key, with the key's type and default. It panics if
// there is no such key.
func Flag(fs *pflag.FlagSet, name, key, usage string) {
	found := false
	walk(reflect.ValueOf(Default()), "", func(k string, v reflect.Value) {
		if k != key {
			return
		}
		found = true
		switch value := v.Interface().(type) {
		case string:
			fs.String(name, value, usage)
		case int:
			fs.Int(name, value, usage)
		case []string:
			fs.StringSlice(name, value, usage)
		case time.Duration:
			fs.Duration(name, value, usage)
		case []Device:
			fs.StringSlice(name, nil, usage)
		case Bytes:
			fs.Var(&value, name, usage)
		default:
			panic(fmt.Sprintf("key %s has type %T, which no flag can hold", key, value))
		}
	})
	if !found {
		panic("flag --" + name + " sets " + key + ", which is not a key")
	}
	if err := fs.SetAnnotation(name, annotation, []string{key}); err != nil {
		panic(err)
	}
}

// Load reads the configuration: flags of fs that were made by Flag and set, then
// the environment, then file (YAML, TOML or JSON by its ending; "" for none),
// then defaults. fs may be nil. The result is validated.
func Load(fs *pflag.FlagSet, file string) (*Config, error) {
	v := viper.New()
	walk(reflect.ValueOf(Default()), "", func(key string, value reflect.Value) {
		v.SetDefault(key, value.Interface())
	})
	if err := readFile(v, file); err != nil {
		return nil, err
	}
	keys := Keys()
	at := map[string]int{}
	if file != "" {
		at = lines(file)
	}
	if err := errors.Join(misspeltKeys(v, keys, file, at), misspeltEnv(keys)); err != nil {
		return nil, err
	}
	for _, key := range keys {
		// Bound one by one: with AutomaticEnv a variable such as DISTORCH_AGENT
		// would hide every key of that section.
		if err := v.BindEnv(key, Env(key)); err != nil {
			return nil, fmt.Errorf("bind %s: %w", Env(key), err)
		}
	}
	flags, err := bindFlags(v, fs)
	if err != nil {
		return nil, err
	}
	c := &Config{origins: map[string]Origin{}}
	if err := v.UnmarshalExact(c, viper.DecodeHook(mapstructure.ComposeDecodeHookFunc(
		listHook,
		mapstructure.TextUnmarshallerHookFunc(),
		mapstructure.StringToTimeDurationHookFunc(),
	))); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	for _, key := range keys {
		c.origins[key] = origin(v, key, flags[key], file, at)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c, nil
}

// listHook cuts the text of a list, which a variable holds, at its commas.
func listHook(from, to reflect.Type, value any) (any, error) {
	if from.Kind() != reflect.String || to.Kind() != reflect.Slice {
		return value, nil
	}
	text := reflect.ValueOf(value).String()
	if text == "" {
		return []string{}, nil
	}
	return strings.Split(text, ","), nil
}

func readFile(v *viper.Viper, file string) error {
	if file == "" {
		return nil
	}
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if info.Size() > maxFileBytes {
		return fmt.Errorf("read configuration %s: %d bytes, at most %d are read", file, info.Size(), maxFileBytes)
	}
	v.SetConfigFile(file)
	if err := v.ReadInConfig(); err != nil {
		return fmt.Errorf("read configuration %s: %w", file, err)
	}
	return nil
}

func bindFlags(v *viper.Viper, fs *pflag.FlagSet) (set map[string]string, err error) {
	set = map[string]string{}
	if fs == nil {
		return set, nil
	}
	fs.VisitAll(func(f *pflag.Flag) {
		keys := f.Annotations[annotation]
		if len(keys) != 1 || err != nil {
			return
		}
		if f.Changed {
			set[keys[0]] = f.Name
		}
		err = v.BindPFlag(keys[0], f)
	})
	return set, err
}

func origin(v *viper.Viper, key, flag, file string, at map[string]int) Origin {
	switch {
	case flag != "":
		return Origin{Source: "flag", Name: "--" + flag}
	case os.Getenv(Env(key)) != "":
		return Origin{Source: "environment", Name: Env(key)}
	case file != "" && v.InConfig(key):
		return Origin{Source: "file", Name: file, Line: at[key]}
	}
	return Origin{Source: "default"}
}

func misspeltKeys(v *viper.Viper, keys []string, file string, at map[string]int) error {
	var errs []error
	for _, key := range v.AllKeys() {
		if slices.Contains(keys, key) {
			continue
		}
		where := file
		if at[key] > 0 {
			where = fmt.Sprintf("%s:%d", file, at[key])
		}
		if slices.ContainsFunc(keys, func(k string) bool { return strings.HasPrefix(k, key+".") }) {
			errs = append(errs, fmt.Errorf("%s: %q is a section, not a value", where, key))
			continue
		}
		near, _ := nearest(key, keys)
		errs = append(errs, fmt.Errorf("%s: there is no key %q; did you mean %q?", where, key, near))
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// misspeltEnv reports variables that are a typing error away from one of ours.
// Others that share the prefix are left alone: Kubernetes makes
// DISTORCH_AGENT_SERVICE_HOST and the like for a service's name.
func misspeltEnv(keys []string) error {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = Env(key)
	}
	var errs []error
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || slices.Contains(names, name) {
			continue
		}
		if near, distance := nearest(name, names); distance <= 2 {
			errs = append(errs, fmt.Errorf("environment: %s sets no key; did you mean %s?", name, near))
		}
	}
	return errors.Join(errs...)
}
