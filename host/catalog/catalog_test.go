package catalog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

func TestLifeOfAPlugin(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	_, err := r.catalog.Lookup("goat", "")
	if err == nil || err.Error() != "worker type 'goat' is not registered" || !errors.Is(err, worker.ErrNotFound) || !strings.Contains(worker.HintOf(err), r.dir) {
		t.Fatalf("before the drop: %v, hint %q", err, worker.HintOf(err))
	}

	dropped := time.Now()
	path := r.drop("dals-worker-goat", good(t, "goat", "1.0.0", "GT"))
	eventually(t, func() error { _, err := r.catalog.Lookup("goat", ""); return err })
	t.Logf("registered after %v", time.Since(dropped))
	e, err := r.catalog.Lookup("goat", "1.0.0")
	if err != nil || !e.Default || e.Family != "GT" || len(e.Descriptor.Tasks) != 1 || filepath.Base(e.Path) != e.Digest {
		t.Fatalf("registered as %+v, %v", e, err)
	}
	if p := r.plugin(path); p.State != Registered || p.Type != "goat" || p.Version != "1.0.0" || p.Digest != e.Digest {
		t.Errorf("listed as %+v", p)
	}
	if info, err := os.Stat(e.Path); err != nil || info.Mode() != 0o555 {
		t.Errorf("stored as %v, %v", info, err)
	}
	_, err = r.catalog.Lookup("goat", "2.0.0")
	if !errors.Is(err, worker.ErrNotFound) || !strings.Contains(worker.HintOf(err), "1.0.0") {
		t.Errorf("another version: %v, hint %q", err, worker.HintOf(err))
	}
	_, err = r.catalog.Lookup("xyz", "")
	if err == nil || err.Error() != "worker type 'xyz' is not registered" || worker.HintOf(err) != "registered types: goat" {
		t.Errorf("another type: %v, hint %q", err, worker.HintOf(err))
	}

	r.use("goat", "1.0.0", true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	r.await(path, Draining)
	for _, version := range []string{"", "1.0.0"} {
		_, err = r.catalog.Lookup("goat", version)
		if !errors.Is(err, worker.ErrUnavailable) || !strings.Contains(err.Error(), "is draining") || worker.HintOf(err) == "" {
			t.Errorf("Lookup(%q) while it drains: %v", version, err)
		}
	}
	if types := r.catalog.Types(); len(types) != 1 || !types[0].Draining || types[0].Default || types[0].Descriptor == nil {
		t.Errorf("types while it drains: %+v", types)
	}

	r.use("goat", "1.0.0", false)
	r.await(path, Gone)
	if _, err = r.catalog.Lookup("goat", ""); !errors.Is(err, worker.ErrNotFound) || len(r.catalog.Types()) != 0 {
		t.Errorf("when it is gone: %v, %v", err, r.catalog.Types())
	}
	want := []State{Discovered, Verified, Probed, Registered, Draining, Gone}
	if got := r.states(path); !slices.Equal(got, want) {
		t.Errorf("it went through %v, want %v", got, want)
	}
	r.drop("dals-worker-goat", good(t, "goat", "1.0.0", "GT"))
	r.await(path, Registered)
	if got := r.catalog.Plugins(); len(got) != 1 {
		t.Errorf("put back, it is listed as %+v", got)
	}
}

// Nothing that was examined once is executed again: not for a second copy, not
// after a restart, not when it moves; only a touch asks for another try.
func TestExecutedOnce(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	goat := plug(t, script{})
	hen := plug(t, script{Do: "exit"})
	goatRuns, henRuns := r.executions(goat), r.executions(hen)
	first := r.drop("dals-worker-goat", goat)
	broken := r.drop("dals-worker-hen", hen)
	r.await(first, Registered)
	r.await(broken, Quarantined)

	second := r.drop("dals-worker-goat-again", goat)
	r.await(second, Registered)
	r.await(r.drop("dals-worker-hen-again", hen), Quarantined)
	if err := os.Remove(first); err != nil { // the second copy stands in
		t.Fatal(err)
	}
	eventually(t, func() error {
		if p := r.plugin(first); p.State == Registered {
			return errors.New("still there")
		}
		return nil
	})
	if _, err := r.catalog.Lookup("goat", ""); err != nil {
		t.Errorf("with one of two copies: %v", err)
	}

	r.stop()
	r.start()
	// What an earlier host registered is there at once.
	if _, err := r.catalog.Lookup("goat", ""); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if p := r.await(broken, Quarantined); !strings.Contains(p.Reason, "exited with code 3") {
		t.Errorf("after a restart: %+v", p)
	}
	r.stop()
	if err := os.Remove(filepath.Join(r.data, "store", "sightings.json")); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.await(second, Registered)
	r.await(broken, Quarantined)
	if g, h := goatRuns(), henRuns(); g != 1 || h != 1 {
		t.Fatalf("executed %d and %d times, want once each", g, h)
	}

	before := len(r.states(second))
	now := time.Now()
	if err := errors.Join(os.Chtimes(broken, now, now), os.Chtimes(second, now, now)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if henRuns() != 2 {
			return fmt.Errorf("the touched one was executed %d times", henRuns())
		}
		return nil
	})
	r.await(broken, Quarantined)
	r.await(second, Registered)
	if goatRuns() != 1 {
		t.Errorf("a touch had the good one executed again")
	}
	if got := r.states(second)[before:]; len(got) > 0 {
		t.Errorf("a touch took the good one through %v", got)
	}
}

