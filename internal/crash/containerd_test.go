package crash

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/dals-host/dals-host/sdk/client"
)

// withoutContainerd kills containerd, not the host, before and after each call
// of an operation that changes what containerd has. The operation then succeeds
// or is undone, and the worker that has nothing to do with it runs on.
func (m *matrix) withoutContainerd(op operation) {
	m.t.Helper()
	if *update {
		return // the list is the operation's own
	}
	began := time.Now()
	points := slices.DeleteFunc(m.points(op), func(p string) bool { return !strings.HasPrefix(p, "containerd/") || !strings.Contains(p, ".") })
	if len(points) == 0 {
		m.t.Fatalf("%s asks containerd for nothing", op.name)
	}
	if err := m.forgeAs("otto", "1.0.0"); err != nil {
		m.t.Fatalf("%v\n%s", err, m.log)
	}
	bystander := m.bystander()
	fifo := filepath.Join(m.t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		m.t.Fatal(err)
	}
	for _, point := range points {
		m.kill()
		m.before = m.log
		m.boot([]string{"DALS_FAILPOINT=" + point, "DALS_FAILPOINT_PAUSE=" + fifo})
		err := m.interrupt(op, fifo)
		if err == nil {
			err = m.soundWithin(3 * patience) // an undo that failed is tried again every half minute
		}
		if now := m.bystander(); err == nil && now != bystander {
			err = fmt.Errorf("the other worker was %s, is %s", bystander, now)
		}
		m.judge("containerd dies: "+op.name, point, err)
	}
	m.table.took("containerd dies: "+op.name, m.launcher, time.Since(began))
}

// interrupt runs the operation and kills containerd at the point where the host
// waits. The operation may fail; it must end.
func (m *matrix) interrupt(op operation, fifo string) error {
	if err := errors.Join(op.ready(m), m.atRest()); err != nil {
		return fmt.Errorf("make ready: %w", err)
	}
	reached, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := os.ReadFile(fifo)
		reached <- err
	}()
	go func() { ended <- op.run(m) }()
	select {
	case err := <-reached:
		if err != nil {
			return err
		}
	case err := <-ended:
		return errors.Join(errors.New("the host did not come to the point"), err)
	}
	killed := 0
	for pid, text := range processes() {
		if strings.Contains(text, filepath.Join(m.dir, "containerd", "config.toml")) && syscall.Kill(pid, syscall.SIGKILL) == nil {
			killed++
		}
	}
	if killed != 1 {
		return fmt.Errorf("%d containerds were killed", killed)
	}
	if err := os.WriteFile(fifo, []byte("go on"), 0); err != nil {
		return err
	}
	select {
	case err := <-ended: // either is right: to sit it out, and to give up
		m.t.Logf("%s, containerd killed: %v", op.name, err)
		return nil
	case <-time.After(patience):
		return errors.New("the operation does not end")
	}
}

// bystander is the process of the worker that nothing is done to.
func (m *matrix) bystander() string {
	workers, _ := m.client.Workers(m.t.Context(), client.WorkerFilter{})
	for _, w := range workers {
		if w.WorkerName != "otto" {
			continue
		}
		for pid, text := range processes() {
			if strings.Contains(text, w.WorkerSerial) && !strings.Contains(text, "containerd-shim") {
				return fmt.Sprintf("process %d, %s, restarted %d times", pid, w.State, w.Restarts)
			}
		}
	}
	return "gone"
}
