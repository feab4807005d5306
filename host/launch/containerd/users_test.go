package containerd

import (
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

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
)

// rootUID is root in the user namespaces of these tests' containers. Those of
// workers lie above it.
const rootUID = 0x5fffffff

// withUsers opens the launcher with user namespaces.
func withUsers(runtime, shim string) launchtest.Open {
	return func(c launchtest.Config) (launch.Launcher, error) {
		return New(context.Background(), Config{DataDir: c.DataDir, HostID: c.HostID, Runtime: runtime, Shim: shim, RootUID: rootUID, Logger: c.Logger})
	}
}

// TestUserNamespaces: a worker in one is caged as any other, claimed or not, and keeps
// its uid; what is root in there is nobody.
func TestUserNamespaces(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, runtime, shim string }{
		{"crun", Crun, os.Getenv(envShim)}, {"runc", Runc, os.Getenv(envShim)}, {"containerd's shim", Crun, itsShimPath},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := launchtest.NewBench(t, withUsers(c.runtime, c.shim))
			mounted, dir := b.Spec(), b.Folder()
			mounted.Mounts = []launch.Mount{b.Mount("data", dir, false), b.Mount("fixed", dir, true)}
			other := b.Start(mounted)
			checkGranted(t, other.Report().Mounts)
			if got := other.Ask("write /mnt/data/x"); got != "ok" {
				t.Errorf("a granted folder cannot be written: %s", got)
			}
			spec, pid := warm(t, b)
			g := b.Start(spec)
			if now := first(t, b, spec.Serial); now != pid {
				t.Errorf("its process is %d, the one made beforehand was %d", now, pid)
			}
			expectOwnUsers(t, b, g, other)
			checkCage(t, b, g, other)
			b.Stop(spec.Serial, time.Second)
			must(t, b.Launcher.Start(b.Context(), spec.Serial))
			g.AwaitUp()
			expectOwnUsers(t, b, g, other)
		})
	}
}

// expectOwnUsers looks at the user namespaces of two workers.
func expectOwnUsers(t *testing.T, b *launchtest.Bench, g, other *launchtest.Guest) {
	t.Helper()
	namespaces := map[string]bool{usersOf(t, os.Getpid()): true}
	for _, one := range []*launchtest.Guest{g, other} {
		pid := int(first(t, b, one.Spec.Serial))
		if ns := usersOf(t, pid); namespaces[ns] {
			t.Errorf("%s has the user namespace %s, as another has", one.Spec.Serial, ns)
		} else {
			namespaces[ns] = true
		}
		for _, kind := range []string{"uid_map", "gid_map"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, kind))
			must(t, err)
			want := fmt.Sprint("0 ", rootUID, " 1 ", one.Spec.UID, " ", one.Spec.UID, " 1")
			if got := strings.Join(strings.Fields(string(text)), " "); got != want {
				t.Errorf("%s is %q, want %q", kind, got, want)
			}
		}
	}
}

func usersOf(t *testing.T, pid int) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	must(t, err)
	return link
}

// TestUsersContract holds the launcher's promises with user namespaces.
func TestUsersContract(t *testing.T) { launchtest.Run(t, withUsers("", os.Getenv(envShim))) }

// TestUsersOnStrictMounts: a data folder may lie on a file system with mount options that a
// user namespace must not drop.
func TestUsersOnStrictMounts(t *testing.T) {
	t.Parallel()
	for _, runtime := range []string{Crun, Runc} {
		t.Run(runtime, func(t *testing.T) {
			t.Parallel()
			b := launchtest.NewFolder(t, withUsers(runtime, os.Getenv(envShim)))
			strict := t.TempDir()
			must(t, unix.Mount("tmpfs", strict, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, ""),
				exec.Command("cp", "-a", b.Config.DataDir, strict).Run())
			t.Cleanup(func() { must(t, unix.Unmount(strict, 0)) })
			b.Config.DataDir = filepath.Join(strict, "data")
			b.Image.Path = filepath.Join(b.Config.DataDir, "store", "sha256", b.Image.Digest)
			b.Reopen()
			t.Cleanup(b.Clean)
			g := b.Guest()
			expectOwnUsers(t, b, g, b.Guest())
		})
	}
}

