package crash

import (
	"context"
	"errors"
	"fmt"

	"github.com/dals-host/dals-host/sdk/client"
)

// operations are what the host is killed over.
var operations = []operation{forging, failing, retiring, goingDown}

// recoveries are the starts that die over what an earlier death left.
var recoveries = []recovery{
	{"start after a forge", forging, "forge/record/before"},
	{"start after a retirement", retiring, "stage/demote/after"},
}

var forging = operation{
	name: "forge", first: "control/Forge/before",
	ready: func(m *matrix) error { return m.retire("nora") },
	run:   func(m *matrix) error { return m.forge("nora", "template", nil) },
	steps: func(m *matrix) []string { return m.planned("forge/") },
}

// failing forges a worker that ends before its first heartbeat.
var failing = operation{
	name: "undo of a forge", first: "control/Forge/before", from: "undo/",
	ready: func(*matrix) error { return nil },
	run: func(m *matrix) error {
		if err := m.forge("rex", "rogue", map[string]string{"start": "fails"}); err == nil {
			return errors.New("a worker that fails was forged")
		}
		return nil
	},
}

// imaging is the forge of the first worker from a binary.
var imaging = operation{
	name: "first forge of a type", first: "control/Forge/before", from: "forge/prepare image/before", upto: "forge/prepare image/after",
	ready: func(m *matrix) error { return errors.Join(m.retire("nora"), m.forgetImages()) },
	run:   func(m *matrix) error { return m.forge("nora", "template", nil) },
}

var retiring = operation{
	name: "retire", first: "control/Retire/before",
	ready: func(m *matrix) error { return m.forge("nora", "template", nil) },
	run:   func(m *matrix) error { return m.retire("nora") },
}

var goingDown = operation{
	name: "down", first: "control/Down/before",
	ready: func(m *matrix) error { return m.forge("nora", "template", nil) },
	run: func(m *matrix) error {
		if _, err := m.client.Down(m.t.Context(), 0); err != nil {
			return err
		}
		return nil
	},
}

// planned are the steps that a dry run tells of.
func (m *matrix) planned(area string) []string {
	m.t.Helper()
	plan, err := m.client.Forge(context.Background(), client.ForgeRequest{Name: "plan", Type: "template", ClassCode: "A1", DryRun: true})
	if err != nil {
		m.t.Fatalf("%v\n%s", err, m.log)
	}
	steps := make([]string, len(plan.Plan))
	for i, s := range plan.Plan {
		steps[i] = area + s.Step
	}
	if len(steps) == 0 {
		m.t.Fatal(fmt.Errorf("a plan without steps: %+v", plan))
	}
	return steps
}
