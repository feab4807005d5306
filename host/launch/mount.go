package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
)

// EnvMounts is set for a worker whose Spec.Mounts are not at their places, and
// says where they are: PLACE=PATH, with a colon between.
const EnvMounts = "DALS_WORKER_MOUNTS"

// Mount is a folder of the machine that a worker is shown, as it was granted.
type Mount struct {
	Place string // where a container has it: capability.PlaceDir and a name
	capability.Folder
}

// Mounts are the folders among what a worker was granted.
func Mounts(grants []string) ([]Mount, error) {
	granted, err := capability.Set(grants)
	if err != nil {
		return nil, err
	}
	var mounts []Mount
	for _, c := range granted {
		if c.Kind == capability.Mount && c != c.Asked() {
			mounts = append(mounts, Mount{Place: c.Name, Folder: c.Folder})
		}
	}
	return mounts, nil
}

// checkMounts says whether each is what somebody may have been granted.
func checkMounts(mounts []Mount) error {
	grants := make([]string, len(mounts))
	for i, m := range mounts {
		grants[i] = capability.Capability{Kind: capability.Mount, Name: m.Place, Folder: m.Folder}.String()
	}
	read, err := Mounts(grants)
	if err == nil && len(read) != len(mounts) {
		err = errors.New("a folder is shown twice")
	}
	if err != nil {
		return fmt.Errorf("mounts: %w: %w", err, worker.ErrInvalid)
	}
	return nil
}

// Open takes hold of the folder, by a descriptor that reads nothing (O_PATH).
// Anything else in its place is worker.ErrInvalid: a link, there or above, a file,
// another folder than the one that was granted.
func (m Mount) Open() (*os.File, error) {
	f, found, err := OpenFolder(m.Source)
	if err != nil {
		return nil, m.refused(err)
	}
	if found.Inode != m.Inode || found.Born != m.Born && found.Born != 0 && m.Born != 0 {
		_ = f.Close() // nothing was done with it
		return nil, m.refused(fmt.Errorf("another folder than was granted is there now (%d.%d, not %d.%d)", found.Inode, found.Born, m.Inode, m.Born))
	}
	return f, nil
}

// Expect says whether the folder that a worker is shown at the mount's place is
// the one that Open took hold of.
func (m Mount) Expect(granted, shown *os.File) error {
	want, wantErr := granted.Stat()
	got, gotErr := shown.Stat()
	if err := errors.Join(wantErr, gotErr); err != nil {
		return m.refused(err)
	}
	if os.SameFile(want, got) {
		return nil
	}
	return worker.Hint(m.refused(errors.New("the launcher finds another folder there")),
		"if a file system was mounted there after the host's containerd had begun, end that containerd: the host starts it again, and workers run on")
}

func (m Mount) refused(err error) error {
	return worker.Hint(fmt.Errorf("mount %s: folder %s: %w: %w", m.Place, m.Source, err, worker.ErrInvalid),
		"bring back the folder that was granted, or grant the one that is there: dals-host upgrade WORKER --mount SOURCE:"+m.Place)
}

// OpenFolder opens a folder, as Mount.Open does, whatever folder that is, and says
// which. There may be no link in its path.
func OpenFolder(path string) (*os.File, capability.Folder, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, how)
	switch {
	case errors.Is(err, unix.ELOOP):
		err = errors.New("there is a link in its path")
	case errors.Is(err, unix.ENOTDIR):
		err = errors.New("it is not a folder")
	}
	if err != nil {
		return nil, capability.Folder{}, err
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return nil, capability.Folder{}, errors.Join(err, f.Close())
	}
	found := capability.Folder{Source: path, Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		found.Born = max(st.Btime.Sec, 0)
	}
	return f, found, nil
}

// Shown opens what is at the mount's place below a root folder, as a worker that
// has that root sees it.
func (m Mount) Shown(root *os.File) (*os.File, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_IN_ROOT}
	fd, err := unix.Openat2(int(root.Fd()), strings.TrimPrefix(m.Place, "/"), how)
	if err != nil {
		return nil, m.refused(fmt.Errorf("look at what is shown: %w", err))
	}
	return os.NewFile(uintptr(fd), filepath.Base(m.Place)), nil
}
