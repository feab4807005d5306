package catalog

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// refused is what a plugin is refused that is a process: from a version of Landlock
// on, or anywhere.
type refused struct {
	do    string
	since int
	says  string
}

func refusals() []refused {
	const files, others = "permission denied", "operation not permitted"
	return []refused{
		{"read", 1, files},
		{"append", 1, files},
		{"create", 1, files},
		{"truncate", 3, files},
		{"dial", 0, files},
		{"listen", 0, files},
		{"mptcp", 0, files}, // which the kernel may lack, as io_uring
		{"udp", 0, files},
		{"io_uring", 0, files},
		{"abstract", 6, others},
		{"signal", 6, others},
	}
}

// named says what becomes of it under a version of Landlock.
func (r refused) named(version int) string {
	if version < r.since {
		return fmt.Sprintf("%s is NOT refused by version %d", r.do, version)
	}
	return r.do
}

// isIn says whether the verdict on a plugin tells that it was refused this.
func (r refused) isIn(verdict error) bool {
	fault, ok := errors.AsType[*Fault](verdict)
	return ok && strings.Contains(fault.Reason, r.do+": ") && strings.Contains(fault.Reason, r.says)
}

// landlockVersion is the kernel's, 0 where it has none. There are two ways for a
// kernel to say that; anything else is a fault and hides nothing.
func landlockVersion(t *testing.T) int {
	t.Helper()
	version, _, errno := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
		return int(version)
	case unix.ENOSYS, unix.EOPNOTSUPP: // it was built without, or booted without
		return 0
	}
	t.Fatalf("ask the kernel for Landlock: %v", errno)
	return 0
}

// TestLandlock: a plugin that is a process sees and changes nothing of the machine,
// and reaches nobody. Its host is not root: no namespace and no uid of its own stand
// between it and the host. What the kernel's version of Landlock cannot take away must
// be had, and the names of the tests say which that is.
func TestLandlock(t *testing.T) {
	t.Parallel()
	const uid = 59998
	version := landlockVersion(t)
	t.Logf("the kernel's Landlock has version %d", version)
	dir := openFolder(t)
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	others := map[string]string{
		"dial": listening(t, "tcp", "127.0.0.1:0"), "abstract": listening(t, "unix", fmt.Sprintf("@dals-landlock-%d", os.Getpid())),
	}
	for _, part := range refusals() {
		target := cmp.Or(others[part.do], dir)
		if err := os.WriteFile(filepath.Join(dir, "plugin-"+part.do), plug(t, script{Do: part.do, Line: target}), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	host := exec.Command("/proc/self/exe", "-test.run=^TestRoleLandlocked$", "-test.v")
	host.Env = []string{roleEnv + "=landlocked", "CATALOG_TEST_DATA=" + dir, "CATALOG_TEST_VERSION=" + strconv.Itoa(version), "TMPDIR=" + dir, "PATH=/usr/bin:/bin"}
	host.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := host.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestRoleLandlocked ") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, part := range refusals() {
		t.Run(part.named(version), func(t *testing.T) {
			if !strings.Contains(string(out), "--- PASS: TestRoleLandlocked/"+part.do+" ") {
				t.Errorf("it is not so:\n%s", out)
			}
		})
	}
}

// TestLandlockOfRoot: nor where the host is root, of files that everybody may change.
func TestLandlockOfRoot(t *testing.T) {
	t.Parallel()
	version := landlockVersion(t)
	dir := openFolder(t)
	r := newRig(t)
	for _, part := range refusals() {
		if part.since == 0 || part.since > 3 { // others are in other namespaces as it is
			continue
		}
		t.Run(part.named(version), func(t *testing.T) {
			_, err := r.prober().Probe(t.Context(), stored(t, r.data, plug(t, script{Do: part.do, Line: dir})))
			if got := part.isIn(err); got != (version >= part.since) {
				t.Errorf("refused: %t: %v", got, err)
			}
		})
	}
	if _, err := os.Stat(dir + "/h"); (err == nil) != (version < 1) {
		t.Errorf("its file: %v", err)
	}
}

// TestLandlockAlone: it takes TCP, also where the filter of sockets could not.
func TestLandlockAlone(t *testing.T) {
	t.Parallel()
	calls := 0
	if version := landlockVersion(t); version >= 4 {
		calls = 2
	} else {
		t.Logf("NOT REFUSED: version %d of Landlock takes no TCP", version)
	}
	folder, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	err = onAnotherThread(func() (err error) {
		onThreadOfItsOwn(func() { err = tcpAlone(folder) })
		return err
	})
	if strings.Count(fmt.Sprint(err), "permission denied") != calls {
		t.Errorf("connect and bind, of which %d must be refused: %v", calls, err)
	}
}

// tcpAlone restricts its thread for good, and says what comes of TCP then.
func tcpAlone(folder *os.File) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if version, err := landlocked(folder, folder); version > 0 && err != nil {
		return err
	}
	here := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 1}
	return errors.Join(unix.Connect(fd, here), unix.Bind(fd, here))
}

// listening is the address of somebody who would answer.
func listening(t *testing.T, network, address string) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// openFolder is a folder with a file f, where everybody can read and write.
func openFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "catalog-open-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o777), os.WriteFile(dir+"/f", nil, 0o666), os.Chmod(dir+"/f", 0o666)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestRoleLandlocked is the host that probes: it runs in a process of its own, as a
// user. Each plugin does what it wants outside of a probe, and nothing in one.
func TestRoleLandlocked(t *testing.T) {
	if os.Getenv(roleEnv) != "landlocked" {
		return
	}
	dir := os.Getenv("CATALOG_TEST_DATA")
	version, err := strconv.Atoi(os.Getenv("CATALOG_TEST_VERSION"))
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	p := r.prober()
	for _, part := range refusals() {
		t.Run(part.do, func(t *testing.T) {
			name := filepath.Join(dir, "plugin-"+part.do)
			free, _ := exec.Command(name).CombinedOutput()
			if lacking := part.do == "mptcp" || part.do == "io_uring"; !lacking && !strings.Contains(string(free), part.do+": <nil>") {
				t.Errorf("outside of a probe it is refused, too: %s", free)
			}
			if err := os.Remove(dir + "/h"); part.do == "create" && err != nil {
				t.Error(err)
			}
			binary, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Probe(t.Context(), stored(t, r.data, binary))
			if got := part.isIn(err); got != (version >= part.since) {
				t.Errorf("refused: %t, with version %d of Landlock: %v", got, version, err)
			}
		})
	}
	if _, err := os.Stat(dir + "/h"); (err == nil) != (version < 1) {
		t.Errorf("its file: %v", err)
	}
	if err := os.WriteFile(dir+"/g", nil, 0o600); err != nil {
		t.Errorf("the host itself is restricted: %v", err)
	}
	told := fmt.Sprintf("plugin is probed under Landlock: version=%d", version)
	if version == 0 {
		told = "plugin is probed without Landlock"
	}
	if n := strings.Count(string(r.log.bytes()), told); n != len(refusals()) {
		t.Errorf("%q is told %d times of %d probes:\n%s", told, n, len(refusals()), r.log.bytes())
	}
}
