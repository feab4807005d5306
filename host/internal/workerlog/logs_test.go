package workerlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/worker"
)

// folder has one worker, whose log is in its folder logs.
type folder string

const serial = worker.Serial("DMN-XX-1-00000000-00000")

func (f folder) Instances() ([]worker.Serial, error)      { return []worker.Serial{serial}, nil }
func (f folder) Dir(worker.Serial) string                 { return string(f) }
func (f folder) OpenRoot(worker.Serial) (*os.Root, error) { return os.OpenRoot(string(f)) }

const testMax = 4 * block

// bench has a short limit, and the log open as the one who prints has it.
type bench struct {
	*testing.T
	*Logs
	file *os.File
	path string
}

// fileSystems runs a test where a file's beginning can be taken away, and where
// it cannot.
func fileSystems(t *testing.T, test func(b *bench)) {
	for _, name := range []string{"disk", "tmpfs"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if name == "tmpfs" {
				if err := unix.Mount("none", dir, "tmpfs", 0, "size=64m"); err != nil {
					t.Fatalf("mount (root is needed): %v", err)
				}
				t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			}
			test(newBench(t, dir))
		})
	}
}

func newBench(t *testing.T, dir string) *bench {
	t.Helper()
	b := &bench{T: t, Logs: New(folder(dir), "logs/worker.log", hclog.NewNullLogger()), path: filepath.Join(dir, "logs/worker.log")}
	b.max = testMax
	b.must(os.Mkdir(filepath.Dir(b.path), 0o700))
	file, err := os.OpenFile(b.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	b.must(err)
	t.Cleanup(func() { _ = file.Close() })
	b.file = file
	return b
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// print prints lines that tell their number until size bytes are printed.
func (b *bench) print(next *int, size int) {
	b.Helper()
	var text bytes.Buffer
	for text.Len() < size {
		fmt.Fprintf(&text, "line %d\n", *next)
		*next++
	}
	_, err := b.file.Write(text.Bytes())
	b.must(err)
}

func (b *bench) open() *Reader {
	b.Helper()
	r, err := b.Open(serial)
	b.must(err)
	b.Cleanup(func() { _ = r.Close() })
	return r
}

func (b *bench) read(r io.Reader) string {
	b.Helper()
	text, err := io.ReadAll(r)
	b.must(err)
	return string(text)
}

func (b *bench) size() (total int64) {
	b.Helper()
	for _, suffix := range []string{"", oldSuffix, newSuffix} {
		if info, err := os.Stat(b.path + suffix); err == nil {
			total += info.Size()
		}
	}
	return total
}

// expectLines checks that text is whole lines, one after the other up to next.
func (b *bench) expectLines(text string, next int) {
	b.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		if want := fmt.Sprintf("line %d", next-len(lines)+i); line != want {
			b.Fatalf("line %d of %d is %q, want %q", i, len(lines), line, want)
		}
	}
}

// TestRotate: however much is printed, what is kept is bounded and reads as
// whole lines without a gap, from the beginning, from the end, and followed.
func TestRotate(t *testing.T) {
	t.Parallel()
	fileSystems(t, func(b *bench) {
		next := 0
		follower := b.open()
		var followed strings.Builder
		for range 30 {
			b.print(&next, testMax/3)
			_, err := b.bound(serial)
			b.must(err)
			followed.WriteString(b.read(follower))
			if n := b.size(); n > 3*testMax {
				b.Fatalf("%d bytes are kept, the limit is %d", n, testMax)
			}
		}
		if _, err := os.Stat(b.path + oldSuffix); err != nil {
			b.Fatalf("nothing was rotated: %v", err)
		}
		b.expectLines(followed.String(), next)
		if !strings.HasPrefix(followed.String(), "line 0\n") {
			b.Error("the follower missed the beginning")
		}
		kept := b.read(b.open())
		b.expectLines(kept, next)
		if len(kept) < testMax {
			b.Errorf("only %d bytes are kept", len(kept))
		}
		for _, n := range []int{1, 7, next / 100, strings.Count(kept, "\n"), next} {
			r := b.open()
			b.must(r.Last(n))
			text := b.read(r)
			b.expectLines(text, next)
			if got, want := strings.Count(text, "\n"), min(n, strings.Count(kept, "\n")); got != want {
				b.Errorf("the last %d lines are %d, want %d", n, got, want)
			}
		}
		// A host that comes later reads the same.
		later := New(b.folders, b.Logs.path, b.log)
		r, err := later.Open(serial)
		b.must(err)
		defer r.Close()
		if b.read(r) != kept {
			b.Error("the next host reads something else")
		}
	})
}

// elsewhere has one worker, whose folder may be away.
type elsewhere struct {
	folder
	list func() ([]worker.Serial, error)
}

func (e elsewhere) Instances() ([]worker.Serial, error) { return e.list() }

// TestUpgradedWhileFollowed: who follows reads on where it was while a worker's folder is
// set aside, and when its log lies in another.
func TestUpgradedWhileFollowed(t *testing.T) {
	t.Parallel()
	fileSystems(t, func(b *bench) {
		next, followed, behind, follower := 0, "", b.open(), b.open()
		for range 4 { // the beginning goes
			b.print(&next, testMax/2)
			_, err := b.bound(serial)
			b.must(err)
			followed += b.read(follower)
		}
		logs := filepath.Dir(b.path)
		aside := filepath.Join(filepath.Dir(logs), "aside")
		b.must(os.Rename(logs, aside))
		b.look(nil, nil, nil)
		b.print(&next, 100)
		followed += b.read(follower)
		b.expectLines(b.read(behind), next)
		b.must(os.Rename(aside, logs))
		b.look([]worker.Serial{serial}, nil, nil)
		b.print(&next, 100)
		followed += b.read(follower)
		b.expectLines(followed, next)
		if !strings.HasPrefix(followed, "line 0\n") {
			b.Error("the follower missed the beginning")
		}
	})
}

// TestBlind: a look that fails ends nothing, and forgets nothing.
func TestBlind(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	next, looks := 0, make(chan func() ([]worker.Serial, error))
	b.folders = elsewhere{b.folders.(folder), func() ([]worker.Serial, error) { return (<-looks)() }}
	blind := func() ([]worker.Serial, error) { return nil, syscall.EMFILE }
	sees := func() ([]worker.Serial, error) { return []worker.Serial{serial}, nil }
	ended := make(chan error, 1)
	go func() { ended <- b.RunWhileWorkers(t.Context()) }()
	looks <- blind
	b.print(&next, 2*testMax)
	looks <- sees
	follower := b.open()
	for range 2 {
		looks <- blind
		b.print(&next, testMax)
	}
	looks <- sees
	looks <- sees // the one before is done
	if n := b.size(); n > 3*testMax {
		t.Errorf("%d bytes are kept", n)
	}
	b.expectLines(b.read(follower), next)
	select {
	case err := <-ended:
		t.Fatalf("it ended: %v", err)
	default:
	}
	looks <- func() ([]worker.Serial, error) { return nil, nil }
	b.must(<-ended)
}

// TestFlood: of what is printed far too fast the last is kept, in whole lines.
func TestFlood(t *testing.T) {
	t.Parallel()
	fileSystems(t, func(b *bench) {
		next := 0
		follower := b.open()
		b.print(&next, 20*testMax)
		size, err := b.bound(serial)
		if err != nil || size < 20*testMax {
			b.Fatalf("%d bytes, %v", size, err)
		}
		if n := b.size(); n > testMax {
			b.Errorf("%d bytes are kept of a flood", n)
		}
		b.print(&next, 10)
		b.expectLines(b.read(b.open()), next)
		b.expectLines(b.read(follower), next) // it passes over what has gone
		if info, err := os.Stat(b.path + oldSuffix); err != nil || info.Mode().Perm() != 0o600 {
			b.Errorf("old file: %v, %v", info, err)
		}
	})
}

// TestWhilePrinting: one prints and one follows all the time; where the file
// system can, not a line is lost.
func TestWhilePrinting(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	const lines = 60_000
	done := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		defer close(done)
		for i := range lines {
			fmt.Fprintf(b.file, "line %d\n", i)
		}
	})
	busy.Go(func() {
		for {
			if _, err := b.bound(serial); err != nil {
				t.Error(err)
			}
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	r, text := b.open(), strings.Builder{}
	last := fmt.Sprintf("line %d\n", lines-1)
	for deadline := time.Now().Add(time.Minute); !strings.HasSuffix(text.String(), last) && time.Now().Before(deadline); {
		text.WriteString(b.read(r))
	}
	busy.Wait()
	b.expectLines(text.String(), lines)
	if len(b.cut) == 0 {
		t.Error("nothing was rotated")
	}
}

// TestOthersFiles: what is not a plain file in the worker's own folder is left
// alone, and so is what a link leads to.
func TestOthersFiles(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(path, elsewhere string) error{
		"link":   func(path, elsewhere string) error { return os.Symlink(elsewhere, path) },
		"fifo":   func(path, _ string) error { return unix.Mkfifo(path, 0o600) },
		"folder": func(path, _ string) error { return os.Mkdir(path, 0o700) },
	} {
		for _, at := range []string{"", oldSuffix, newSuffix} {
			t.Run(name+at, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, t.TempDir())
				elsewhere := filepath.Join(t.TempDir(), "elsewhere")
				long := bytes.Repeat([]byte("x\n"), testMax)
				b.must(os.WriteFile(elsewhere, long, 0o600))
				next := 0
				b.print(&next, testMax+1)
				if at == "" {
					b.must(os.Remove(b.path))
				}
				b.must(make(b.path+at, elsewhere))
				_, _ = b.bound(serial)
				if at != "" {
					_, _ = b.bound(serial)
				}
				if r, err := b.Open(serial); err == nil {
					if strings.Contains(b.read(r), "x\n") {
						t.Error("a file elsewhere was read")
					}
					_ = r.Close()
				}
				if text, err := os.ReadFile(elsewhere); err != nil || !bytes.Equal(text, long) {
					t.Errorf("a file elsewhere was changed: %d bytes, %v", len(text), err)
				}
			})
		}
	}
}

