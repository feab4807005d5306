package record

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/note"
)

func TestMain(m *testing.M) {
	if os.Getenv(crashEnv) != "" {
		publishUntilKilled()
	}
	goleak.VerifyTestMain(m)
}

// A fixed key, so that several processes are one log.
const (
	testSigner   = "PRIVATE+KEY+dals.test/record+2a69af47+AQcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH"
	testVerifier = "dals.test/record+2a69af47+AepKbGPinFIKvvVQexMuxfmVR3auvr57kkIe6mkURtIs"
	groupMaximum = 100
)

// rowsOf are rows that follow from their index alone, in groups of 1 to
// groupMaximum, as many as size says at the moment.
type rowsOf struct {
	size      atomic.Uint64
	committed chan struct{}
	change    map[uint64][]byte // rows that somebody changed
}

func newRows(size uint64) *rowsOf {
	s := &rowsOf{committed: make(chan struct{}, 1)}
	s.size.Store(size)
	return s
}

func (s *rowsOf) grow(n uint64) {
	s.size.Add(n)
	select {
	case s.committed <- struct{}{}:
	default:
	}
}

func (s *rowsOf) Size(context.Context) (uint64, error) { return s.size.Load(), nil }

func (s *rowsOf) Committed() <-chan struct{} { return s.committed }

func (s *rowsOf) Groups(ctx context.Context, from uint64) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		// A group never spans a multiple of groupMaximum, so any can be found.
		for first := from - from%groupMaximum; first < s.size.Load(); {
			if ctx.Err() != nil {
				yield(Group{}, ctx.Err())
				return
			}
			end := min(first+1+first*13%groupMaximum, first-first%groupMaximum+groupMaximum, s.size.Load())
			if end <= from {
				first = end
				continue
			}
			g := Group{First: first, At: time.UnixMilli(int64(first))}
			for i := first; i < end; i++ {
				g.Entries = append(g.Entries, s.row(i))
			}
			if !yield(g, nil) {
				return
			}
			first = end
		}
	}
}

func (s *rowsOf) row(i uint64) []byte {
	if changed, ok := s.change[i]; ok {
		return changed
	}
	return fmt.Appendf(nil, `{"v":1,"kind":"test","n":%d,"sum":"%x"}`, i, i*i*2654435761)
}

func signer(t testing.TB) note.Signer {
	t.Helper()
	s, err := note.NewSigner(testSigner)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func verifier(t testing.TB) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(testVerifier)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func openLog(t testing.TB, dir string, s Source) *Log {
	t.Helper()
	l, err := Open(t.Context(), Config{Dir: dir, Signer: signer(t), Source: s, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// start runs l until the returned function is called, which gives Run's error.
func start(t testing.TB, l *Log) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

// publish makes the log of rows of this size in a new folder.
func publish(t testing.TB, size uint64) (dir string, s *rowsOf) {
	t.Helper()
	dir, s = t.TempDir(), newRows(size)
	publishIn(t, dir, s)
	return dir, s
}

func publishIn(t testing.TB, dir string, s *rowsOf) {
	t.Helper()
	l := openLog(t, dir, s)
	stop := start(t, l)
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	if n := s.size.Load(); n > 0 {
		waitFor(t, l, n-1)
	}
}

func waitFor(t testing.TB, l *Log, index uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := l.WaitFor(ctx, index); err != nil {
		t.Fatal(err)
	}
}

func verify(t testing.TB, dir string, s Source) Report {
	t.Helper()
	r, err := Verify(t.Context(), dir, s, verifier(t))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// contents are all files below dir.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(dir + "/" + name)
		found[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestFilesAreThoseOfTheTree(t *testing.T) {
	t.Parallel()
	dir, s := publish(t, 70000)
	got := slices.Sorted(maps.Keys(contents(t, dir)))
	var want []string
	for n := range 273 {
		want = append(want, fmt.Sprintf("tile/0/%03d", n), fmt.Sprintf("tile/entries/%03d", n))
	}
	want = append(want, "checkpoint", "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1", "tile/entries/273.p/112")
	slices.Sort(want)
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	// Growing leaves no partial tile behind, and no folder of one.
	s.grow(200)
	publishIn(t, dir, s)
	for _, gone := range []string{"tile/0/273.p", "tile/entries/273.p", "tile/1/001.p/17"} {
		if _, err := os.Lstat(dir + "/" + gone); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
}

func TestSizesInSteps(t *testing.T) {
	t.Parallel()
	dir, s := t.TempDir(), newRows(0)
	l := openLog(t, dir, s)
	l.pause = 0
	stop := start(t, l)
	for _, n := range []uint64{1, 1, 253, 1, 1, 255, 1, 511, 65000} {
		s.grow(n)
		waitFor(t, l, s.size.Load()-1)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// The way does not matter: the files are those of one go.
	atOnce, _ := publish(t, s.size.Load())
	if d := cmp.Diff(contents(t, atOnce), contents(t, dir)); d != "" {
		t.Fatal(d)
	}
	if entries, age := l.Lag(); entries != 0 || age != 0 {
		t.Errorf("lag of %d entries, %s", entries, age)
	}
}
