package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/internal/whole"
	"github.com/dals-host/dals-host/host/worker"
)

// shared is a containerd that somebody else runs. The host has a namespace in it,
// and nothing else of it is touched.
type shared struct {
	*site
	log    hclog.Logger
	client *client.Client
	mark   mark
	first  bool // the mark was not there before
}

// mark says, in the data folder, which containerd the workers are under.
type mark struct {
	Address string `json:"address"` // as the operator has given it
	ID      string `json:"id"`      // containerd's own, which it keeps in its root folder
	State   string `json:"state"`   // site.state, once that is known
}

func markFile(dir string) string { return filepath.Join(dir, "shared.json") }

// readMark is the mark of a data folder; the zero one where there is none.
func readMark(dir string) (m mark, err error) {
	text, err := os.ReadFile(markFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return mark{}, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		return mark{}, fmt.Errorf("read which containerd the workers are under: %w", err)
	}
	return m, nil
}

// chooseAddress is Private or the address of another's containerd, by what the
// configuration says and the data folder was used with: workers never change
// their containerd.
func chooseAddress(cfg Config) (string, error) {
	known, err := readMark(dirOf(cfg))
	if err != nil {
		return "", err
	}
	switch _, err := os.Lstat(filepath.Join(dirOf(cfg), "root")); {
	case cfg.Address == Private && known.Address != "":
		return "", worker.Hint(fmt.Errorf("this host's workers are under the containerd at %s: %w", known.Address, worker.ErrConflict),
			"use --containerd "+known.Address+"; to change it, run dals-host down first")
	case cfg.Address == "" && known.Address != "":
		return known.Address, nil
	case cfg.Address == "" || cfg.Address == Private:
		return Private, nil
	case err == nil:
		return "", worker.Hint(fmt.Errorf("this host's workers are under a containerd of its own: %w", worker.ErrConflict),
			"use --containerd private; to change it, run dals-host down first")
	}
	address := strings.TrimPrefix(cfg.Address, "unix://")
	if !filepath.IsAbs(address) {
		return "", worker.Hint(fmt.Errorf("containerd address %q: %w", cfg.Address, worker.ErrInvalid), "give the absolute path of its socket, or private")
	}
	return address, nil
}

// openShared connects to the containerd at address and makes sure that it can be
// worked with, and that it is the one which the workers are under.
func openShared(ctx context.Context, cfg Config, address string, log hclog.Logger) (_ *shared, err error) {
	bound, err := checkPeer(address, cfg.DataDir)
	if err != nil {
		return nil, err
	}
	s := &shared{site: newSite(cfg, bound, ""), log: log}
	if s.client, err = connect(address, s.namespace); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.client.Close())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := checkServer(ctx, s.client); err != nil {
		return nil, err
	}
	server, err := s.client.IntrospectionService().Server(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask which one it is: %w", family(err))
	}
	if err := s.claim(mark{Address: address, ID: server.UUID}); err != nil {
		return nil, err
	}
	s.taskMade()
	return s, nil
}

// checkPeer refuses who listens at address if it is not root's, or does not see
// the data folder. bound is the address as the listener has it: shims are named
// after it.
func checkPeer(address, dataDir string) (bound string, err error) {
	conn, err := net.Dial("unix", address)
	if err != nil {
		return "", unavailable("start it, or give the address of one that runs", "%w", err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return "", fmt.Errorf("look at socket: %w", err)
	}
	var peer *unix.Ucred
	failed := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(failed, err); err != nil {
		return "", fmt.Errorf("look at socket: %w", err)
	}
	if peer.Uid != 0 {
		return "", unavailable("use one that runs as root, or --containerd private", "it runs as uid %d", peer.Uid)
	}
	own, err := os.Stat(dataDir)
	if err != nil {
		return "", fmt.Errorf("look at data folder: %w", err)
	}
	its, err := os.Stat(filepath.Join("/proc", fmt.Sprint(peer.Pid), "root", dataDir))
	if err != nil || !os.SameFile(own, its) {
		return "", unavailable("use one that has the same files as the host, or --containerd private",
			"process %d, which listens there, does not see the data folder %s", peer.Pid, dataDir)
	}
	return conn.RemoteAddr().String(), nil
}

// claim makes the data folder that of workers under this containerd.
func (s *shared) claim(now mark) error {
	known, err := readMark(s.dir)
	if err != nil {
		return err
	}
	if known.ID != "" && known.ID != now.ID {
		return worker.Hint(fmt.Errorf("it is another one (%s) than this host's workers are under (%s, at %s): %w", now.ID, known.ID, known.Address, worker.ErrConflict),
			"use that one; where it is gone for good, and no worker runs any more, delete "+markFile(s.dir))
	}
	s.first = known.ID == ""
	now.State = known.State
	s.mark = now
	s.setStateDir(known.State)
	booted, boot, err := s.hasBooted()
	if err != nil {
		return err
	}
	if booted { // the runtime's state does not survive the machine
		if err := os.RemoveAll(s.runcRoot()); err != nil {
			return fmt.Errorf("delete state of the runtime: %w", err)
		}
	}
	if err := whole.Clear(s.dir); err != nil {
		return err
	}
	return errors.Join(whole.WriteFile(s.bootFile(), []byte(boot)), s.writeMark())
}

func (s *shared) writeMark() error {
	text, err := json.Marshal(s.mark)
	if err == nil {
		err = whole.WriteFile(markFile(s.dir), text)
	}
	if err != nil {
		return fmt.Errorf("write which containerd the workers are under: %w", err)
	}
	return nil
}

// taskMade learns where containerd has its state from the shim of any task: it does
// not tell, and its shims work there.
func (s *shared) taskMade() {
	if s.stateDir() != "" {
		return
	}
	state, err := s.findState()
	if err == nil && state != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.state, s.mark.State = state, state
		err = s.writeMark()
	}
	if err != nil {
		s.log.Warn("what an unfinished start leaves behind will not be found", "error", err)
	}
}

// findState is containerd's state folder by one of our shims; "" without any.
func (s *shared) findState() (string, error) {
	shims, err := s.shims("")
	if err != nil {
		return "", err
	}
	var state string
	for _, shim := range shims {
		bundle, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", shim.Identity().PID))
		if at, ok := strings.CutSuffix(filepath.Dir(bundle), filepath.Join("/", taskFolder, s.namespace)); err == nil && ok {
			state = at
		}
		_ = shim.Close()
	}
	return state, nil
}

func (s *shared) close() error { return nil } // the client is the launcher's to close

func (s *shared) undo(context.Context) error {
	if !s.first {
		return nil
	}
	return os.Remove(markFile(s.dir))
}

// down deletes the namespace, and all of ours that is in it, and our files.
func (s *shared) down(ctx context.Context) error {
	if err := expectNoMounts(s.dir); err != nil {
		return err
	}
	if err := s.clear(ctx); err != nil {
		return err
	}
	if err := s.endShims(ctx, ""); err != nil {
		return err
	}
	if state := s.stateDir(); state != "" { // a folder with something in it stays
		_ = os.Remove(filepath.Join(state, taskFolder, s.namespace))
	}
	return os.RemoveAll(s.dir)
}
