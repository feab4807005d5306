package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// runtime is the program that makes containers, crun or runc, and where it keeps
// what it knows of this namespace's.
type runtime struct{ binary, root string }

// Files in a container's folder in which its runtime is written down, for who has to
// end what a lost daemon has left. containerd's own shim has the same (ReadRuntime and
// ReadOptions in its runc package), so that either can settle the other's.
const (
	binaryFile  = "runtime"
	optionsFile = "options.json"
)

// options is what is in optionsFile: the runtime, and its root without the namespace.
type options struct {
	BinaryName string `json:"binary_name,omitempty"`
	Root       string `json:"root,omitempty"`
}

func (o options) runtime(namespace string) runtime {
	return runtime{binary: o.BinaryName, root: filepath.Join(o.Root, namespace)}
}

func (o options) save(bundle string) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(bundle, optionsFile), text, 0o600),
		os.WriteFile(filepath.Join(bundle, binaryFile), []byte(o.BinaryName), 0o600),
	)
}

// runtimeOf is the runtime of a container; fs.ErrNotExist when it was never made.
func runtimeOf(bundle, namespace string) (runtime, error) {
	var o options
	text, err := os.ReadFile(filepath.Join(bundle, optionsFile))
	if err != nil {
		return runtime{}, err
	}
	if err := json.Unmarshal(text, &o); err != nil || o.BinaryName == "" || o.Root == "" {
		return runtime{}, fmt.Errorf("%s of %s names no runtime: %w", optionsFile, bundle, err)
	}
	return o.runtime(namespace), nil
}

// knows says whether the runtime has something of a container.
func (r runtime) knows(id string) bool {
	_, err := os.Lstat(filepath.Join(r.root, id))
	return !errors.Is(err, fs.ErrNotExist)
}

// running is held to read while a runtime runs, whose children are nobody else's, and
// until the one that it leaves us is known.
var running sync.RWMutex

// command is the runtime, asked to do something for the container of bundle, which may
// have gone.
func (r runtime) command(bundle string, args ...string) *exec.Cmd {
	global := []string{"--root", r.root}
	if _, err := os.Lstat(bundle); err == nil {
		global = append(global, "--log", filepath.Join(bundle, "log.json"), "--log-format", "json")
	}
	cmd := exec.Command(r.binary, append(global, args...)...)
	cmd.Dir = "/"
	return cmd
}

// create, for who holds running, has the runtime make a container whose first process has that stdout and
// stderr and waits to be started, and gives its pid.
func (r runtime) create(bundle, id string, stdout, stderr *os.File) (pid int, err error) {
	pidFile := filepath.Join(bundle, "init.pid")
	cmd := r.command(bundle, "create", "--bundle", bundle, "--pid-file", pidFile, id)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if err := cmd.Run(); err != nil {
		return 0, failure("create", bundle, err)
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscan(string(text), &pid); err != nil {
		return 0, fmt.Errorf("read %s: %w", pidFile, err)
	}
	return pid, nil
}

func (r runtime) start(bundle, id string) error {
	running.RLock()
	defer running.RUnlock()
	return failure("start", bundle, r.command(bundle, "start", id).Run())
}

// delete ends the container, if it runs, and has the runtime forget it.
func (r runtime) delete(bundle, id string) error {
	running.RLock()
	defer running.RUnlock()
	return failure("delete", bundle, r.command(bundle, "delete", "--force", id).Run())
}

// failure is err with the last that the runtime has said.
func failure(action, bundle string, err error) error {
	if err == nil {
		return nil
	}
	var said struct {
		Message string `json:"msg"`
	}
	text, _ := os.ReadFile(filepath.Join(bundle, "log.json"))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if json.Unmarshal([]byte(lines[len(lines)-1]), &said) != nil || said.Message == "" {
		return fmt.Errorf("OCI runtime %s failed: %w", action, err)
	}
	return fmt.Errorf("OCI runtime %s failed: %s: %w", action, said.Message, err)
}
