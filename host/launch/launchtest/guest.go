package launchtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/launch/launchtest/report"
)

// Guest is a test worker as seen from outside: it does what it is told.
type Guest struct {
	t    testing.TB
	Spec launch.Spec
}

// AwaitUp waits until the worker answers.
func (g *Guest) AwaitUp() {
	g.t.Helper()
	Eventually(g.t, "the worker answers", func() bool { return g.try("ping", nil) == nil })
}

// Tell gives a command and expects "ok".
func (g *Guest) Tell(command string) {
	g.t.Helper()
	if answer := g.Ask(command); answer != "ok" {
		g.t.Fatalf("%s: %s", command, answer)
	}
}

// Ask gives a command and returns the worker's word.
func (g *Guest) Ask(command string) string {
	g.t.Helper()
	var answer string
	g.Get(command, &answer)
	return answer
}

// Get gives a command and decodes the answer.
func (g *Guest) Get(command string, answer any) {
	g.t.Helper()
	if err := g.try(command, answer); err != nil {
		g.t.Fatal(err)
	}
}

// Report is how the world looks to the worker.
func (g *Guest) Report() report.Report {
	g.t.Helper()
	var r report.Report
	g.Get("report", &r)
	return r
}

// Provoke gives a command that the worker is not expected to survive.
func (g *Guest) Provoke(command string) {
	_ = g.try(command, nil)
}

// AtStart leaves a command that the worker obeys when it starts next.
func AtStart(t testing.TB, spec launch.Spec, command string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(spec.Dir, launch.StateDir, "command"), []byte(command), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (g *Guest) try(command string, answer any) error {
	run, err := os.OpenFile(filepath.Join(g.Spec.Dir, launch.RunDir), unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer run.Close() // the path by descriptor stays below the 107 bytes of a socket address
	conn, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", run.Fd(), launch.SocketFile))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil || answer == nil {
		return err
	}
	return json.Unmarshal(line, answer)
}

// Processes are the processes of the worker and its children, by the machine's
// own list: known by their uid or, where that is the host's, by name.
func (g *Guest) Processes() []int {
	var pids []int
	err := pidfd.Each(func(pid int, _ pidfd.Stat) {
		uid, ok := pidfd.UID(pid)
		if args := pidfd.Cmdline(pid); ok && uid == g.Spec.UID &&
			(uid != os.Geteuid() || (len(args) > 0 && strings.Contains(args[0], string(g.Spec.Serial)))) {
			pids = append(pids, pid)
		}
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return pids
}

// ExpectProcesses fails the test unless the worker has exactly n processes.
func (g *Guest) ExpectProcesses(n int) {
	g.t.Helper()
	if pids := g.Processes(); len(pids) != n {
		g.t.Fatalf("%s has %d processes %v, want %d", g.Spec.Serial, len(pids), pids, n)
	}
}

// killLeftovers keeps a failed test from leaving processes on the machine.
func (g *Guest) killLeftovers() {
	for _, pid := range g.Processes() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}
