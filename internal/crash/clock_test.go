package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/sdk/client"
)

// clockVar is by how much the wall clock of a host or a client that shifted
// builds is off. That of a worker goes by the file clock in its state/, so that
// it is set while the worker runs.
const clockVar = "DALS_TEST_CLOCK_OFFSET"

// offsetCode is put into package time. The monotonic clock goes on as it does, as
// it would on a machine whose clock is set.
const offsetCode = `package time

import "syscall"

func wallOffset() int64 {
	text, _ := syscall.Getenv("` + clockVar + `")
	if dir, isWorker := syscall.Getenv("DALS_WORKER_DIR"); isWorker {
		data, _ := readFile(dir + "/state/clock")
		text = string(data)
	}
	d, _ := ParseDuration(text)
	return int64(d / Second)
}
`

// clockEdits are what, in the files of package time, makes Now go by the offset. What
// a timer's channel gets does not: the runtime sends it where no file can be read.
var clockEdits = map[string][2]string{
	"time.go": {
		"func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n",
		"func Now() Time { return nowBy(wallOffset()) }\n\nfunc nowBy(offset int64) Time {\n\tsec, nsec, mono := runtimeNow()\n\tsec += offset\n",
	},
	"sleep.go": {"case c.(chan Time) <- Now().Add(", "case c.(chan Time) <- nowBy(0).Add("},
}

// shifted builds the binaries with a package time whose wall clock can be set,
// and gives their folder. containerd and the shims have the machine's clock.
var shifted = sync.OnceValues(func() (string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("find Go: %w", err)
	}
	folder, dir := filepath.Join(strings.TrimSpace(string(root)), "src", "time"), filepath.Join(bin, "shifted")
	offset := filepath.Join(dir, "offset.go")
	replace := map[string]string{filepath.Join(folder, "walloffset.go"): offset}
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(offset, []byte(offsetCode), 0o600)); err != nil {
		return "", err
	}
	for name, edit := range clockEdits {
		text, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return "", err
		}
		if bytes.Count(text, []byte(edit[0])) != 1 {
			return "", fmt.Errorf("%s/%s has not %q: the clock cannot be set in it", folder, name, edit[0])
		}
		edited := filepath.Join(dir, name)
		if err := os.WriteFile(edited, bytes.Replace(text, []byte(edit[0]), []byte(edit[1]), 1), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(folder, name)] = edited
	}
	overlay := filepath.Join(dir, "overlay.json")
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(overlay, text, 0o600)
	}
	if err != nil {
		return "", err
	}
	return dir, build(dir, "-overlay", overlay)
})

// TestClockSet kills a host and starts the next with the clock an hour ahead,
// and then an hour behind: nobody is lost, nothing comes twice, whoever has
// the host's clock goes on, and whoever has not is told.
func TestClockSet(t *testing.T) {
	for _, launcher := range []string{"process", "containerd"} {
		t.Run(launcher, func(t *testing.T) {
			t.Parallel()
			c := newClocked(t, launcher)
			c.boot(nil)
			c.registered(2)
			c.must("forge nora", c.forge("1.0.0"))
			c.must("forge olga", c.forgeAs("olga", "1.0.0"))
			c.must("soundness", c.sound())

			c.set(time.Hour, client.CodeExpired)
			rests := c.port("olga")
			c.must("retire olga", c.retire("olga"))
			c.must("soundness", c.sound())

			c.set(-time.Hour, client.CodeNotYetValid)
			c.must("forge otto", c.forgeAs("otto", "1.0.0"))
			c.must("set otto's clock", c.setWorkers())
			if c.port("otto") == rests {
				t.Errorf("port %d was given again %s before its worker was retired, by the clock", rests, 2*time.Hour)
			}
			c.must("retire nora", c.retire("nora"))
			c.must("soundness", c.sound())

			entries, err := c.entries(t.Context())
			c.must("read record", err)
			for _, e := range entries {
				if e.Kind == record.WorkerLost || e.Kind == record.WorkerFailed {
					t.Errorf("the record says %s of %s: %s", e.Kind, e.Worker.Serial, e.Reason)
				}
			}
		})
	}
}

// clocked is a host whose clock can be set.
type clocked struct {
	*matrix
	offset time.Duration
}

func newClocked(t *testing.T, launcher string) *clocked {
	t.Helper()
	dir, err := shifted()
	if err != nil {
		t.Fatal(err)
	}
	c := &clocked{matrix: &matrix{host: newHost(t, launcher), table: &table{}, calls: map[string]int64{}}}
	c.bin, c.ask = dir, c.inStep
	c.install(map[string]string{"1.0.0": "well", "1.1.0": "well"})
	return c
}

func (c *clocked) must(what string, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatalf("clock off by %s: %s: %v\n%s", c.offset, what, err, tail(c.log))
	}
}

// set kills the host and starts the next one with another clock, under which a
// client whose clock is right is refused with a code; then it moves nora to the
// other version, and restarts her.
func (c *clocked) set(offset time.Duration, code string) {
	c.t.Helper()
	c.kill()
	c.offset = offset
	c.must("set the workers' clocks", c.setWorkers())
	c.boot([]string{clockVar + "=" + offset.String()})
	c.must("soundness of what was taken over", c.sound())
	c.must("look at the clock", c.isSet())
	_, err := c.send(c.t.Context(), "nora")
	var no *client.Error
	if !errors.As(err, &no) || no.Code != code || !strings.Contains(no.Hint, "clock") {
		c.t.Errorf("a client whose clock is off by %s is told %v (%+v), want %s", -offset, err, no, code)
	}
	c.must("upgrade", c.upgrade(""))
	c.must("soundness after upgrade", c.sound())
	_, err = c.client.Restart(c.t.Context(), "nora", 0, 0)
	c.must("restart", err)
	c.must("soundness after restart", c.sound())
}

// setWorkers sets the clock of every worker that there is.
func (c *clocked) setWorkers() error {
	folders, err := filepath.Glob(filepath.Join(c.dir, "workers", "instances", "*", "state"))
	if err == nil && len(folders) == 0 {
		err = errors.New("there is no worker")
	}
	for _, folder := range folders {
		path := filepath.Join(folder, "clock")
		err = errors.Join(err, os.WriteFile(path, []byte(c.offset.String()), 0o644), os.Chmod(path, 0o644))
	}
	return err
}

// isSet says whether the host's newest entry is of the time by its clock.
func (c *clocked) isSet() error {
	entries, err := c.entries(c.t.Context())
	if err != nil {
		return err
	}
	newest := entries[len(entries)-1]
	if off := newest.At.Sub(time.Now().Add(c.offset)).Abs(); off > 5*time.Minute {
		return fmt.Errorf("%s was recorded %s beside the time", newest.Kind, off)
	}
	return nil
}

// inStep asks by a client whose clock is the host's.
func (c *clocked) inStep(ctx context.Context, name string) (json.RawMessage, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "dals-host"), "--data-dir", c.dir, "send", name, "chameleon.about", "{}", "--json")
	cmd.Env = append(os.Environ(), clockVar+"="+c.offset.String())
	var said bytes.Buffer
	cmd.Stderr = &said
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, &said)
	}
	var answer struct{ Result json.RawMessage }
	err = json.Unmarshal(text, &answer)
	return answer.Result, err
}

func (c *clocked) port(name string) int {
	c.t.Helper()
	w, err := c.client.Worker(c.t.Context(), name)
	c.must("look at "+name, err)
	return w.Port
}