// TestUsersFromNextStart: a worker gets, or loses, its user namespace when it is started
// the next time by a launcher with another choice.
func TestUsersFromNextStart(t *testing.T) {
	t.Parallel()
	uid := 0
	b := launchtest.NewBench(t, func(c launchtest.Config) (launch.Launcher, error) {
		return New(context.Background(), Config{DataDir: c.DataDir, HostID: c.HostID, Shim: os.Getenv(envShim), RootUID: uid, Logger: c.Logger})
	})
	g := b.Guest()
	ours := usersOf(t, os.Getpid())
	for _, uid = range []int{rootUID, 0} {
		before := usersOf(t, int(first(t, b, g.Spec.Serial)))
		must(t, b.Launcher.Close())
		b.Reopen()
		if err := b.Launcher.Create(b.Context(), g.Spec); !errors.Is(err, worker.ErrConflict) {
			t.Fatalf("create: %v", err)
		}
		if now := usersOf(t, int(first(t, b, g.Spec.Serial))); now != before {
			t.Error("it changes while it runs")
		}
		b.Stop(g.Spec.Serial, time.Second)
		must(t, b.Launcher.Start(b.Context(), g.Spec.Serial))
		g.AwaitUp()
		if now := usersOf(t, int(first(t, b, g.Spec.Serial))); (now != ours) != (uid != 0) {
			t.Errorf("with root %d its user namespace is %s, ours is %s", uid, now, ours)
		}
	}
}

// TestBlindContainerd: one that an earlier version of the host has started does not see the
// root folders where they have to be. It is started anew, and workers run on.
func TestBlindContainerd(t *testing.T) {
	t.Parallel()
	uid := 0
	b := launchtest.NewBench(t, func(c launchtest.Config) (launch.Launcher, error) {
		return New(context.Background(), Config{DataDir: c.DataDir, HostID: c.HostID, Shim: os.Getenv(envShim), RootUID: uid, Logger: c.Logger})
	})
	g, before := b.Guest(), containerdPID(t, b)
	pid := first(t, b, g.Spec.Serial)
	text, err := exec.Command("nsenter", "--mount", "--target", fmt.Sprint(before), "umount", own(b).roots).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	must(t, b.Launcher.Close())
	b.Reopen()
	if containerdPID(t, b) != before {
		t.Error("it is started anew without need")
	}
	must(t, b.Launcher.Close())
	uid = rootUID
	b.Reopen()
	if containerdPID(t, b) == before {
		t.Error("it is not started anew")
	}
	if first(t, b, g.Spec.Serial) != pid {
		t.Error("the worker has not run on")
	}
	expectOwnUsers(t, b, b.Guest(), b.Guest())
}

// TestUsersRefused: where there are no user namespaces to be had, that is said when the
// launcher is opened.
func TestUsersRefused(t *testing.T) {
	t.Parallel()
	_, err := New(t.Context(), Config{DataDir: t.TempDir(), HostID: "0123456789abcdef", Address: "/run/c.sock", RootUID: rootUID, Logger: hclog.NewNullLogger()})
	if !errors.Is(err, worker.ErrInvalid) || !strings.Contains(worker.HintOf(err), "--containerd private") {
		t.Errorf("under somebody else's containerd: %v (%s)", err, worker.HintOf(err))
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envForbidden+"=1")
	all := []syscall.SysProcIDMap{{Size: 1 << 30}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: all, GidMappings: all, GidMappingsEnableSetgroups: true}
	said, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(said), "make a user namespace") || !strings.Contains(string(said), "max_user_namespaces") {
		t.Errorf("where none may be made: %v: %s", err, said)
	}
	if err := UserNamespaces(t.Context()); err != nil {
		t.Errorf("here: %v", err)
	}
}

// envForbidden has the test binary say whether there can be user namespaces where none
// may be made.
const envForbidden = "DALS_TEST_FORBIDDEN"

func askForbidden() int {
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
		fmt.Println(err)
		return 1
	}
	err := UserNamespaces(context.Background())
	fmt.Println(err, worker.HintOf(err))
	return 0
}