func TestNewBytesTakeThePlaceOfOld(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	path := r.drop("dals-worker-goat", good(t, "goat", "1.0.0", "GT"))
	r.await(path, Registered)
	r.use("goat", "1.0.0", true)
	r.drop("dals-worker-goat", good(t, "goat", "1.1.0", "GT"))
	eventually(t, func() error { _, err := r.catalog.Lookup("goat", "1.1.0"); return err })
	if e, err := r.catalog.Lookup("goat", ""); err != nil || e.Version != "1.1.0" {
		t.Errorf("the default is %+v, %v", e, err)
	}
	if _, err := r.catalog.Lookup("goat", "1.0.0"); !errors.Is(err, worker.ErrUnavailable) {
		t.Errorf("the old version: %v", err)
	}
	// Living workers of the old version are known to the next host, too.
	r.stop()
	r.start()
	if types := r.catalog.Types(); len(types) != 2 || !types[0].Draining || types[1].Draining {
		t.Errorf("after a restart: %+v", types)
	}
}

func TestFirstUseIsTrusted(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	first := r.drop("dals-worker-goat", good(t, "goat", "1.0.0", "GT"))
	r.await(first, Registered)
	digest := r.plugin(first).Digest
	other := describing("goat", "1.0.0", "GT")
	other.Summary = "not the same bytes"
	cases := map[string]struct {
		content []byte
		reason  string
	}{
		"other-bytes":  {plug(t, script{Type: other}), "other bytes were that version before"},
		"other-type":   {good(t, "gnat", "1.0.0", "GT"), "belongs to the worker type goat"},
		"other-family": {good(t, "goat", "1.0.1", "GX"), "is of the family GT"},
	}
	for name, c := range cases {
		p := r.await(r.drop("dals-worker-"+name, c.content), Quarantined)
		if !strings.Contains(p.Reason, c.reason) || p.Fix == "" || p.Type == "" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	// So it stays when the first file is gone, and after a restart.
	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	r.await(first, Gone)
	r.stop()
	r.start()
	for name := range cases {
		r.await(filepath.Join(r.dir, "dals-worker-"+name), Quarantined)
	}
	r.drop("dals-worker-goat", good(t, "goat", "1.0.0", "GT"))
	if p := r.await(first, Registered); p.Digest != digest {
		t.Errorf("put back as %s, was %s", p.Digest, digest)
	}
}

func TestMending(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	path := r.drop("dals-worker-goat", good(t, "goat", "1.0.0", "GT"))
	r.await(path, Registered)
	for _, c := range []struct {
		path        string
		spoil, mend func() error
		reason, fix string
	}{
		{path, func() error { return os.Chmod(path, 0o777) }, func() error { return os.Chmod(path, 0o755) }, "it is writable by others (mode 0777)", "chmod go-w " + path},
		{r.dir, func() error { return os.Chmod(r.dir, 0o775) }, func() error { return os.Chmod(r.dir, 0o755) }, "its folder is writable by others", "chmod go-w " + r.dir},
		{path, func() error { return os.Chown(path, 4711, 0) }, func() error { return os.Chown(path, 0, 0) }, "it belongs to uid 4711", "chown 0 " + path},
	} {
		if err := c.spoil(); err != nil {
			t.Fatal(err)
		}
		if p := r.await(path, Quarantined); !strings.Contains(p.Reason, c.reason) || p.Fix != c.fix {
			t.Errorf("spoilt: %+v", p)
		}
		if _, err := r.catalog.Lookup("goat", ""); err == nil {
			t.Errorf("it can be forged from while %s", c.reason)
		}
		if err := c.mend(); err != nil {
			t.Fatal(err)
		}
		r.await(path, Registered)
	}
}

// A file is not touched before it is complete, however slowly it comes.
func TestHalfCopied(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	whole := plug(t, script{})
	executions := r.executions(whole)
	path := filepath.Join(r.dir, "dals-worker-goat")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(whole))); err != nil { // as downloads do that know the size
		t.Fatal(err)
	}
	r.await(path, Discovered)
	looked := r.countLooks()
	for i := range 4 {
		part := len(whole) / 4
		if _, err := f.WriteAt(whole[i*part:min((i+1)*part+4, len(whole))], int64(i*part)); err != nil {
			t.Fatal(err)
		}
		looked(3) // it stands still for longer than two looks
		if p := r.plugin(path); p.State != Discovered {
			t.Fatalf("half-copied, it is %s: %s", p.State, p.Reason)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.await(path, Registered)
	if n := executions(); n != 1 {
		t.Errorf("executed %d times", n)
	}
	// Cut off without a writer, it is known by its headers, and not executed.
	cut := r.drop("dals-worker-cut", whole[:len(whole)/2])
	if p := r.await(cut, Quarantined); !strings.Contains(p.Reason, "cut off") || executions() != 1 {
		t.Errorf("cut: %+v, executed %d times", p, executions())
	}
}

// countLooks returns a function that waits for n more settling times to pass, by
// watching a file that changes its state meanwhile.
func (r *rig) countLooks() func(n int) {
	i := 0
	return func(n int) {
		r.t.Helper()
		for range n {
			i++
			r.await(r.drop(fmt.Sprintf("dals-worker-tick%d", i), []byte("#!/bin/sh\n")), Quarantined)
		}
	}
}

func TestDeletedMidway(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	goat := plug(t, script{Do: "hang describing"})
	executions := r.executions(goat)
	path := r.drop("dals-worker-goat", goat)
	eventually(t, func() error {
		if executions() == 0 {
			return errors.New("not probed yet")
		}
		return nil
	})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if got := r.catalog.Plugins(); len(got) != 0 {
			return fmt.Errorf("listed: %+v", got)
		}
		return nil
	})
	// Nor does the end of the host wait for the plugin.
	stopped := time.Now()
	r.stop()
	if took := time.Since(stopped); took > limit/2 {
		t.Errorf("the catalog took %v to end", took)
	}
	r.leftNothing()
	if verdicts := r.registry.(*memory).verdicts; len(verdicts) != 0 {
		t.Errorf("the end of the host became a verdict: %+v", verdicts)
	}
}

