package shim

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// reapOrphans reaps the children that nobody knows: a runtime that was killed while it
// made a container leaves us what it had made. While a runtime runs, whose children
// could be meant, they wait for the next time.
func (d *daemon) reapOrphans() {
	if !running.TryLock() {
		return
	}
	defer running.Unlock()
	known := d.processes()
	for _, pid := range children() {
		if !known[pid] {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // one that lives is another's to end
		}
	}
}

// processes are the first processes of the group's containers.
func (d *daemon) processes() map[int]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	known := map[int]bool{}
	for _, c := range d.all {
		if c.process != nil {
			known[c.process.Identity().PID] = true
		}
	}
	return known
}

// children are this process's, by proc_pid_task_children.
func children() (pids []int) {
	threads, _ := filepath.Glob("/proc/self/task/*/children")
	for _, path := range threads {
		text, _ := os.ReadFile(path)
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
