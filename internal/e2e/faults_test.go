package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	"github.com/dals-host/dals-host/sdk/client"
)

// mounted is a file system of its own to put a data folder on. What is mounted
// there goes when the test ends, after the host.
func mounted(t *testing.T, mount func(dir string) error) string {
	t.Helper()
	dir := t.TempDir()
	if err := mount(dir); err != nil {
		t.Fatalf("mount a file system (root is needed): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

// hostOn is a host with its data folder on that file system and one worker type.
func hostOn(t *testing.T, in, launcher string) *host {
	t.Helper()
	dir, err := os.MkdirTemp(in, "data-")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, launcher: launcher, dir: dir, log: &lockedBuffer{}}
	t.Cleanup(h.clean)
	h.start()
	h.drop("dals-worker-template")
	h.eventually("the type is registered", func() error {
		_, err := h.client.Type(t.Context(), "template")
		return err
	})
	return h
}

// tryBoth forges a worker and sends to nora. Each is done, or is refused as
// unavailable with a hint.
func (h *host) tryBoth(name string) (forged, sent bool) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	_, err := h.client.Forge(ctx, client.ForgeRequest{Name: name, Type: "template", ClassCode: "A1"})
	forged = h.doneOrUnavailable("forge", err)
	_, err = h.client.Send(ctx, client.SendRequest{Worker: "nora", Kind: "template.echo", Input: map[string]string{"message": name}})
	return forged, h.doneOrUnavailable("send", err)
}

func (h *host) doneOrUnavailable(what string, err error) bool {
	h.t.Helper()
	var no *client.Error
	if err != nil && (!errors.As(err, &no) || no.Code != "unavailable" || no.Hint == "") {
		h.t.Fatalf("%s on a faulty disk: %v (%+v)\n%s", what, err, no, h.log)
	}
	return err == nil
}

// refuses waits until neither can be done, and checks that it stays so and that
// the host can still be asked.
func (h *host) refuses() {
	h.t.Helper()
	n := 0
	h.eventually("nothing is taken on any more", func() error {
		n++
		if forged, sent := h.tryBoth(fmt.Sprint("early", n)); forged || sent {
			return fmt.Errorf("forged %t, sent %t", forged, sent)
		}
		return nil
	})
	for range 3 {
		if forged, sent := h.tryBoth("late"); forged || sent {
			h.t.Errorf("forged %t, sent %t while storage fails", forged, sent)
		}
	}
	if w := h.worker("nora"); w.State != "live" {
		h.t.Errorf("nora is %s: %s", w.State, w.StateReason)
	}
	if _, err := h.client.Workers(h.t.Context(), client.WorkerFilter{Retired: true}); err != nil {
		h.t.Error(err)
	}
	if said := h.degraded(); len(said) == 0 {
		h.t.Error("the host does not say that it is degraded")
	}
	if stdout, _, _ := h.run("doctor"); !strings.Contains(stdout, "is degraded") {
		h.t.Errorf("doctor does not say it:\n%s", stdout)
	}
	for _, args := range [][]string{{"workers"}, {"types"}, {"verify", "nora"}} {
		if _, stderr, code := h.run(args...); code != 0 {
			h.t.Errorf("%v: exit %d: %s", args, code, stderr)
		}
	}
}

// heals waits until both can be done again, and checks all there is.
func (h *host) heals() {
	h.t.Helper()
	n := 0
	h.eventually("it heals without a restart", func() error {
		n++
		if forged, sent := h.tryBoth(fmt.Sprint("healed", n)); !forged || !sent {
			return fmt.Errorf("forged %t, sent %t", forged, sent)
		}
		return nil
	})
	h.eventually("it says that it is whole", func() error {
		if said := h.degraded(); len(said) > 0 {
			return fmt.Errorf("degraded: %q", said)
		}
		return nil
	})
	h.eventually("every forge is done or undone", func() error {
		workers, err := h.client.Workers(h.t.Context(), client.WorkerFilter{})
		for _, w := range workers {
			if w.State != "live" {
				err = errors.Join(err, fmt.Errorf("%s is %s", w.WorkerName, w.State))
			}
		}
		return err
	})
	h.settled()
	h.verify()
}

// fill takes all the space that there is; give gives it back.
func fill(t *testing.T, dir string) (give func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	ballast, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1 << 20, 4096, 1} {
		for err = nil; err == nil; {
			_, err = ballast.Write(make([]byte, size))
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := errors.Join(ballast.Close(), os.Remove(path)); err != nil {
			t.Error(err)
		}
	}
}

// TestNoSpace fills the disk of a running host: what would have to be recorded is
// refused, the rest works, and it heals by itself.
func TestNoSpace(t *testing.T) {
	for _, launcher := range []string{"process", "containerd"} {
		t.Run(launcher, func(t *testing.T) {
			t.Parallel()
			in := mounted(t, func(dir string) error { return unix.Mount("small", dir, "tmpfs", 0, "size=160m") })
			h := hostOn(t, in, launcher)
			h.forge("nora", "template")
			h.mustSend("nora", "template.echo", map[string]string{"message": "before"})
			give := fill(t, in)
			h.refuses()
			// A host that dies now can be started again, and is no better off.
			h.kill()
			h.start()
			h.refuses()
			give()
			h.heals()
		})
	}
}

// TestDiskErrors has the kernel answer the host's writes with an error, as a disk
// that fails does. Of containerd, the host's process is what sees it: containerd
// writes its own files, as on a disk of its own that is well.
func TestDiskErrors(t *testing.T) {
	for name, fault := range map[string]string{
		"cannot sync":  "fsync,fdatasync:error=EIO",
		"cannot write": "pwrite64:error=EIO",
		"read-only":    "pwrite64,mkdirat,renameat,renameat2,unlinkat,fsync,fdatasync:error=EROFS",
	} {
		for _, launcher := range []string{"process", "containerd"} {
			t.Run(name+"/"+launcher, func(t *testing.T) {
				t.Parallel()
				h := hostOn(t, "", launcher)
				h.forge("nora", "template")
				h.mustSend("nora", "template.echo", map[string]string{"message": "before"})
				heal := inject(t, h.cmd.Process.Pid, fault)
				h.refuses()
				heal()
				h.heals()
			})
		}
	}
}

// inject has strace answer system calls of a process with an error, until heal is
// called.
func inject(t *testing.T, pid int, fault string) (heal func()) {
	t.Helper()
	calls, _, _ := strings.Cut(fault, ":")
	cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace="+calls, "-e", "inject="+fault, "-p", fmt.Sprint(pid))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("start strace (is it installed?): %v", err)
	}
	heal = func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Signal(syscall.SIGINT)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(heal)
	deadline := time.Now().Add(patience)
	for traced := false; !traced; time.Sleep(10 * time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("strace does not attach: %v: %s", err, said.String())
		}
		traced = strings.Contains(string(status), fmt.Sprintf("TracerPid:\t%d\n", cmd.Process.Pid))
	}
	return heal
}

