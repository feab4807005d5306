package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestProbeIsCaged: a plugin that nobody knows, and that tries every way out while
// it is asked what it is, comes no further than a worker, and has less.
func TestProbeIsCaged(t *testing.T) {
	for name, flags := range cages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCage(t, flags...)
			for typ, attempts := range map[string][]attempt{
				"calls": slices.Concat(statusOfCage(), systemCalls()),
				"files": slices.Concat(c.files(), c.kernelFiles(), c.network()),
				"bombs": fillers(t),
				"hog":   {{name: "burn", args: []string{"1000"}, want: "one core", whole: true, same: "a busy machine has no more to give"}},
			} {
				for i, got := range c.probed(typ, attempts) {
					a := attempts[i]
					if len(a.args) > 0 && strings.HasPrefix(a.args[0], "/worker") {
						a.want += " ENOENT" // it has no folder of its own
					}
					c.judge(a, got)
				}
			}
			c.mustSend("bystander", "template.echo", map[string]string{"message": "still here"})
		})
	}
}

// probed drops a plugin that makes attempts while it is probed, and gives what came
// of them.
func (c *cage) probed(typ string, attempts []attempt) (told []string) {
	c.t.Helper()
	type line struct {
		Name string   `json:"name"`
		Args []string `json:"args"`
	}
	var lines []line
	for _, a := range attempts {
		lines = append(lines, line{a.name, a.args})
	}
	text, err := json.Marshal(map[string]any{"name": typ, "attempts": lines})
	if err != nil {
		c.t.Fatal(err)
	}
	binary, err := os.ReadFile(c.binary)
	if err != nil {
		c.t.Fatal(err)
	}
	name := filepath.Join(c.dir, "plugins", "dals-worker-"+typ)
	if err := os.WriteFile(name+".new", slices.Concat(binary, []byte("\n"), text), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		c.t.Fatal(err)
	}
	var schema struct {
		Properties struct {
			Outcomes struct {
				Default string `json:"default"`
			} `json:"outcomes"`
		} `json:"properties"`
	}
	c.eventually(typ+" is registered", func() error {
		found, err := c.client.Type(c.t.Context(), typ)
		if err != nil {
			plugins, _ := c.client.Plugins(c.t.Context())
			return fmt.Errorf("%w; plugins %+v", err, plugins)
		}
		return json.Unmarshal(found.ConfigSchema, &schema)
	})
	if err := json.Unmarshal([]byte(schema.Properties.Outcomes.Default), &told); err != nil || len(told) != len(attempts) {
		c.t.Fatalf("%s tells %d outcomes of %d attempts: %v", typ, len(told), len(attempts), err)
	}
	return told
}
