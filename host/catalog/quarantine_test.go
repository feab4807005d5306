package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Everything that people and enemies may drop, all at once, beside good plugins.
// Every bad one is told its own reason and a fix; the good ones register; nothing
// is left but the verdicts.
func TestWhatIsNoGoodPlugin(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	want := map[string]string{} // name to reason
	for name, c := range contents(t) {
		r.drop("dals-worker-"+name, c.content)
		want[name] = c.reason
	}
	for name, c := range kinds(t) {
		if err := c.make(filepath.Join(r.dir, "dals-worker-"+name)); err != nil {
			t.Fatal(err)
		}
		want[name] = c.reason
	}
	for i := range 15 {
		name := fmt.Sprintf("note%d", i)
		r.drop("dals-worker-"+name, fmt.Appendf(nil, "note %d\n", i))
		want[name] = "is not an ELF binary"
	}
	for i := range 3 {
		name := fmt.Sprintf("good%d", i)
		r.drop("dals-worker-"+name, good(t, name, "1.0.0", "G"+string(rune('A'+i))))
	}
	if len(want) < 46 { // with the good ones, 50 at once
		t.Fatalf("only %d bad ones", len(want))
	}
	r.start()
	for name, reason := range want {
		p := r.await(filepath.Join(r.dir, "dals-worker-"+name), Quarantined)
		if !strings.Contains(p.Reason, reason) || p.Fix == "" {
			t.Errorf("%s: %q, fix %q; want %q", name, p.Reason, p.Fix, reason)
		}
		if strings.ContainsAny(p.Reason+p.Fix, "\n\x1b\x00") || len(p.Reason) > 2*maxReason {
			t.Errorf("%s: the reason is unsafe to show: %q", name, p.Reason)
		}
	}
	for i := range 3 {
		name := fmt.Sprintf("good%d", i)
		r.await(filepath.Join(r.dir, "dals-worker-"+name), Registered)
	}
	// One that works, whatever its child thinks.
	r.await(r.drop("dals-worker-fork", plug(t, script{Do: "fork", Type: describing("fork", "1.0.0", "FK")})), Registered)
	r.stop()
	r.leftNothing()
	if left, _ := filepath.Glob(filepath.Join(r.data, "store", "sha256", incoming+"*")); len(left) > 0 {
		t.Errorf("the store is left with %v", left)
	}
}

// A plugin that hangs holds up nobody for long, and can be given another try.
func TestHanging(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p := r.prober()
	p.patience = 3 * time.Second
	r.startWith(p)
	paths := map[string]string{}
	for do, reason := range map[string]string{
		"hang":            "did not finish the handshake within 3s",
		"deaf":            "did not describe itself within 3s",
		"hang describing": "did not describe itself within 3s",
	} {
		paths[r.drop("dals-worker-"+strings.ReplaceAll(do, " ", "-"), plug(t, script{Do: do}))] = reason
	}
	fine := r.drop("dals-worker-fine", good(t, "fine", "1.0.0", "FI"))
	for path, reason := range paths {
		if p := r.awaitVerdict(path, reason); p.Reason != reason || !strings.Contains(p.Fix, "touch the file") {
			t.Errorf("%s: %+v", filepath.Base(path), p)
		}
	}
	r.awaitVerdict(fine, "")
	r.await(fine, Registered)
	r.stop()
	r.leftNothing()
}

// awaitVerdict waits until a plugin is registered, or quarantined with that in the
// reason. One that was late for another reason ran on a slow machine, and is touched
// for another try, as people do.
func (r *rig) awaitVerdict(path, reason string) Plugin {
	r.t.Helper()
	const tries = 5
	var p Plugin
	for try := 1; ; try++ {
		eventually(r.t, func() error {
			if p = r.plugin(path); p.State != Registered && p.State != Quarantined {
				return fmt.Errorf("%s is %q", filepath.Base(path), p.State)
			}
			return nil
		})
		late := strings.Contains(p.Fix, "touch the file") && (reason == "" || !strings.Contains(p.Reason, reason))
		if p.State == Registered || !late || try == tries {
			return p
		}
		r.t.Logf("%s, try %d: %s", filepath.Base(path), try, p.Reason)
		before, now := len(r.states(path)), time.Now()
		if err := os.Chtimes(path, now, now); err != nil {
			r.t.Fatal(err)
		}
		eventually(r.t, func() error {
			if len(r.states(path)) == before {
				return fmt.Errorf("%s is not tried again", filepath.Base(path))
			}
			return nil
		})
	}
}

type content struct {
	content []byte
	reason  string
}

