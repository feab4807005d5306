package stage

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/worker"
)

const (
	nora worker.Serial = "DMN-TP-1-deadbeef-00001"
	otto worker.Serial = "DMN-TP-1-deadbeef-00002"
	uid                = 70001
)

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(Config{Dir: filepath.Join(t.TempDir(), "workers")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// build makes a stage as the forge does.
func build(t testing.TB, s *Store, serial worker.Serial) *Stage {
	t.Helper()
	st, err := s.New(serial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	for _, err := range []error{
		st.Mkdir(".", Access{Mode: 0o750, GID: uid}),
		st.Mkdir("certs", Access{Mode: 0o750, GID: uid}),
		st.Mkdir("state", Access{Mode: 0o700, UID: uid, GID: uid}),
		st.Mkdir("run", Access{Mode: 0o700, UID: uid, GID: uid}),
		st.WriteFile("identity.json", []byte("{}"), Access{Mode: 0o440, GID: uid}),
		st.WriteFile("certs/worker.key", []byte("secret"), Access{Mode: 0o600, UID: uid, GID: uid}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return st
}

func promoteNew(t testing.TB, s *Store, serial worker.Serial) {
	t.Helper()
	st := build(t, s, serial)
	if err := errors.Join(st.Promote(), st.Sync()); err != nil {
		t.Fatal(err)
	}
}

// list describes what is below dir: path, mode, owner.
func list(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		rel, err := filepath.Rel(dir, path)
		all = append(all, fmt.Sprintf("%s %s %d:%d", rel, info.Mode(), st.Uid, st.Gid))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func mustBeRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test gives files to other users: run it as root")
	}
}

func TestPromote(t *testing.T) {
	mustBeRoot(t)
	old := syscall.Umask(0o077) // modes are exact, whatever the umask
	defer syscall.Umask(old)
	s := openStore(t)
	st := build(t, s, nora)
	if instances, err := s.Instances(); err != nil || len(instances) > 0 {
		t.Errorf("before the promotion: %q, %v", instances, err)
	}
	staged := list(t, st.Dir())
	if err := errors.Join(st.Promote(), st.Sync()); err != nil {
		t.Fatal(err)
	}
	want := []string{
		". drwxr-x--- 0:70001",
		"certs drwxr-x--- 0:70001",
		"certs/worker.key -rw------- 70001:70001",
		"identity.json -r--r----- 0:70001",
		"run drwx------ 70001:70001",
		"state drwx------ 70001:70001",
	}
	if d := cmp.Diff(want, list(t, s.Dir(nora))); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want, staged); d != "" {
		t.Error(d)
	}
	if _, err := os.Lstat(st.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stage is still there: %v", err)
	}
	if instances, err := s.Instances(); err != nil || !slices.Equal(instances, []worker.Serial{nora}) {
		t.Errorf("%q, %v", instances, err)
	}
	root, err := s.OpenRoot(nora)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if data, err := root.ReadFile("certs/worker.key"); string(data) != "secret" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
}

func TestConflicts(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	promoteNew(t, s, nora)
	again := build(t, s, nora)
	if _, err := s.New(nora); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("second stage: %v", err)
	}
	before := list(t, s.Dir(nora))
	if err := again.Promote(); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("second promotion: %v", err)
	}
	if d := cmp.Diff(before, list(t, s.Dir(nora))); d != "" {
		t.Error(d)
	}
	st := build(t, s, otto)
	if err := st.WriteFile("identity.json", nil, Access{Mode: 0o400}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("wrote a file twice: %v", err)
	}
	// Nothing is written outside the stage, by name or by link.
	if err := st.Root().Symlink("/etc", "link"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../x", "/etc/x", "link/x", "certs/../../x"} {
		if err := st.WriteFile(name, nil, Access{Mode: 0o400}); err == nil {
			t.Errorf("wrote %s", name)
		}
	}
}

func TestSerialsOnly(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for _, bad := range []worker.Serial{"", ".", "..", "../x", "DMN-TP-1-deadbeef-00001/..", "instances", "\x00"} {
		_, errNew := s.New(bad)
		_, errRoot := s.OpenRoot(bad)
		for what, err := range map[string]error{
			"new": errNew, "open": errRoot, "drop": s.Drop(bad), "demote": s.Demote(bad), "remove": s.Remove(bad),
			"write": s.WriteMirror(bad, nil),
		} {
			if !errors.Is(err, worker.ErrInvalid) {
				t.Errorf("%s %q: %v", what, bad, err)
			}
		}
	}
}

func TestUndoMayBeRepeated(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	twice := func(what string, f func(worker.Serial) error) {
		t.Helper()
		for range 2 {
			if err := f(nora); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	twice("drop nothing", s.Drop)
	twice("demote nothing", s.Demote)
	twice("remove nothing", s.Remove)
	build(t, s, nora)
	twice("drop", s.Drop)
	promoteNew(t, s, nora)
	twice("demote", s.Demote)
	if all := list(t, filepath.Join(s.dir, staging, string(nora))); len(all) != 6 {
		t.Errorf("demoted: %q", all)
	}
	twice("drop demoted", s.Drop)
	promoteNew(t, s, nora)
	build(t, s, nora) // what a crash may leave beside it
	twice("remove", s.Remove)
	if all := list(t, s.dir); len(all) != 5 {
		t.Errorf("left: %q", all)
	}
	if _, err := s.OpenRoot(nora); !errors.Is(err, worker.ErrNotFound) {
		t.Error(err)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	promoteNew(t, s, nora)
	build(t, s, nora)
	build(t, s, otto)
	if err := os.WriteFile(filepath.Join(s.dir, staging, ".worker_x.json123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	removed, err := s.Sweep()
	if err != nil || len(removed) != 2 || !slices.Contains(removed, nora) || !slices.Contains(removed, otto) {
		t.Errorf("removed %q, %v", removed, err)
	}
	left, err := os.ReadDir(filepath.Join(s.dir, staging))
	if err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if _, err := os.Stat(s.Dir(nora)); err != nil {
		t.Errorf("a promoted worker was swept: %v", err)
	}
}

// TestRemoveFollowsNothing has a worker fill its folders with what it can think
// of, and the host remove them: what lies outside stays.
func TestRemoveFollowsNothing(t *testing.T) {
	t.Parallel()
	mustBeRoot(t)
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o640); err != nil {
		t.Fatal(err)
	}
	before := list(t, outside)
	s := openStore(t)
	promoteNew(t, s, nora)
	promoteNew(t, s, otto)
	state, run := filepath.Join(s.Dir(nora), "state"), filepath.Join(s.Dir(nora), "run")
	for i, target := range []string{outside, victim, "/", "../../..", s.Dir(otto), "../../../../nowhere", "/proc/self/fd", "."} {
		if err := os.Symlink(target, filepath.Join(state, fmt.Sprintf("link%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(run, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, err := range []error{
		os.Link(victim, filepath.Join(state, "hard")),
		unix.Mkfifo(filepath.Join(state, "fifo"), 0o600),
		unix.Mknod(filepath.Join(state, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))),
		os.MkdirAll(filepath.Join(state, "locked", "locked"), 0o700),
		os.WriteFile(filepath.Join(state, "locked", "locked", "file"), nil, 0),
		os.Chmod(filepath.Join(state, "locked", "locked"), 0),
		os.Chmod(filepath.Join(state, "locked"), 0),
		os.MkdirAll(filepath.Join(s.Dir(nora), "lifted-1", "lifted-2"), 0o700),
		os.WriteFile(filepath.Join(s.Dir(nora), "lifted-2"), nil, 0),
		os.WriteFile(filepath.Join(state, "-rf \n\xff"), nil, 0),
		os.RemoveAll(run), // a folder of its own becomes a link
		os.Symlink(outside, run),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(nora); err != nil {
		t.Fatal(err)
	}
	if left := list(t, s.dir); strings.Contains(strings.Join(left, "\n"), string(nora)) {
		t.Errorf("left: %q", left)
	}
	if d := cmp.Diff(before, list(t, outside)); d != "" {
		t.Error(d)
	}
	if all := list(t, s.Dir(otto)); len(all) != 6 {
		t.Errorf("the other worker has %q", all)
	}
}

// TestManyFiles has more in one folder than is read at once.
func TestManyFiles(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	promoteNew(t, s, nora)
	for i := range 1100 {
		name := filepath.Join(s.Dir(nora), "state", fmt.Sprint(i))
		if err := errors.Join(os.Mkdir(name, 0o700), os.WriteFile(name+".txt", nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(nora); err != nil {
		t.Fatal(err)
	}
	if left := list(t, s.dir); len(left) != 5 {
		t.Errorf("left: %d", len(left))
	}
}

// TestNotRoot has a host without privileges promote and remove a worker that
// locked its own folders.
func TestNotRoot(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv(notRootEnv); dir != "" {
		s, err := Open(Config{Dir: "workers"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		promoteNew(t, s, nora)
		locked := filepath.Join(s.Dir(nora), "state", "a", "b")
		for _, err := range []error{os.MkdirAll(locked, 0o700), os.Chmod(locked, 0), os.Chmod(filepath.Dir(locked), 0)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Remove(nora); err != nil {
			t.Fatal(err)
		}
		if left := list(t, "workers"); len(left) != 5 || strings.Contains(left[0], " 0:") {
			t.Errorf("left: %q", left)
		}
		return
	}
	mustBeRoot(t)
	dir, err := os.MkdirTemp("/tmp", "dals-stage")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// None of the workers' uids: a launcher may end whatever runs under those.
	const nobody = 61001
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	// By descriptor: the binary lies below a folder that is root's alone.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestNotRoot$")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), notRootEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

const notRootEnv = "DALS_TEST_STAGE_NOT_ROOT"

// TestRemoveDeep has folders nested deeper than the host has descriptors. It is
// not parallel: the limit is the whole process's.
func TestRemoveDeep(t *testing.T) {
	s := openStore(t)
	promoteNew(t, s, nora)
	if err := deep(filepath.Join(s.Dir(nora), "state"), 1000); err != nil {
		t.Fatal(err)
	}
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 100, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	}()
	if err := s.Remove(nora); err != nil {
		t.Fatal(err)
	}
	if left := list(t, s.dir); len(left) != 5 {
		t.Errorf("left: %d", len(left))
	}
}

// deep nests folders far below what a path can name.
func deep(dir string, levels int) error {
	at, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for i := 0; i < levels && err == nil; i++ {
		var next int
		if err = unix.Mkdirat(at, "d", 0o700); err == nil {
			next, err = unix.Openat(at, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
		unix.Close(at)
		at = next
	}
	unix.Close(at)
	return err
}

func TestOpenRootStaysInside(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	promoteNew(t, s, nora)
	if err := os.Symlink("/etc/passwd", filepath.Join(s.Dir(nora), "state", "p")); err != nil {
		t.Fatal(err)
	}
	root, err := s.OpenRoot(nora)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if data, err := root.ReadFile("state/p"); err == nil {
		t.Errorf("read %d bytes outside", len(data))
	}
}

func TestMirror(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	path := filepath.Join(s.dir, instances, "worker_"+string(nora)+".json")
	inode := func() uint64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Ino
	}
	if err := s.WriteMirror(nora, []byte(`{"a":1}`)); err != nil {
		t.Fatal(err)
	}
	first := inode()
	if err := s.WriteMirror(nora, []byte(`{"a":1}`)); err != nil {
		t.Fatal(err)
	}
	if inode() != first {
		t.Error("written again although it says the same")
	}
	if err := s.WriteMirror(nora, []byte(`{"a":2}`)); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(path); string(data) != `{"a":2}` || err != nil || inode() == first {
		t.Errorf("%q, %v", data, err)
	}
	// Somebody's symlink is replaced, not followed.
	victim := filepath.Join(t.TempDir(), "victim")
	if err := errors.Join(os.WriteFile(victim, []byte("mine"), 0o600), os.Remove(path), os.Symlink(victim, path)); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteMirror(nora, []byte(`{"a":3}`)); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(victim); string(data) != "mine" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	if instances, err := s.Instances(); err != nil || len(instances) > 0 {
		t.Errorf("a mirror counts as a worker: %q, %v", instances, err)
	}
}

// TestKilledWhileForging kills a process that makes, promotes and removes
// workers as fast as it can: a worker's folder is whole or not there, and one
// sweep leaves nothing else.
func TestKilledWhileForging(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "workers")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestForgeUntilKilled$")
		cmd.Dir, cmd.Env = dir, append(os.Environ(), crashEnv+"=1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitUntil(t, func() bool { _, err := os.Stat(filepath.Join(dir, "started")); return err == nil })
		timer := time.NewTimer(time.Duration(i) * time.Millisecond)
		<-timer.C
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := os.Remove(filepath.Join(dir, "started")); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Sweep(); err != nil {
			t.Fatal(err)
		}
		serials, err := s.Instances()
		if err != nil {
			t.Fatal(err)
		}
		for _, serial := range serials {
			if all := list(t, s.Dir(serial)); len(all) != 6 {
				t.Errorf("half a worker: %q", all)
			}
			if err := s.Remove(serial); err != nil {
				t.Error(err)
			}
		}
		if left := list(t, dir); len(left) != 5 {
			t.Errorf("left: %q", left)
		}
		s.Close()
	}
}

const crashEnv = "DALS_TEST_STAGE_CRASH"

// TestForgeUntilKilled is the process that TestKilledWhileForging kills; by
// itself it makes one worker.
func TestForgeUntilKilled(t *testing.T) {
	endless, dir := os.Getenv(crashEnv) != "", "."
	if !endless {
		dir = t.TempDir()
	}
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := 0; endless || i == 0; i++ {
		serial := worker.NewSerial("DMN-TP-1", 1, i)
		promoteNew(t, s, serial)
		if i == 0 && endless {
			if err := os.WriteFile("started", nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 == 0 {
			if err := s.Remove(serial); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func waitUntil(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited too long")
		}
	}
}

func BenchmarkForge(b *testing.B) {
	s := openStore(b)
	i := 0
	for b.Loop() {
		promoteNew(b, s, worker.NewSerial("DMN-TP-1", 1, i))
		i++
	}
}

// TestWarm: what NewWarm made is no stage before it joins those, and is the same
// folder then.
func TestWarm(t *testing.T) {
	s := openStore(t)
	for _, serial := range []worker.Serial{nora, otto} {
		st, err := s.NewWarm(serial)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { st.Close() })
		if err := st.Mkdir("state", Access{Mode: 0o700, UID: uid, GID: uid}); err != nil {
			t.Fatal(err)
		}
		if stages, err := s.Stages(); err != nil || len(stages) != 0 {
			t.Errorf("stages: %v, %v", stages, err)
		}
		if serial == otto {
			break
		}
		before, err := os.Stat(st.Dir())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(st.Join(), st.WriteFile("identity.json", []byte("{}"), Access{Mode: 0o440}), st.Promote(), st.Sync()); err != nil {
			t.Fatal(err)
		}
		if after, err := os.Stat(s.Dir(nora)); err != nil || !os.SameFile(before, after) {
			t.Errorf("it is another folder, %v", err)
		}
	}
	if _, err := s.NewWarm(otto); !errors.Is(err, worker.ErrConflict) {
		t.Errorf("made twice: %v", err)
	}
	if err := s.Drop(otto); err != nil {
		t.Fatal(err)
	}
	if _, err := s.NewWarm(otto); err != nil {
		t.Errorf("after it was dropped: %v", err)
	}
	if removed, err := s.Sweep(); err != nil || len(removed) != 0 {
		t.Errorf("swept %v, %v", removed, err)
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, warm)); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