// TestReadOnlyWhileRunning: the kernel makes the file system read-only, as after
// an error. What can be read is answered, all can be ended, and once the file
// system is writable again everything is there.
func TestReadOnlyWhileRunning(t *testing.T) {
	for _, launcher := range []string{"process", "containerd"} {
		t.Run(launcher, func(t *testing.T) {
			t.Parallel()
			d := newDisk(t)
			h := hostOn(t, d.dir, launcher)
			nora := h.forge("nora", "template")
			h.mustSend("nora", "template.echo", map[string]string{"message": "before"})
			syncPlugin(t, h) // the operator's file, not the host's
			d.command("mount", "-o", "remount,abort", d.dir)
			h.refuses()
			// All workers end, and the host; one that starts there says why it cannot.
			if _, stderr, code := h.run("down", "--timeout", "2s"); code != 0 && !strings.Contains(strings.ToLower(stderr), "read-only") {
				t.Errorf("down: exit %d: %s", code, stderr)
			}
			_ = h.cmd.Wait()
			if pids := h.pids(nora.WorkerSerial); launcher == "containerd" && len(pids) > 0 {
				t.Errorf("after down %v run", pids)
			}
			h.endRest(nora.WorkerSerial)
			h.wantNoStart("read-only file system", "writable")
			d.again()
			h.start()
			h.eventually("nora is back", func() error {
				if w := h.worker("nora"); w.State != "live" || w.WorkerSerial != nora.WorkerSerial {
					return fmt.Errorf("%s: %s", w.State, w.StateReason)
				}
				return nil
			})
			h.heals()
		})
	}
}

// endRest ends what a host could not: containerd cannot write down that containers
// are deleted, and stays for the next host with their shims.
func (h *host) endRest(serial string) {
	h.t.Helper()
	h.eventually("nothing runs", func() (err error) {
		for pid, text := range processes() {
			if strings.Contains(text, serial) || strings.Contains(text, h.dir) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				err = fmt.Errorf("%d runs: %.200q", pid, text)
			}
		}
		return err
	})
}

// disk is a file system in a file.
type disk struct {
	t          *testing.T
	image, dir string
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t: t, image: filepath.Join(t.TempDir(), "disk")}
	if err := errors.Join(os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, 300<<20)); err != nil {
		t.Fatal(err)
	}
	d.command("mkfs.ext4", "-q", d.image)
	mounted(t, func(dir string) error { d.dir = dir; d.mount(); return nil })
	return d
}

func (d *disk) command(name string, args ...string) {
	d.t.Helper()
	if text, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %q: %v: %s", name, args, err, text)
	}
}

