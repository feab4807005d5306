package launchtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// patience is how long anything may take here.
const patience = time.Minute

// Bench is a data folder with a launcher open over it and an image in its
// store. When its test ends it removes all workers, takes the launcher down and
// fails the test if anything is left on the machine.
type Bench struct {
	t        testing.TB
	open     Open
	Config   Config
	Launcher launch.Launcher
	Image    launch.Image
}

// NewBench makes a data folder for t and opens a launcher over it.
func NewBench(t testing.TB, open Open) *Bench {
	t.Helper()
	b := NewFolder(t, open)
	b.Reopen()
	t.Cleanup(b.Clean)
	return b
}

// NewFolder is NewBench without a launcher; Reopen opens one.
func NewFolder(t testing.TB, open Open) *Bench {
	t.Helper()
	id := make([]byte, 8)
	_, _ = rand.Read(id)
	b := &Bench{t: t, open: open, Config: Config{
		DataDir: filepath.Join(t.TempDir(), "data"),
		HostID:  hex.EncodeToString(id),
		Logger:  hclog.New(&hclog.LoggerOptions{Output: t.Output(), Level: hclog.Debug}),
	}}
	store := filepath.Join(b.Config.DataDir, "store", "sha256")
	b.must(os.MkdirAll(store, 0o700))
	binary, err := os.ReadFile(os.Getenv(EnvBinary))
	b.must(err)
	sum := sha256.Sum256(binary)
	b.Image = launch.Image{Digest: hex.EncodeToString(sum[:]), Type: "test", Version: "1.0.0"}
	b.Image.Path = filepath.Join(store, b.Image.Digest)
	b.must(os.WriteFile(b.Image.Path, binary, 0o555))
	return b
}

// For is the same bench, failing test t.
func (b *Bench) For(t testing.TB) *Bench {
	c := *b
	c.t = t
	return &c
}

// Reopen opens a launcher over the folder, as the next host does.
func (b *Bench) Reopen() {
	b.t.Helper()
	l, err := b.open(b.Config)
	b.must(err)
	foreseen, err := l.ImageDigest(b.Context(), b.Image)
	b.must(err)
	made, err := l.Prepare(b.Context(), b.Image)
	b.must(err)
	if made != foreseen {
		b.t.Fatalf("the image %q was foreseen as %q", made, foreseen)
	}
	b.Launcher = l
}

// Context bounds one step of the test. It outlives t's own context, so that
// cleaning up can use it.
func (b *Bench) Context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	b.t.Cleanup(cancel)
	return ctx
}

func (b *Bench) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// Spec makes a worker's folder, as the forge would, and says how to run it.
func (b *Bench) Spec() launch.Spec {
	b.t.Helper()
	serial := worker.NewSerial("DMN-XX-1", mathrand.Uint32(), mathrand.IntN(worker.SerialsPerShard))
	spec := launch.Spec{
		Serial: serial,
		Image:  b.Image,
		Dir:    filepath.Join(b.Config.DataDir, "workers", "instances", string(serial)),
		UID:    os.Geteuid(),
	}
	if spec.UID == 0 {
		spec.UID = UID()
	}
	b.must(os.MkdirAll(filepath.Dir(spec.Dir), 0o700))
	b.makeDir(spec.Dir, 0o750, -1, spec.UID)
	b.makeDir(filepath.Join(spec.Dir, launch.LogsDir), 0o700, -1, -1)
	b.makeDir(filepath.Join(spec.Dir, launch.StateDir), 0o700, spec.UID, spec.UID)
	b.makeDir(filepath.Join(spec.Dir, launch.RunDir), 0o700, spec.UID, spec.UID)
	identity := filepath.Join(spec.Dir, "identity.json")
	b.must(os.WriteFile(identity, []byte("{}\n"), 0o440))
	b.must(os.Chown(identity, -1, spec.UID))
	return spec
}

// UID is a uid that nobody else has, whatever runs beside us: it lies above those
// that hosts give out.
func UID() int { return 0x60000000 + mathrand.IntN(0x20000000) }

func (b *Bench) makeDir(path string, mode os.FileMode, uid, gid int) {
	b.t.Helper()
	b.must(os.Mkdir(path, mode))
	b.must(os.Chown(path, uid, gid))
}

// Guest creates a worker and starts it.
func (b *Bench) Guest() *Guest {
	b.t.Helper()
	return b.Start(b.Spec())
}

// Start creates and starts the worker of spec and waits until it answers.
func (b *Bench) Start(spec launch.Spec) *Guest {
	b.t.Helper()
	b.must(b.Launcher.Create(b.Context(), spec))
	b.must(b.Launcher.Start(b.Context(), spec.Serial))
	g := &Guest{t: b.t, Spec: spec}
	g.AwaitUp()
	return g
}

// Wait waits for the end of a worker.
func (b *Bench) Wait(serial worker.Serial) launch.Exit {
	b.t.Helper()
	exit, err := b.Launcher.Wait(b.Context(), serial)
	b.must(err)
	return exit
}

// Stop stops a worker.
func (b *Bench) Stop(serial worker.Serial, grace time.Duration) {
	b.t.Helper()
	b.must(b.Launcher.Stop(b.Context(), serial, grace))
}

// Remove removes a worker.
func (b *Bench) Remove(serial worker.Serial) {
	b.t.Helper()
	b.must(b.Launcher.Remove(b.Context(), serial))
}

// Status is a worker's line in the list; false if it is not there.
func (b *Bench) Status(serial worker.Serial) (launch.Status, bool) {
	b.t.Helper()
	list, err := b.Launcher.List(b.Context())
	b.must(err)
	for _, s := range list {
		if s.Serial == serial {
			return s, true
		}
	}
	return launch.Status{}, false
}

// Running says whether the list has the worker as running.
func (b *Bench) Running(serial worker.Serial) bool {
	b.t.Helper()
	s, ok := b.Status(serial)
	return ok && s.Running
}

// Clean ends what NewBench has begun; NewFolder leaves it to its caller.
func (b *Bench) Clean() {
	b.t.Helper()
	list, err := b.Launcher.List(b.Context())
	b.must(err)
	for _, s := range list {
		b.Remove(s.Serial)
	}
	b.must(b.Launcher.Down(b.Context()))
	b.must(b.Launcher.Close())
	for _, left := range Leaks(b.Config) {
		b.t.Errorf("left behind: %s", left)
	}
}

// LogText is what the worker has printed so far.
func (b *Bench) LogText(spec launch.Spec) string {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(spec.Dir, launch.LogsDir, launch.LogFile))
	b.must(err)
	return string(data)
}

// Starts tells how often the worker has been started, by its own count.
func (b *Bench) Starts(spec launch.Spec) int {
	b.t.Helper()
	f, err := os.Open(filepath.Join(spec.Dir, launch.StateDir, "starts"))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	b.must(err)
	defer f.Close()
	data, err := io.ReadAll(f)
	b.must(err)
	return strings.Count(string(data), "\n")
}

// Eventually polls until the condition holds.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("in vain waited until %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
