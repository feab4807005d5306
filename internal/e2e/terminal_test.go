package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/sdk/client"
)

// TestManyAtATerminal: forge --count 200 shows people how far it has come, and what
// scripts read of it has none of that.
func TestManyAtATerminal(t *testing.T) {
	t.Parallel()
	h := newHost(t, "process")
	h.forge("crowd-7", "ledger") // one of them cannot be made
	keyboard, terminal := openTerminal(t)
	cmd := exec.Command(filepath.Join(bin, "dals-host"), "--data-dir", h.dir, "--json",
		"forge", "--type", "template", "--name", "crowd", "--class-code", "A1", "--count", "200", "--no-start")
	var out bytes.Buffer
	cmd.Env = append(os.Environ(), "TERM=xterm")
	cmd.Stdout, cmd.Stderr = &out, terminal
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = terminal.Close()             // the command has it
	shown, _ := io.ReadAll(keyboard) // ends with an error once nobody has the terminal
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 3 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{
		"\r[" + strings.Repeat(" ", 40) + "] 1 of 200",
		"\r[" + strings.Repeat("#", 20) + strings.Repeat(" ", 20) + "] 100 of 200",
		"\r[" + strings.Repeat("#", 40) + "] 200 of 200, 1 not made\r\n",
		"crowd-7: worker crowd-7 exists from another request: worker_type is ledger, asked for template",
		"1 of 200 workers not made",
	} {
		if !strings.Contains(string(shown), want) {
			t.Errorf("the terminal does not show %q:\n%q", want, shown)
		}
	}
	var said struct{ Made, Failed []client.Worker }
	if err := json.Unmarshal(out.Bytes(), &said); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	workers, err := h.client.Workers(t.Context(), client.WorkerFilter{State: "stopped"})
	if err != nil || len(workers) != 199 || len(said.Made) != 199 || len(said.Failed) != 1 {
		t.Errorf("%d workers, %d made, %d failed, %v", len(workers), len(said.Made), len(said.Failed), err)
	}
}

// openTerminal makes a pair of a pseudo terminal: pty(7).
func openTerminal(t *testing.T) (keyboard, terminal *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	fd := int(keyboard.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return keyboard, terminal
}
