package containerd

import (
	"os"
	"path/filepath"
	"sync"

	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/worker"
)

// site is where a containerd, its shims and the runtime keep what they know of
// this host's containers.
type site struct {
	dir       string // <data>/containerd
	address   string // of containerd, as it calls it itself
	namespace string
	shim      string // that starts containers, as their records name it
	grouped   bool   // shim is the one of package shim
	roots     string // where containerd sees the root folders, for containers with user namespaces; "" where it does not

	mu    sync.Mutex
	state string // containerd's folder of what does not survive the machine; "" where nobody knows it yet
}

// taskFolder is where containerd has the folders of tasks, below its state.
const taskFolder = "io.containerd.runtime.v2.task"

func newSite(cfg Config, address, state string) *site {
	return &site{dir: dirOf(cfg), address: address, namespace: namespace(cfg.HostID), shim: "io.containerd.runc.v2", state: state}
}

func (s *site) stateDir() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *site) setStateDir(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = dir
}

func (s *site) runcRoot() string { return filepath.Join(s.dir, "runtime") }
func (s *site) bootFile() string { return filepath.Join(s.dir, "boot") }

// bundle is the folder that containerd has for the worker's task, or "".
func (s *site) bundle(serial worker.Serial) string {
	state := s.stateDir()
	if state == "" {
		return ""
	}
	return filepath.Join(state, taskFolder, s.namespace, string(serial))
}

// hasBooted says whether the machine was booted since the boot file was written,
// and the id to write into it. A shim that runs proves that it was not, whatever
// is written down.
func (s *site) hasBooted() (booted bool, now string, err error) {
	shims, err := s.shims("")
	if err != nil {
		return false, "", err
	}
	for _, shim := range shims {
		_ = shim.Close()
	}
	if now, err = pidfd.BootID(); err != nil {
		return false, "", err
	}
	then, err := os.ReadFile(s.bootFile())
	return (err != nil || string(then) != now) && len(shims) == 0, now, nil
}
