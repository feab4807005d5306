//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Hit says that the process has come to the point of this name.
func Hit(name ...string) { armed().hit(strings.Join(name, "/")) }

// armed is what the environment asks for. What cannot be understood ends the
// process: a point that never comes would look like one that was survived.
var armed = sync.OnceValue(func() *points {
	p := &points{pause: os.Getenv("DALS_FAILPOINT_PAUSE")}
	if err := p.arm(os.Getenv("DALS_FAILPOINT"), os.Getenv("DALS_FAILPOINT_TRACE")); err != nil {
		panic(fmt.Sprintf("arm failpoint: %v", err))
	}
	return p
})

type points struct {
	trace *os.File // nil for none
	pause string   // FIFO; empty to die

	mu    sync.Mutex
	name  string // empty for none
	first string // empty once it was hit
	left  int    // hits of name up to the one that counts
}

func (p *points) arm(point, trace string) (err error) {
	var n string
	p.name, p.first, _ = strings.Cut(point, "@")
	p.name, n, _ = strings.Cut(p.name, "#")
	if p.left = 1; n != "" {
		if p.left, err = strconv.Atoi(n); err != nil || p.left < 1 {
			return fmt.Errorf("point %q: no such hit", point)
		}
	}
	if trace != "" {
		p.trace, err = os.OpenFile(trace, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	}
	return err
}

func (p *points) hit(name string) {
	if p.trace != nil {
		if _, err := p.trace.WriteString(name + "\n"); err != nil {
			panic(fmt.Sprintf("trace failpoint: %v", err))
		}
	}
	if !p.isIt(name) {
		return
	}
	if p.pause != "" {
		if err := wait(p.pause, name); err != nil {
			panic(fmt.Sprintf("pause at failpoint %s: %v", name, err))
		}
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // nothing of this process goes on
}

// isIt counts a hit and says whether it is the one that was asked for.
func (p *points) isIt(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first != "" {
		if name == p.first {
			p.first = ""
		}
		return false
	}
	if name != p.name {
		return false
	}
	p.left--
	return p.left == 0
}

// wait says name to whoever reads the FIFO, then reads what it answers.
func wait(fifo, name string) error {
	if err := os.WriteFile(fifo, []byte(name), 0); err != nil {
		return err
	}
	_, err := os.ReadFile(fifo)
	return err
}
