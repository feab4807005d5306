package main

import (
	"context"
	"encoding/base64"
	"time"

	"github.com/dals-host/dals-host/sdk"
)

// config is what may be set when a worker is forged (--config, --set); each
// field has a description for people. Change this.
type config struct {
	Greeting string `json:"greeting" jsonschema:"what template.info greets with"`
}

// template holds what the tasks share. It is used by many tasks at once.
type template struct {
	config *config
}

// newType says what the binary provides. Change all of this.
func newType() sdk.Type {
	t := &template{config: &config{Greeting: "hello"}} // the defaults
	return sdk.Type{
		Name:    "template",
		Version: "1.0.0",
		Family:  "TP",
		Summary: "The example to copy: echoes, sleeps, fails, and tells about itself.",
		Config:  t.config,
		Tasks: []sdk.Task{
			sdk.Func("template.echo", "Answer with the same message.", t.echo),
			sdk.Func("template.sleep", "Answer after a while, or when cancelled.", t.sleep),
			sdk.Func("template.fail", "Fail with the given message.", t.fail),
			sdk.Func("template.info", "Tell what the worker knows of itself.", t.info),
		},
	}
}

type message struct {
	Message string `json:"message"`
}

// echo is the smallest task: input that fits the schema in, output out.
func (t *template) echo(_ context.Context, in message) (message, error) {
	return in, nil
}

type sleepInput struct {
	Milliseconds int64 `json:"milliseconds" jsonschema:"how long, from 0"`
}

type sleepOutput struct {
	SleptMS int64 `json:"slept_ms"`
}

// sleep shows a task that takes its time: it ends when ctx does, which is at the
// deadline, when the sender cancels, and when the worker ends.
func (t *template) sleep(ctx context.Context, in sleepInput) (sleepOutput, error) {
	const longest = int64(24 * time.Hour / time.Millisecond)
	if in.Milliseconds < 0 || in.Milliseconds > longest {
		return sleepOutput{}, sdk.Errorf("bad_duration", "sleep %d ms: not from 0 to %d", in.Milliseconds, longest)
	}
	started := time.Now()
	timer := time.NewTimer(time.Duration(in.Milliseconds) * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return sleepOutput{SleptMS: time.Since(started).Milliseconds()}, nil
	case <-ctx.Done():
		return sleepOutput{}, ctx.Err()
	}
}

// fail shows an error with a code of its own, which programs may rely on.
func (t *template) fail(_ context.Context, in message) (message, error) {
	return message{}, sdk.Errorf("template_failed", "%s", in.Message)
}

type none struct{}

type info struct {
	WorkerName   string `json:"worker_name"`
	WorkerSerial string `json:"worker_serial"`
	WorkerType   string `json:"worker_type"`
	TypeVersion  string `json:"type_version"`
	ModelNumber  string `json:"model_number"`
	PublicKey    string `json:"public_key" jsonschema:"base64 of the Ed25519 key that signs the worker's results"`
	Glyph        string `json:"glyph" jsonschema:"a picture of the public key"`
	Greeting     string `json:"greeting"`
}

// info shows what a task may know of the worker that runs it.
func (t *template) info(ctx context.Context, _ none) (info, error) {
	id := sdk.FromContext(ctx).Identity()
	return info{
		WorkerName:   id.WorkerName,
		WorkerSerial: id.WorkerSerial,
		WorkerType:   id.WorkerType,
		TypeVersion:  id.TypeVersion,
		ModelNumber:  id.ModelNumber,
		PublicKey:    base64.StdEncoding.EncodeToString(id.PublicKey),
		Glyph:        id.Glyph,
		Greeting:     t.config.Greeting,
	}, nil
}
