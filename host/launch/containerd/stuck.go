package containerd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/worker"
)

// blameShims is an error that names the shims that do not answer, nil where all do.
// containerd asks all of them, and says of none that it waits for it.
func (s *site) blameShims() error {
	stuck, err := s.stuckShims()
	if err != nil || len(stuck) == 0 {
		return err
	}
	pids := strings.Trim(fmt.Sprint(stuck), "[]")
	return fmt.Errorf("shims do not answer: kill -KILL %s ends them, and their workers are started again: %w", pids, worker.ErrUnavailable)
}

// stuckShims are the pids of those of our shims that do not answer.
func (s *site) stuckShims() (pids []int, err error) {
	shims, err := s.shims("")
	for _, one := range shims {
		pid := one.Identity().PID
		if folder := option(pidfd.Cmdline(pid), "-group"); folder != "" && !shim.Answers(folder) && !one.Ended() {
			pids = append(pids, pid)
		}
		_ = one.Close()
	}
	slices.Sort(pids)
	return pids, err
}