// TestRemoved: a log that is gone is read to its end.
func TestRemoved(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir())
	r, next := b.open(), 0
	b.print(&next, 100)
	b.must(os.Remove(b.path))
	if removed, err := r.Removed(); removed || err != nil {
		t.Fatalf("removed before it was read: %t, %v", removed, err)
	}
	b.expectLines(b.read(r), next)
	if removed, err := r.Removed(); !removed || err != nil {
		t.Fatalf("not removed: %t, %v", removed, err)
	}
	if _, err := b.Open(serial); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opened: %v", err)
	}
	if _, err := b.bound(serial); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("bounded: %v", err)
	}
}

// TestRun bounds by itself, and says once what it cannot.
func TestRun(t *testing.T) {
	t.Parallel()
	var said lockedText
	b := newBench(t, t.TempDir())
	b.log = hclog.New(&hclog.LoggerOptions{Output: &said})
	done := make(chan error, 1)
	go func() { done <- b.Logs.Run(t.Context()) }()
	t.Cleanup(func() { b.must(<-done) })
	until := func(what string, condition func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("in vain waited until %s: %s", what, said.String())
			}
		}
	}
	next := 0
	b.print(&next, 3*testMax)
	until("it is bounded", func() bool { return b.size() <= testMax })
	b.must(os.RemoveAll(b.path + oldSuffix))
	b.must(os.Mkdir(b.path+oldSuffix, 0o700)) // nothing can take its place
	b.print(&next, 3*testMax)
	until("it says so", func() bool { return strings.Contains(said.String(), "not bounded") })
	b.must(os.Remove(b.path + oldSuffix))
	until("it is bounded again", func() bool { return b.size() <= testMax })
	if n := strings.Count(said.String(), "not bounded"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// many are as many workers as their number says, in folders of that name.
type many struct {
	folder
	n int
}

func (m many) Instances() (serials []worker.Serial, err error) {
	entries, err := os.ReadDir(string(m.folder))
	for _, e := range entries {
		serials = append(serials, worker.Serial(e.Name()))
	}
	return serials, err
}
func (m many) Dir(s worker.Serial) string { return filepath.Join(string(m.folder), string(s)) }

// BenchmarkLook is one look at the logs of a thousand workers at rest.
func BenchmarkLook(b *testing.B) {
	m := many{folder(b.TempDir()), 1000}
	for i := range m.n {
		dir := filepath.Join(m.Dir(worker.NewSerial("DMN-XX-1", 1, i)), "logs")
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "worker.log"), []byte("x\n"), 0o600)); err != nil {
			b.Fatal(err)
		}
	}
	l := New(m, "logs/worker.log", hclog.NewNullLogger())
	sizes := map[worker.Serial]int64{}
	for b.Loop() {
		serials, _ := m.Instances()
		sizes, _ = l.look(serials, sizes, nil)
	}
	if len(sizes) != m.n {
		b.Fatalf("%d logs", len(sizes))
	}
}
