package registry

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// childEnv names the life that the test binary leads as a child process.
const childEnv = "DALS_REGISTRY_TEST_CHILD"

// child is the test binary again, leading the life of that name with one
// argument: see TestMain.
func child(t *testing.T, life, arg string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	// The race detector would wait for a second at the end.
	cmd.Env = append(os.Environ(), childEnv+"="+life+":"+arg, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = t.Output()
	return cmd
}

// writeUntilKilled writes from many callers for ever, and says on stdout what
// was acknowledged.
func writeUntilKilled(path string) error {
	r, err := Open(context.Background(), Config{Path: path})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // one line at a time
	failed := make(chan error, 1)
	for caller := range 16 {
		wg.Go(func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("%d/%d/%d", os.Getpid(), caller, n)
				var index uint64
				err := r.Update(context.Background(), func(tx *Tx) (err error) {
					if index, err = tx.Append([]byte(key)); err != nil {
						return err
					}
					return tx.SetMeta(key, strconv.FormatUint(index, 10))
				})
				if err != nil {
					failed <- err
					return
				}
				mu.Lock()
				fmt.Fprintf(os.Stdout, "%d %s\n", index, key)
				mu.Unlock()
			}
		})
	}
	return <-failed
}

func TestKilledWriterLosesNothingAcknowledged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registry.db")
	acknowledged := map[uint64]string{}
	for round := range 5 {
		cmd := child(t, "write", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			index, key, ok := strings.Cut(lines.Text(), " ")
			i, err := strconv.ParseUint(index, 10, 64)
			if !ok || err != nil {
				break // the kill cut this line in two
			}
			if was, twice := acknowledged[i]; twice {
				t.Fatalf("index %d was given to %s and %s", i, was, key)
			}
			acknowledged[i] = key
			if n == 200+61*round { // then what is still in the pipe
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // says that it was killed
	}

	r := openAt(t, path)
	log := entries(t, r)
	t.Logf("%d acknowledged, %d in the log", len(acknowledged), len(log))
	if len(acknowledged) < 5*200 {
		t.Errorf("only %d writes were acknowledged", len(acknowledged))
	}
	for index, key := range acknowledged {
		if index >= uint64(len(log)) || log[index] != key {
			t.Fatalf("entry %d (%s) was acknowledged and is gone", index, key)
		}
	}
	for index, key := range log { // entry and change stand or fall together
		if value, err := r.Meta(t.Context(), key); err != nil || value != strconv.Itoa(index) {
			t.Fatalf("entry %d: meta %s is %q, %v", index, key, value, err)
		}
	}
}

// liveAsChild leads the life that the environment asks for.
func liveAsChild(life string, stderr io.Writer) int {
	name, arg, _ := strings.Cut(life, ":")
	lives := map[string]func(string) error{
		"write":      writeUntilKilled,
		"disk full":  fillDisk,
		"no access":  openRefused,
		"remount ro": turnReadOnly,
		"migrate":    migrateSlowly,
	}
	if err := lives[name](arg); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}
