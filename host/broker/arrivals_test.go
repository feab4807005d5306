package broker

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// TestArrivals: who waits is told once something appears in the folder of the moment,
// and nobody is told who does not wait any more.
func TestArrivals(t *testing.T) {
	t.Parallel()
	a := newArrivals(hclog.NewNullLogger())
	defer a.close()
	if a.fs == nil {
		t.Fatal("folders cannot be watched here")
	}
	folder, other := filepath.Join(t.TempDir(), "run"), t.TempDir()
	put := func(folder string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, "worker.sock"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if there, _ := a.await(folder); there != nil {
		t.Error("a folder that is not there is watched")
	}
	for range 2 { // an upgrade puts another folder in its place
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		there, leave := a.await(folder)
		elsewhere, leaveOther := a.await(other)
		put(folder)
		select {
		case <-there:
		case <-time.After(time.Minute):
			t.Fatal("nobody told of what appeared")
		}
		select {
		case <-elsewhere:
			t.Error("told of what appeared in another folder")
		default:
		}
		leave()
		leaveOther()
		if err := os.RemoveAll(folder); err != nil {
			t.Fatal(err)
		}
	}
	there, leave := a.await(other)
	leave()
	put(other)
	again, leave := a.await(other)
	defer leave()
	put(other) // which is there already
	select {
	case <-there:
		t.Error("told who did not wait any more")
	case <-again:
		t.Error("told of what was there before")
	case <-time.After(50 * time.Millisecond):
	}
	if left := a.fs.WatchList(); len(left) != 1 {
		t.Errorf("watched: %v", left)
	}
}

// TestRestlessWorker: a worker that makes files where its socket is to be, and no
// socket, has the host look no more often than one that makes nothing.
func TestRestlessWorker(t *testing.T) {
	t.Parallel()
	r := newRig(t, &fake{})
	run := filepath.Join(r.dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	r.attach()
	began := time.Now()
	for time.Since(began) < 2*time.Second { // the rate is the point
		file, err := os.CreateTemp(run, "")
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		os.Remove(file.Name())
	}
	if n := r.log.count("worker not connected"); n < 4 || n > 100 {
		t.Errorf("looked %d times in %s", n, time.Since(began))
	}
	r.serve()
	eventually(t, "the worker is met", func() bool { return r.Health(serial).Connected })
}
