package shim

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
)

// groupSize is how many containers share a daemon: its memory is then a small part
// of each worker's, and no more workers than that are lost with it.
const groupSize = 16

// Folder is where groups are, below containerd's state folder. A group is a folder
// there, of a name that is used once, with an empty file for each of its containers.
// A container's file is made before containerd knows the daemon's address and goes
// when nothing is left of it, so a daemon whose group is empty is nobody's. All
// changes but the end of a container are made by who holds the lock.
//
// The name begins with the mount namespace of the containerd that the group was made
// for, and containers of another do not join: they would be shown other folders.
const Folder = "dals-shims"

// sockets is where every shim of containerd has its socket: a container's folder may
// be too deep for one. Names are hashes.
const sockets = "/run/containerd/s"

// taskFolder is how deep a container's folder is in containerd's state:
// <state>/io.containerd.runtime.v2.task/<namespace>/<id>.
const taskFolder = "../../.."

type groups struct{ dir string }

// logSuffix is that of the file beside a group with what its daemon says of a fault
// in itself.
const logSuffix = ".log"

// groupsIn are those of the containerd that has its state there. The folder's name
// is the same by whatever links it is reached: names of sockets are made of it.
func groupsIn(state string) (groups, error) {
	state, err := filepath.EvalSymlinks(state)
	return groups{filepath.Join(state, Folder)}, err
}

// stateOf is the state folder of the containerd that has this container's folder.
func stateOf(bundle string) string { return filepath.Join(bundle, taskFolder) }

func isName(id string) bool {
	return id != "" && id != "." && id != ".." && !strings.ContainsRune(id, '/')
}

func (g groups) folder(group string) string     { return filepath.Join(g.dir, group) }
func (g groups) member(group, id string) string { return filepath.Join(g.dir, group, id) }

// socket is where the daemon of a group listens.
func (g groups) socket(group string) string {
	return filepath.Join(sockets, fmt.Sprintf("%x", sha256.Sum256([]byte(g.folder(group)))))
}

// lock keeps others from choosing and from ending groups until unlock.
func (g groups) lock() (unlock func(), err error) {
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(g.dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock groups: %w", err), file.Close())
		}
	}
}

// join makes a container a member of a group that has room and whose daemon answers,
// or else of a new one, for which it calls daemon with its folder and its socket.
func (g groups) join(id string, daemon func(folder string, listener *net.UnixListener) error) (socket string, err error) {
	unlock, err := g.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	group, err := g.roomy()
	if err != nil {
		return "", err
	}
	if group == "" {
		if group, err = g.found(daemon); err != nil {
			return "", fmt.Errorf("make a group: %w", err)
		}
	}
	member, err := os.OpenFile(g.member(group, id), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return "", err
	}
	return g.socket(group), member.Close()
}

// roomy is a group with room whose daemon answers, or "". Of those that are dead and
// empty it deletes what is left.
func (g groups) roomy() (found string, err error) {
	all, err := g.list()
	if err != nil {
		return "", err
	}
	mounts, err := mountNamespace()
	if err != nil {
		return "", err
	}
	for _, group := range all {
		members, err := os.ReadDir(g.folder(group))
		if err != nil {
			return "", err
		}
		if len(members) >= groupSize {
			continue
		}
		switch lives, err := g.lives(group); {
		case err != nil: // nobody knows
		case lives && strings.HasPrefix(group, mounts+"-"):
			if found == "" && Answers(g.folder(group)) {
				found = group
			}
		case !lives && len(members) == 0:
			if err := g.remove(group); err != nil {
				return "", err
			}
		}
	}
	return found, nil
}

// isLost says of the error of a connection that there is no daemon.
func isLost(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// lives says whether a group has its daemon.
func (g groups) lives(group string) (bool, error) {
	conn, err := net.Dial("unix", g.socket(group))
	if err == nil {
		return true, conn.Close()
	}
	if isLost(err) {
		err = nil
	}
	return false, err
}

// answerTime is what a daemon that is well may need for an answer, on a busy machine.
const answerTime = time.Second

// Answers says whether the daemon of a group, named by the group's folder, is well: one
// that is stopped or stuck still listens.
func Answers(folder string) bool {
	daemon, hangUp, err := call(groups{filepath.Dir(folder)}.socket(filepath.Base(folder)))
	if err != nil {
		return false
	}
	defer hangUp()
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	_, err = daemon.Connect(ctx, &task.ConnectRequest{}) // to no container
	return errdefs.IsNotFound(errgrpc.ToNative(err))
}

// mountNamespace is the number of this process's, which containerd has started.
func mountNamespace() (string, error) {
	name, err := os.Readlink("/proc/self/ns/mnt") // mnt:[number]
	return strings.Trim(strings.TrimPrefix(name, "mnt:"), "[]"), err
}

func (g groups) list() (names []string, err error) {
	all, err := os.ReadDir(g.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, entry := range all {
		if entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names, err
}

// found makes a group. Its socket listens before its daemon runs.
func (g groups) found(daemon func(folder string, listener *net.UnixListener) error) (group string, err error) {
	mounts, err := mountNamespace()
	if err != nil {
		return "", err
	}
	group = mounts + "-" + strings.ToLower(rand.Text())
	folder := g.folder(group)
	if err := errors.Join(os.MkdirAll(sockets, 0o711), os.Mkdir(folder, 0o700)); err != nil {
		return "", err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.socket(group), Net: "unix"})
	if err != nil {
		return "", errors.Join(err, g.remove(group))
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close() // the daemon has it
	err = os.Chmod(g.socket(group), 0o600)
	if err == nil {
		err = daemon(folder, listener)
	}
	if err != nil {
		return "", errors.Join(err, g.remove(group))
	}
	return group, nil
}

// remove deletes a group, unless somebody is in it.
func (g groups) remove(group string) error {
	folder := g.folder(group)
	if err := os.Remove(folder); err != nil {
		return err
	}
	if said, err := os.Stat(folder + logSuffix); err == nil && said.Size() == 0 {
		_ = os.Remove(folder + logSuffix)
	}
	if err := os.Remove(g.socket(group)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// having are the groups that a container is in: one, unless it was in that of a lost
// daemon before.
func (g groups) having(id string) (found []string, err error) {
	all, err := g.list()
	for _, group := range all {
		if _, err := os.Lstat(g.member(group, id)); err == nil {
			found = append(found, group)
		}
	}
	return found, err
}

// leave takes a container out of its group.
func leave(folder, id string) error {
	err := os.Remove(filepath.Join(folder, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
