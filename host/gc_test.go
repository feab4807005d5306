package host

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/host/worker"
)

// template is the real plugin, built once.
var template = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "host-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "template")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "github.com/dals-host/dals-host/plugins/template")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build template: %w\n%s", err, text)
	}
	return os.ReadFile(path)
})

// inProcess is a whole host in this process, so that the race detector sees it.
type inProcess struct {
	*Host
	t      testing.TB
	plugin string
}

func startInProcess(t testing.TB, launcher string) *inProcess {
	t.Helper()
	h, err := New(t.Context(), Config{DataDir: filepath.Join(t.TempDir(), "data"), Launcher: launcher, Version: "test", Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Run(context.WithoutCancel(t.Context())) }()
	t.Cleanup(func() {
		if _, err := (backend{h}).Down(context.Background(), time.Second); err != nil {
			t.Errorf("down: %v", err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-h.Ready()
	p := &inProcess{Host: h, t: t, plugin: filepath.Join(h.paths.plugins, "dals-worker-template")}
	p.drop()
	p.eventually("the type is registered", func() bool { return len(h.catalog.Types()) == 1 })
	return p
}

func (p *inProcess) eventually(what string, holds func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("not so: %s", what)
		}
	}
}

// drop puts the plugin into its folder, as mv does.
func (p *inProcess) drop() {
	binary, err := template()
	if err == nil {
		err = os.WriteFile(p.plugin+".new", binary, 0o755)
	}
	if err = errors.Join(err, os.Rename(p.plugin+".new", p.plugin)); err != nil {
		p.t.Error(err)
	}
}

func (p *inProcess) forgeOne(ctx context.Context, name string) (worker.Worker, error) {
	made, err := backend{p.Host}.Forge(ctx, control.ForgeRequest{Name: name, Type: "template", ClassCode: "A1"})
	if err == nil && !made.Worker.VaultIntegrity {
		err = fmt.Errorf("forged without integrity: %s", made.Worker.VaultFault)
	}
	return made.Worker.Worker, err
}

func (p *inProcess) collect(dryRun bool) []control.Garbage {
	p.t.Helper()
	found, err := backend{p.Host}.CollectGarbage(p.t.Context(), dryRun)
	if err != nil {
		p.t.Errorf("collect garbage: %v", err)
	}
	return found
}

func eachLauncher(t *testing.T, test func(t *testing.T, p *inProcess)) {
	for _, launcher := range []string{launcherProcess, launcherContainerd} {
		t.Run(launcher, func(t *testing.T) {
			t.Parallel()
			test(t, startInProcess(t, launcher))
		})
	}
}

// TestGarbageInARace collects without a pause while workers are forged and
// retired and their plugin comes and goes. A forge fails only because its type is
// not registered at that moment.
func TestGarbageInARace(t *testing.T) {
	eachLauncher(t, func(t *testing.T, p *inProcess) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var forged, deleted atomic.Int32
		least := time.Now().Add(10 * time.Second)
		var all sync.WaitGroup
		all.Go(func() { // the plugin comes and goes
			for round := 1; ctx.Err() == nil; round++ {
				if time.Now().After(least) && forged.Load() >= 3 && deleted.Load() > 0 {
					cancel()
				}
				if err := os.Remove(p.plugin); err != nil {
					t.Error(err)
				}
				// Long enough for the workers to be gone, and at any moment.
				time.Sleep(time.Duration(1000+rand.IntN(1500)) * time.Millisecond)
				before := forged.Load()
				p.drop()
				time.Sleep(time.Duration(500+rand.IntN(1500)) * time.Millisecond)
				// However slow the machine is, now and then there is time to forge.
				for round%3 == 0 && ctx.Err() == nil && forged.Load() == before {
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
		all.Go(func() {
			for ctx.Err() == nil {
				deleted.Add(int32(len(p.collect(false))))
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
			}
		})
		for i := range 2 {
			all.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					w, err := p.forgeOne(t.Context(), fmt.Sprintf("w%d-%d", i, n))
					switch {
					case err == nil:
						forged.Add(1)
						if _, err := (backend{p.Host}).Retire(t.Context(), string(w.Serial), 0); err != nil {
							t.Errorf("retire: %v", err)
						}
					case strings.Contains(err.Error(), "is not registered"), strings.Contains(err.Error(), "is draining"):
						time.Sleep(5 * time.Millisecond)
					default:
						t.Errorf("forge: %v", err)
					}
				}
			})
		}
		all.Wait()
		if forged.Load() < 3 || deleted.Load() == 0 {
			t.Errorf("%d forged, %d things deleted: not much of a race", forged.Load(), deleted.Load())
		}
		p.eventually("a worker can be forged in the end", func() bool {
			_, err := p.forgeOne(t.Context(), "last")
			return err == nil
		})
		if found := p.collect(false); slices.ContainsFunc(found, func(g control.Garbage) bool { return g.Kind != "stage" && g.Kind != "log" }) {
			t.Errorf("of what the last worker needs: %+v", found)
		}
	})
}

// TestGarbage: each kind is found, with what it weighs and why; the dry run lists
// just what goes.
func TestGarbage(t *testing.T) {
	eachLauncher(t, func(t *testing.T, p *inProcess) {
		if _, err := p.forgeOne(t.Context(), "nora"); err != nil {
			t.Fatal(err)
		}
		dead, err := p.forgeOne(t.Context(), "dead")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (backend{p.Host}).Retire(t.Context(), "dead", 0); err != nil {
			t.Fatal(err)
		}
		p.eventually("the mirror tells of the end", func() bool {
			text, _ := os.ReadFile(filepath.Join(p.paths.workers, "instances", "worker_"+string(dead.Serial)+".json"))
			return strings.Contains(string(text), `"retired"`)
		})
		if err := os.Remove(p.plugin); err != nil {
			t.Fatal(err)
		}
		p.eventually("the type drains", func() bool { return len(p.catalog.Types()) == 1 && p.catalog.Types()[0].Draining })
		if found := p.collect(true); len(found) > 0 {
			t.Fatalf("while nora lives, and dead is dead for a moment only: %+v", found)
		}
		// A day later, and with a stage that nobody works on.
		if err := p.registry.Update(t.Context(), func(tx *registry.Tx) error {
			w, err := tx.Worker(dead.Serial)
			w.RetiredAt = time.Now().Add(-25 * time.Hour)
			return errors.Join(err, tx.UpdateWorker(w))
		}); err != nil {
			t.Fatal(err)
		}
		idle := worker.NewSerial("DMN-TP-1", 0xfeedface, 1)
		if err := os.MkdirAll(filepath.Join(p.paths.workers, ".stage", string(idle), "certs"), 0o700); err != nil {
			t.Fatal(err)
		}
		p.wantGarbage([]string{"log worker_" + string(dead.Serial) + ".json", "stage " + string(idle)})
		if _, err := (backend{p.Host}).Retire(t.Context(), "nora", 0); err != nil {
			t.Fatal(err)
		}
		p.eventually("the type is gone", func() bool { return len(p.catalog.Types()) == 0 })
		want := []string{"binary " + dead.PluginDigest}
		if p.launcher.Name() == launcherContainerd {
			want = append(want, "image dals.host/worker:"+dead.PluginDigest, "rootfs "+dead.PluginDigest)
		}
		p.wantGarbage(want)
		p.wantGarbage(nil)
		// All of it can be made again.
		p.drop()
		p.eventually("the type is registered again", func() bool { return len(p.catalog.Types()) == 1 })
		if _, err := p.forgeOne(t.Context(), "nora"); err != nil {
			t.Error(err)
		}
	})
}

// TestGarbageOneAtATime: a collection waits for another only as long as its caller
// does.
func TestGarbageOneAtATime(t *testing.T) {
	t.Parallel()
	p := startInProcess(t, launcherProcess)
	p.collecting <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (backend{p.Host}).CollectGarbage(ctx, true); !errors.Is(err, context.Canceled) || worker.HintOf(err) == "" {
		t.Errorf("beside another: %v", err)
	}
	<-p.collecting
	p.collect(true)
}

// TestGarbageAside: what recoveries put aside goes after a month, and not before.
func TestGarbageAside(t *testing.T) {
	t.Parallel()
	p := startInProcess(t, launcherProcess)
	was := func(of string, age time.Duration) string {
		return of + time.Now().UTC().Add(-age).Format("20060102T150405.000Z")
	}
	old := was("registry.db.corrupt-", 31*24*time.Hour)
	gone := []string{old, old + "-wal", was("record.damaged-", 40*24*time.Hour) + "/tile"}
	kept := []string{was("registry.db.corrupt-", 29*24*time.Hour), was("record.damaged-", -time.Hour) + "/tile", "registry.db.corrupt-mine"}
	for _, name := range append(slices.Clone(gone), kept...) {
		path := filepath.Join(p.paths.data, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	p.wantGarbage([]string{"aside " + strings.TrimSuffix(gone[2], "/tile"), "aside " + gone[0], "aside " + gone[1]})
	for _, name := range gone {
		if _, err := os.Lstat(filepath.Join(p.paths.data, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range kept {
		if _, err := os.Lstat(filepath.Join(p.paths.data, name)); err != nil {
			t.Error(err)
		}
	}
}

// wantGarbage collects, first dry: both find the same, and what was found is gone.
func (p *inProcess) wantGarbage(want []string) {
	p.t.Helper()
	foreseen := p.collect(true)
	if again := p.collect(true); !slices.Equal(foreseen, again) {
		p.t.Errorf("two dry runs differ: %+v, %+v", foreseen, again)
	}
	deleted := p.collect(false)
	if !slices.Equal(foreseen, deleted) {
		p.t.Errorf("deleted %+v, foreseen %+v", deleted, foreseen)
	}
	var got []string
	for _, g := range deleted {
		if g.Reason == "" || g.Bytes < 0 || g.Kind == "binary" && g.Bytes == 0 || g.Kind == "image" && g.Bytes == 0 {
			p.t.Errorf("%+v", g)
		}
		got = append(got, g.Kind+" "+g.Name)
	}
	if !slices.Equal(got, want) {
		p.t.Errorf("deleted %q, want %q", got, want)
	}
	if left := p.collect(true); len(left) > 0 {
		p.t.Errorf("left: %+v", left)
	}
}
