package containerd

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/worker"
)

// shimSockets is where every shim of containerd makes its socket, whatever the
// configuration.
const shimSockets = "/run/containerd/s"

// shimSocket is the socket of one container's shim.
func shimSocket(address, namespace, id string) string {
	return filepath.Join(shimSockets, fmt.Sprintf("%x", sha256.Sum256([]byte(filepath.Join(address, namespace, id)))))
}

// endShims ends shims; id "" means all of them. Those that do not go by themselves are
// killed.
func (s *site) endShims(ctx context.Context, id string) error {
	shims, err := s.shims(id)
	if err != nil {
		return err
	}
	for _, one := range shims {
		err = errors.Join(err, one.Signal(unix.SIGTERM), end(ctx, one, 500*time.Millisecond), one.Close())
	}
	return err
}

// isShim says whether a program is a shim: containerd's, ours, or ours as containers'
// records name it.
func (s *site) isShim(program string) bool {
	return program == s.shim || filepath.Base(program) == itsShim || filepath.Base(program) == shim.Binary
}

// shims takes hold of the shims of our containerd: of all, or of those that run for
// one container alone.
func (s *site) shims(id string) ([]*pidfd.Process, error) {
	var found []*pidfd.Process
	err := pidfd.Each(func(pid int, _ pidfd.Stat) {
		identity, err := pidfd.Identify(pid)
		if err != nil {
			return
		}
		args := pidfd.Cmdline(pid)
		if uid, ok := pidfd.UID(pid); !ok || uid != 0 || len(args) == 0 || !s.isShim(args[0]) ||
			option(args, "-namespace") != s.namespace || option(args, "-address") != s.address ||
			(id != "" && option(args, "-id") != id) {
			return
		}
		if one, err := pidfd.Open(identity); err == nil {
			found = append(found, one)
		}
	})
	return found, err
}

func option(args []string, name string) string {
	if i := slices.Index(args, name); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// end waits for a process to end, and kills it after patience.
func end(ctx context.Context, process *pidfd.Process, patience time.Duration) error {
	ended := make(chan error, 1)
	go func() { _, _, err := process.Wait(); ended <- err }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			if err := process.Signal(unix.SIGKILL); err != nil {
				return err
			}
		}
	}
}

// down stops containerd, and whatever else still runs for it, and deletes its
// files. The launcher is of no use afterwards, but for Close.
func (p *private) down(ctx context.Context) error {
	if err := expectNoMounts(p.dir); err != nil {
		return err
	}
	if err := p.close(); err != nil { // nobody starts another
		return err
	}
	err := errors.Join(p.stop(ctx), p.endShims(ctx, ""))
	if err != nil {
		return err
	}
	failpoint.Hit("containerd", "remove", "before")
	if p.runDir != "" {
		err = os.RemoveAll(p.runDir)
	}
	err = errors.Join(err, p.removeState(), removeEmpty(p.roots), os.RemoveAll(p.dir))
	failpoint.Hit("containerd", "remove", "after")
	return err
}

// stop ends containerd. Workers stay, and so do the shims.
func (p *private) stop(ctx context.Context) error {
	running, err := p.find()
	for _, process := range running {
		err = errors.Join(err, process.Signal(unix.SIGTERM), end(ctx, process, 5*time.Second), process.Close())
	}
	return err
}

// undo ends containerd if we have started it, even if the caller has gone. It
// comes after close, or before anybody looks after containerd.
func (p *private) undo(ctx context.Context) error {
	if !p.started {
		return nil
	}
	ctx, cancel := afterwards(ctx)
	defer cancel()
	return p.stop(ctx)
}

// expectNoMounts refuses while anything is mounted below dir. Containers' mounts
// are in namespaces of their own, so it is the operator's, and what is on it
// would be deleted with dir.
func expectNoMounts(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		const point = 4
		fields := strings.Fields(lines.Text())
		if len(fields) <= point {
			continue
		}
		if at := unescape.Replace(fields[point]); strings.HasPrefix(at, dir+"/") {
			return worker.Hint(fmt.Errorf("%s is mounted in a folder to be deleted: %w", at, worker.ErrConflict),
				"run: umount "+strconv.Quote(at))
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	return nil
}