// A folder may come after the host, and another may take its place.
func TestFolderComesLater(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := os.Remove(r.dir); err != nil {
		t.Fatal(err)
	}
	r.start()
	for i, version := range []string{"1.0.0", "1.0.1"} {
		aside := fmt.Sprintf("%s.%d", r.dir, i)
		if err := os.Rename(r.dir, aside); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.Mkdir(r.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		r.drop("dals-worker-goat", good(t, "goat", version, "GT"))
		eventually(t, func() error { _, err := r.catalog.Lookup("goat", version); return err })
	}
}

// Trouble of the host's own quarantines nobody and heals.
func TestRegistryInTrouble(t *testing.T) {
	t.Parallel()
	r := startRig(t)
	goat := plug(t, script{})
	executions := r.executions(goat)
	kept := r.registry.(*memory)
	kept.breakWith(worker.ErrUnavailable)
	path := r.drop("dals-worker-goat", goat)
	eventually(t, func() error {
		if p := r.plugin(path); p.State != Verified || !strings.Contains(p.Reason, "host has trouble: record verdict: unavailable") {
			return fmt.Errorf("it is %+v", p)
		}
		return nil
	})
	if _, err := r.catalog.Lookup("goat", ""); !errors.Is(err, worker.ErrNotFound) {
		t.Errorf("not on record, it can be forged: %v", err)
	}
	kept.breakWith(nil)
	if p := r.await(path, Registered); p.Reason != "" || executions() != 1 {
		t.Errorf("healed: %+v, executed %d times", p, executions())
	}
}

func TestOtherFilesAreLeftAlone(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"dals-worker-goat": true, "dals-worker-goat-1.2.3": true, "dals-worker-ucm_relay": true, "dals-worker-a+b": true,
		"goat": false, "dals-worker-": false, ".dals-worker-goat.swp": false, "dals-worker-goat~": false, "dals-worker-goat.tmp": false,
		"dals-worker-goat.part": false, "dals-worker-goat\n": false, "dals-worker-a b": false, "#dals-worker-goat#": false, "dals-worker-\x1b[2J": false,
		"dals-worker-" + strings.Repeat("a", 250): false,
	} {
		if got := isPluginName(name); got != want {
			t.Errorf("isPluginName(%q) = %v", name, got)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{}); err == nil {
		t.Error("a catalog of nothing was made")
	}
	if _, err := NewProber(ProberConfig{Dir: t.TempDir(), UID: 0}); err == nil || !strings.Contains(err.Error(), "never executed as root") {
		t.Errorf("a prober as root: %v", err)
	}
}
