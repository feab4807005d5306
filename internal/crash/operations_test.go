package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/dals-host/dals-host/sdk/client"
)

// The versions of the worker type: "\nchameleon VERSION BEHAVIOUR\n" behind the
// end of its binary.
var versions = map[string]string{"1.0.0": "well", "1.1.0": "well", "2.0.0": "fails"}

// operations are what the host is killed over. The last ends it.
var operations = []operation{
	{
		name: "forge", first: "control/Forge/before", runner: "forge",
		ready: func(m *matrix) error { return m.retire("nora") },
		run:   func(m *matrix) error { return m.forge("1.0.0") },
	},
	{
		// Of a worker that ends before its first heartbeat.
		name: "forge that fails", first: "control/Forge/before", from: "undo/",
		ready: func(m *matrix) error { return m.retire("nora") },
		run:   func(m *matrix) error { return must(m.forge("2.0.0")) },
	},
	{
		name: "stop", first: "control/Stop/before",
		ready: (*matrix).live,
		run: func(m *matrix) error {
			_, err := m.client.Stop(m.t.Context(), "nora", 0)
			return err
		},
	},
	{
		name: "start", first: "control/Start/before",
		ready: (*matrix).stopped,
		run: func(m *matrix) error {
			_, err := m.client.Start(m.t.Context(), "nora", 0)
			return err
		},
	},
	{
		name: "restart", first: "control/Restart/before",
		ready: (*matrix).live,
		run: func(m *matrix) error {
			_, err := m.client.Restart(m.t.Context(), "nora", 0, 0)
			return err
		},
	},
	{
		name: "upgrade", first: "control/Upgrade/before", runner: "upgrade",
		ready: (*matrix).live,
		run:   func(m *matrix) error { return m.upgrade("") },
	},
	{
		name: "upgrade that fails", first: "control/Upgrade/before", from: "undo/",
		ready: (*matrix).live,
		run:   func(m *matrix) error { return must(m.upgrade("2.0.0")) },
	},
	{
		name: "retire", first: "control/Retire/before",
		ready: (*matrix).live,
		run:   func(m *matrix) error { return m.retire("nora") },
	},
	{
		name: "down", first: "control/Down/before",
		ready: (*matrix).live,
		run: func(m *matrix) error {
			_, err := m.client.Down(m.t.Context(), 0)
			return err
		},
	},
}

// imaging is the forge of the first worker from a binary, under containerd.
var imaging = operation{
	name: "first forge of a type", first: "control/Forge/before", from: "forge/prepare image/before", upto: "forge/prepare image/after",
	ready: func(m *matrix) error { return errors.Join(m.retire("nora"), m.forgetImages()) },
	run:   func(m *matrix) error { return m.forge("1.0.0") },
}

// recoveries are the starts that die over what an earlier death left.
var recoveries = []recovery{
	{"start after a forge", "forge", "forge/record/before"},
	{"start after an upgrade", "upgrade", "upgrade/record/before"},
	{"start after a stop", "stop", "launch/stop/before"},
	{"start after a retirement", "retire", "stage/demote/after"},
}

func operationOf(name string) operation {
	all := append(slices.Clone(operations), claiming)
	return all[slices.IndexFunc(all, func(op operation) bool { return op.name == name })]
}

// must turns the success of what has to fail into an error.
func must(err error) error {
	if err == nil {
		return errors.New("it did not fail")
	}
	return nil
}

// install drops versions of the type into the plugins folder.
func (h *host) install(versions map[string]string) {
	h.t.Helper()
	binary, err := os.ReadFile(filepath.Join(h.bin, "dals-worker-chameleon"))
	for version, behaviour := range versions {
		text := slices.Concat(binary, fmt.Appendf(nil, "\nchameleon %s %s\n", version, behaviour))
		err = errors.Join(err, os.WriteFile(filepath.Join(h.dir, "plugins", "dals-worker-chameleon-"+version), text, 0o755))
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// forge makes the worker, or finds it made.
func (h *host) forge(version string) error { return h.forgeAs("nora", version) }

func (h *host) forgeAs(name, version string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := h.client.Forge(ctx, client.ForgeRequest{Name: name, Type: "chameleon", Version: version, ClassCode: "A1"})
	return err
}

// retire ends a worker; one that there is not is retired.
func (h *host) retire(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := h.client.Retire(ctx, name, time.Second)
	var no *client.Error
	if errors.As(err, &no) && no.Code == "not_found" {
		return nil
	}
	return err
}

// nora is the worker; false when there is none.
func (h *host) nora() (client.Worker, bool, error) {
	workers, err := h.client.Workers(h.t.Context(), client.WorkerFilter{})
	i := slices.IndexFunc(workers, func(w client.Worker) bool { return w.WorkerName == "nora" })
	if i < 0 {
		return client.Worker{}, false, err
	}
	return workers[i], true, nil
}

// live makes the worker one that runs.
func (m *matrix) live() error {
	w, found, err := m.nora()
	switch {
	case err != nil:
		return err
	case !found:
		return m.forge("1.0.0")
	case w.State == "stopped":
		_, err = m.client.Start(m.t.Context(), "nora", 0)
	}
	return err
}

// stopped makes the worker one that does not.
func (m *matrix) stopped() error {
	if w, found, err := m.nora(); err != nil || found && w.State == "stopped" {
		return err
	}
	if err := m.live(); err != nil {
		return err
	}
	_, err := m.client.Stop(m.t.Context(), "nora", 0)
	return err
}

// upgrade moves the worker to a version, or to the other one of those that are
// well.
func (m *matrix) upgrade(version string) error {
	w, _, err := m.nora()
	if err != nil {
		return err
	}
	if version == "" {
		version = map[string]string{"1.0.0": "1.1.0", "1.1.0": "1.0.0"}[w.TypeVersion]
	}
	_, err = m.client.Upgrade(m.t.Context(), client.UpgradeRequest{Worker: "nora", Version: version})
	return err
}

var stepTaken = regexp.MustCompile(`(\w+) step: .*step="?([^"=]+?)"? took=`)

// stepsTaken are the steps that the host's log tells of.
func (m *matrix) stepsTaken(runner string) []string {
	var steps []string
	for _, line := range stepTaken.FindAllStringSubmatch(m.log.String(), -1) {
		if line[1] == runner {
			steps = append(steps, runner+"/"+line[2])
		}
	}
	return steps
}
