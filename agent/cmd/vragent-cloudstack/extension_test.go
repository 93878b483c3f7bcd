package main

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"vragent/agent/internal/cloudstack"
)

// calls answers each call by what its document says.
type calls func(ctx context.Context, command string, document []byte) (cloudstack.Result, json.RawMessage, error)

func (c calls) Call(ctx context.Context, command string, document []byte) (cloudstack.Result, json.RawMessage, error) {
	return c(ctx, command, document)
}

func TestExtension(t *testing.T) {
	for _, test := range []struct {
		name   string
		args   string // FILE stands for the payload's path
		answer calls
		status int
		out    string // of both streams
	}{
		{"in force", "add-dhcp-entry FILE 60", func(_ context.Context, command string, document []byte) (cloudstack.Result, json.RawMessage, error) {
			if command != "add-dhcp-entry" || string(document) != "{}" {
				return cloudstack.Result{}, nil, errors.New("another call")
			}
			return cloudstack.Result{State: cloudstack.Applied}, nil, nil
		}, 0, ""},
		{"with an answer", "ensure-network-device FILE", func(context.Context, string, []byte) (cloudstack.Result, json.RawMessage, error) {
			return cloudstack.Result{State: cloudstack.Applied}, json.RawMessage(`{"host":"r1"}`), nil
		}, 0, `{"host":"r1"}` + "\n"},
		{"pending", "implement-network FILE 60", func(context.Context, string, []byte) (cloudstack.Result, json.RawMessage, error) {
			return cloudstack.Result{Name: "implement-network net-1", State: cloudstack.Pending, Reason: "why"}, nil, nil
		}, 0, "implement-network net-1: pending: why\n"},
		{"rejected", "save-password FILE 60", func(context.Context, string, []byte) (cloudstack.Result, json.RawMessage, error) {
			return cloudstack.Result{Name: "save-password net-1", State: cloudstack.Rejected, Reason: "why"}, nil, nil
		}, 1, `{"message":"save-password net-1: why","status":"failed"}` + "\n"},
		{"not taken in", "save-password FILE 60", func(context.Context, string, []byte) (cloudstack.Result, json.RawMessage, error) {
			return cloudstack.Result{}, nil, errors.New("the disk is full")
		}, 1, `{"message":"save-password: not taken in: the disk is full","status":"failed"}` + "\n"},
		{"out of time", "save-password FILE 0.001", func(ctx context.Context, _ string, _ []byte) (cloudstack.Result, json.RawMessage, error) {
			<-ctx.Done()
			return cloudstack.Result{}, nil, ctx.Err()
		}, 1, `{"message":"save-password: not done within 1ms","status":"failed"}` + "\n"},
		{"no file", "save-password FILE.not 60", nil, 1, `{"message":"open FILE.not: no such file or directory","status":"failed"}` + "\n"},
		{"no time limit", "save-password FILE soon", nil, 1, `{"message":"the time limit is \"soon\"; it must be a number of seconds","status":"failed"}` + "\n"},
		{"too little", "save-password", nil, 1, `{"message":"usage: vragent-extension COMMAND PAYLOAD-FILE [TIMEOUT]","status":"failed"}` + "\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, _, out := newRouter(t, false)
			r.calls = test.answer
			file := filepath.Join(t.TempDir(), "payload.json")
			write(t, file, "{}")
			status := r.run(context.Background(), "vragent-extension", strings.Fields(strings.ReplaceAll(test.args, "FILE", file)))
			if printed := strings.ReplaceAll(out.String(), file, "FILE"); status != test.status || printed != test.out {
				t.Errorf("status %d, printed %q; want %d, %q", status, printed, test.status, test.out)
			}
		})
	}
}
