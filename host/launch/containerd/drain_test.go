package containerd

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/launch/launchtest"
)

// TestDrain: what a shim of containerd's does not read is read in its stead, and
// nothing else, whatever a worker has put in the place of its output; of ours nothing.
func TestDrain(t *testing.T) {
	shims(t, func(t *testing.T, open launchtest.Open) {
		b := launchtest.NewBench(t, open)
		l, g := launcher(b), b.Guest()
		d := &drains{Launcher: l}
		taken := func() (n int) {
			for range 2 { // what has not moved in between
				d.look()
			}
			d.taken.Range(func(any, any) bool { n++; return true })
			return n
		}
		const bytes = 100
		if said := g.Ask("lure 100"); said != "ok" {
			t.Fatal(said)
		}
		var left int
		if n := taken(); n != 0 {
			t.Errorf("%d pipes were taken from a worker", n)
		}
		if g.Get("lured", &left); left != bytes {
			t.Errorf("%d bytes of %d are left of what was its own", left, bytes)
		}

		other := b.Guest()
		flooder := int(first(t, b, other.Spec.Serial))
		stuck := parent(t, flooder)
		t.Cleanup(func() {
			if t.Failed() {
				state, err := pidfd.ReadStat(flooder)
				t.Logf("waiting %v; of the shim %v; the worker %+v, %v", d.before, pipesOf(stuck), state, err)
			}
			_ = unix.Kill(stuck, unix.SIGCONT)
		})
		if err := unix.Kill(stuck, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		other.Tell("flood 2048")
		want := 2 // stdout and stderr
		if l.tools.shim == os.Getenv(envShim) {
			want = 0
		}
		launchtest.Eventually(t, "what the shim does not read is read", func() bool { return taken() == want })
	})
}
