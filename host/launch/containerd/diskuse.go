package containerd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// deepest is how deep folders may lie in each other: each level of a look
	// holds one descriptor. What lies deeper counts as too much.
	deepest = 64
	// mostDescriptors bounds the look at what a worker's processes have open.
	mostDescriptors = 16 << 10
)

// usage is what a worker takes of the disk. It stops counting when it is over
// the limits.
type usage struct {
	limits diskLimits
	bytes  int64
	files  int
	device uint64 // of its folders
}

func (u *usage) over() bool { return u.bytes > u.limits.bytes || u.files > u.limits.files }

// addTree adds folder name of dir. A worker may do there what it likes, also
// meanwhile: no link is followed, and what has gone is not counted.
func (u *usage) addTree(dir, name string) error {
	fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return fmt.Errorf("open folder: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil {
		u.device = st.Dev
	}
	return u.addFolder(os.NewFile(uintptr(fd), name), 0)
}

// addFolder adds what lies in folder, and closes it.
func (u *usage) addFolder(folder *os.File, depth int) error {
	defer folder.Close()
	for !u.over() {
		entries, err := folder.ReadDir(256)
		for _, e := range entries {
			if err := u.addEntry(folder, e.Name(), depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read folder: %w", err)
		}
	}
	return nil
}

func (u *usage) addEntry(folder *os.File, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(folder.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil // it has gone
	}
	u.files++
	// A file with more than one name lies under each of them, in parts.
	u.bytes += st.Blocks * 512 / max(int64(st.Nlink), 1)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if depth == deepest {
		u.files = u.limits.files + 1
		return nil
	}
	fd, err := unix.Openat(int(folder.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // it has gone, or is no folder any more
	}
	return u.addFolder(os.NewFile(uintptr(fd), name), depth+1)
}

// addHidden adds the files that have no name any more and are there because one
// of the processes has them open.
func (u *usage) addHidden(pids []int) {
	seen := map[uint64]bool{}
	looks := 0
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, e := range entries {
			if looks++; looks > mostDescriptors || u.over() {
				return
			}
			var st unix.Stat_t
			err := unix.Stat(dir+"/"+e.Name(), &st)
			if err == nil && st.Nlink == 0 && st.Dev == u.device && !seen[st.Ino] {
				seen[st.Ino] = true
				u.bytes += st.Blocks * 512
				u.files++
			}
		}
	}
}