// contents are bad files of the right kind.
func contents(t *testing.T) map[string]content {
	elf, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	patched := func(at int, with ...byte) []byte {
		out := bytes.Clone(elf)
		copy(out[at:], with)
		return out
	}
	hostile := func(change func(*workerv1.TypeDescriptor)) []byte {
		d := describing("bad", "1.0.0", "BD")
		change(d)
		return plug(t, script{Type: d})
	}
	input := func(schema string) []byte {
		return hostile(func(d *workerv1.TypeDescriptor) { d.Tasks[0].InputSchema = []byte(schema) })
	}
	says := func(line string) []byte { return plug(t, script{Do: "print", Line: line}) }
	return map[string]content{
		"script":     {[]byte("#!/bin/sh\necho hello\n"), "is a script"},
		"text":       {[]byte("hello\n"), "is not an ELF binary"},
		"empty":      {nil, "is empty"},
		"header":     {elf[:20], "cut off: ends inside its header"},
		"cut":        {elf[:len(elf)/2], "cut off"},
		"arch":       {patched(18, 243, 0), "is built for riscv64"},
		"arch32":     {patched(4, 1), "is not a 64-bit binary"},
		"bigendian":  {patched(5, 2), "is not a little-endian binary"},
		"object":     {patched(16, 1), "not an executable"},
		"windows":    {[]byte("MZ\x90\x00"), "is a Windows binary"},
		"macos":      {[]byte("\xcf\xfa\xed\xfe"), "is a macOS binary"},
		"noheaders":  {patched(56, 0, 0), "damaged ELF header"},
		"loader":     {bytes.Replace(elf, []byte("/lib64/ld-linux"), []byte("/lib64/no-linux"), 1), "needs a dynamic loader"},
		"true":       {elf, "exited with code 0 before the handshake"},
		"noisy":      {plug(t, script{Line: "starting up…"}), `prints on stdout before the handshake: "starting up…"`},
		"terminal":   {says("\x1b[2J\x00\xff evil\n"), `prints on stdout before the handshake: "[2J evil"`},
		"panic":      {plug(t, script{Do: "panic"}), "exited with code 2 before the handshake: panic: the goat ate the config"},
		"exit":       {plug(t, script{Do: "exit"}), "exited with code 3 before the handshake: cannot find my config"},
		"late-panic": {plug(t, script{Do: "panic describing"}), "exited with code 2 while it described itself: panic: the goat ate the descriptor"},
		"huge":       {plug(t, script{Do: "huge"}), "gives a descriptor that is too large"},
		"cookie":     {plug(t, script{Cookie: "other"}), "is a plugin for another program: it does not know the magic cookie DALS_PLUGIN"},
		"protocol":   {plug(t, script{Version: 7}), "speaks version 7 of the plugin protocol, this host version 1"},
		"tls":        {says("1|1|unix|PROBE/s|grpc|" + strings.Repeat("A", 80) + "\n"), "insists on TLS"},
		"tcp":        {says("1|1|tcp|127.0.0.1:22|grpc\n"), "listens on tcp"},
		"elsewhere":  {says("1|1|unix|/run/containerd/containerd.sock|grpc\n"), "listens outside its folder"},
		"nosocket":   {says("1|1|unix|PROBE/s|grpc\n"), "does not listen where it says"},
		"redirect":   {plug(t, script{Do: "symlink"}), "names something as its socket that is none of its own"},
		"name":       {hostile(func(d *workerv1.TypeDescriptor) { d.Name = "../Bad\x1b" }), "worker type name"},
		"garbage":    {input(`{"type": 7}`), "the input of bad.echo has a bad schema"},
		"deep":       {input(strings.Repeat(`{"not":`, 40) + "{}" + strings.Repeat("}", 40)), "nested deeper than 32"},
	}
}

type kind struct {
	make   func(path string) error
	reason string
}

// kinds are files of the wrong kind, mode or owner.
func kinds(t *testing.T) map[string]kind {
	outside := filepath.Join(t.TempDir(), "outside")
	whole := good(t, "outside", "1.0.0", "OU")
	if err := os.WriteFile(outside, whole, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(path string) error { return os.WriteFile(path, whole, 0o755) }
	return map[string]kind{
		"folder":   {func(path string) error { return os.Mkdir(path, 0o755) }, "is a folder"},
		"symlink":  {func(path string) error { return os.Symlink(outside, path) }, "is a symbolic link"},
		"dangling": {func(path string) error { return os.Symlink("/nowhere", path) }, "is a symbolic link"},
		"fifo":     {func(path string) error { return syscall.Mkfifo(path, 0o644) }, "is not a regular file"},
		"device":   {func(path string) error { return syscall.Mknod(path, syscall.S_IFCHR|0o644, 1<<8|5) }, "is not a regular file"},
		"socket": {func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			return l.Close()
		}, "is not a regular file"},
		"writable": {func(path string) error { return errors.Join(write(path), os.Chmod(path, 0o777)) }, "is writable by others"},
		"stranger": {func(path string) error { return errors.Join(write(path), os.Chown(path, 4711, 4711)) }, "belongs to uid 4711"},
		"sparse":   {func(path string) error { return errors.Join(write(path), os.Truncate(path, maxBinary+1<<20)) }, "is 513 MiB, more than 512"},
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// The same plugin again and again uses up nothing.
func TestProbesLeaveNoDescriptors(t *testing.T) {
	r := newRig(t) // not parallel: it counts the process's descriptors
	p := r.prober()
	path := filepath.Join(r.data, "plugin")
	probe := func(content []byte) error {
		if err := os.WriteFile(path, content, 0o555); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		defer os.Remove(path)
		_, err = p.Probe(t.Context(), f)
		return err
	}
	contents := [][]byte{good(t, "goat", "1.0.0", "GT"), plug(t, script{Do: "panic"}), plug(t, script{Do: "panic describing"}), plug(t, script{Do: "symlink"}), []byte("no ELF")}
	run := func() {
		for i, content := range contents {
			var fault *Fault
			if err := probe(content); (err == nil) != (i == 0) || err != nil && !errors.As(err, &fault) {
				t.Errorf("probe %d: %v", i, err)
			}
		}
	}
	run() // what is opened once for all
	before := openDescriptors(t)
	for range 3 {
		run()
	}
	deadline := time.Now().Add(limit)
	for openDescriptors(t) > before && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond) // between two looks at a condition
	}
	if after := openDescriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	r.leftNothing()
}
