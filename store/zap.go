// Copyright The distorch authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"log/slog"
	"runtime"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapTo makes etcd's logger write to slog. What etcd merely tells or warns of
// is our debugging: at every start and stop it warns of what is meant so. onFatal, if given, gets the message with
// which etcd would end the process; etcd's goroutine ends instead.
func zapTo(logger *slog.Logger, onFatal func(string)) *zap.Logger {
	options := []zap.Option{}
	if onFatal != nil {
		options = append(options, zap.WithFatalHook(fatalHook(onFatal)), zap.WithPanicHook(fatalHook(onFatal)))
	}
	return zap.New(&slogCore{logger: logger}, options...)
}

type fatalHook func(string)

func (h fatalHook) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	var message strings.Builder
	message.WriteString(entry.Message)
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			message.WriteString(": " + err.Error())
		}
	}
	h(message.String())
	runtime.Goexit()
}

type slogCore struct {
	logger *slog.Logger
	fields []zapcore.Field
}

// harmless are messages that etcd calls errors at every start or stop.
func harmless(message string) bool {
	return message == "setting up serving from embedded etcd failed." || message == "failed to update storage version"
}

func slogLevel(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l >= zapcore.InfoLevel:
		return slog.LevelDebug
	default:
		return slog.LevelDebug - 4
	}
}

func (c *slogCore) Enabled(l zapcore.Level) bool {
	return c.logger.Enabled(context.Background(), slogLevel(l))
}

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{logger: c.logger, fields: append(slices.Clone(c.fields), fields...)}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slogLevel(e.Level)
	if harmless(e.Message) {
		level = slog.LevelDebug
	}
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range append(slices.Clone(c.fields), fields...) {
		f.AddTo(encoder)
	}
	attributes := make([]slog.Attr, 0, len(encoder.Fields))
	for name, value := range encoder.Fields {
		attributes = append(attributes, slog.Any(name, value))
	}
	c.logger.LogAttrs(context.Background(), level, "etcd",
		slog.String("message", e.Message), slog.Any("fields", slog.GroupValue(attributes...)))
	return nil
}

func (c *slogCore) Sync() error { return nil }