func (d *disk) mount() {
	d.t.Helper()
	d.command("mount", "-o", "loop", d.image, d.dir)
}

// again mounts the file system anew, as a start of the machine does. It is a copy
// of what is on the disk: while some mount namespace, of another test or of a
// container that starts, still has the old mount, the kernel would give the old
// file system back, read-only as it is.
func (d *disk) again() {
	d.t.Helper()
	deadline := time.Now().Add(patience)
	for { // what was killed lets go of it in its own time
		text, err := exec.Command("umount", "--recursive", d.dir).CombinedOutput()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("%v: %s", err, text)
		}
		time.Sleep(20 * time.Millisecond)
	}
	d.command("sync", d.image)
	d.command("cp", "--sparse=always", d.image, d.image+".again")
	d.image += ".again"
	d.mount()
}

// syncPlugin has the dropped plugin on disk.
func syncPlugin(t *testing.T, h *host) {
	t.Helper()
	f, err := os.Open(filepath.Join(h.dir, "plugins", "dals-worker-template"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// wantNoStart checks that a host does not start on the folder: exit 1, one line
// that says why, and what to do.
func (h *host) wantNoStart(why, hint string, flags ...string) {
	h.t.Helper()
	_, stderr, code := h.run(append([]string{"--log-level", "off", "serve", "--launcher", h.launcher}, flags...)...)
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	if code != 1 || len(lines) != 2 || !strings.HasPrefix(lines[0], "error: start host: ") || !strings.Contains(lines[0], why) ||
		!strings.HasPrefix(lines[1], "hint: ") || !strings.Contains(lines[1], hint) {
		h.t.Errorf("serve: exit %d, want 1, %q and a hint of %q:\n%s", code, why, hint, stderr)
	}
}

// TestNoStart: what a host refuses to start on.
func TestNoStart(t *testing.T) {
	t.Parallel()
	in := mounted(t, func(dir string) error { return unix.Mount("small", dir, "tmpfs", 0, "size=160m") })
	h := hostOn(t, in, "process")
	nora := h.forge("nora", "template")
	h.mustSend("nora", "template.echo", map[string]string{"message": "x"})

	// A second host, and one on a copy.
	running := fmt.Sprintf("(pid %d)", h.cmd.Process.Pid)
	h.wantNoStart(running+" runs on it", "dals-host down")
	twin := &host{t: t, launcher: h.launcher, dir: filepath.Join(in, "copy"), log: h.log}
	if text, err := exec.Command("cp", "-a", h.dir, twin.dir).CombinedOutput(); err != nil && !strings.Contains(string(text), "socket") {
		t.Fatalf("copy data folder: %v: %s", err, text)
	}
	twin.wantNoStart(running+" runs on another data folder", "end that host first")
	if err := os.RemoveAll(twin.dir); err != nil {
		t.Fatal(err)
	}
	h.mustSend("nora", "template.echo", map[string]string{"message": "undisturbed"})

	// A folder that cannot be written.
	h.kill()
	if err := unix.Mount("", in, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		h.t.Logf("the worker holds files open for writing: %v", err)
		for _, pid := range h.pids(nora.WorkerSerial) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		h.eventually("read-only", func() error { return unix.Mount("", in, "", unix.MS_REMOUNT|unix.MS_RDONLY, "") })
	}
	h.wantNoStart("read-only file system", "writable")
	if err := unix.Mount("", in, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}

	// A registry with a damaged page in the middle, one that is none, and one that
	// is gone.
	path := filepath.Join(h.dir, "registry.db")
	whole := readAndMove(t, path)
	for what, text := range map[string][]byte{
		"damaged":  damaged(whole),
		"garbage":  bytes.Repeat([]byte("no registry "), 1000),
		"cut":      whole[:len(whole)/2],
		"an empty": {},
	} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Log(what)
		h.wantNoStart("registry", "dals-host recover")
		for _, side := range []string{"", "-wal", "-shm"} {
			if err := os.Remove(path + side); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.eventually("nora is back", func() error {
		if w := h.worker("nora"); w.State != "live" {
			return errors.New(w.State)
		}
		return nil
	})
	h.settled()
	h.verify()
	if n := h.count(func(e record.Entry) bool { return e.Kind == record.Forge }); n != 1 {
		t.Errorf("%d forges recorded", n)
	}
}

// readAndMove ends the write-ahead log of a registry that nobody has open, and
// takes the file away.
func readAndMove(t *testing.T, path string) []byte {
	t.Helper()
	r, err := registry.Open(t.Context(), registry.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err = errors.Join(err, os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	return whole
}

// damaged is a registry in which one page holds nonsense.
func damaged(whole []byte) []byte {
	const page = 4096
	bad := bytes.Clone(whole)
	for i := range page / 2 {
		bad[len(bad)/page/2*page+i] ^= 0xa5
	}
	return bad
}
