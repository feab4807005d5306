package stage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/worker"
)

// Stage is a worker's folder while it is put together. It is for one caller at
// a time.
type Stage struct {
	store  *Store
	serial worker.Serial
	folder string // that it is in
	joined bool   // it was in another before
	root   *os.Root
	files  []string
	dirs   []string
}

// Access is who may use a file or folder. UID and GID count only when the host
// is root: otherwise everything is the host's own.
type Access struct {
	Mode     fs.FileMode // exact, whatever the umask
	UID, GID int
}

// New makes the empty stage of a worker. One that is already there is a
// worker.ErrConflict.
func (s *Store) New(serial worker.Serial) (*Stage, error) { return s.newIn(staging, serial) }

// NewWarm makes the empty folder of a worker that may come to be. It is no stage,
// and cannot be promoted, before Join.
func (s *Store) NewWarm(serial worker.Serial) (*Stage, error) { return s.newIn(warm, serial) }

func (s *Store) newIn(folder string, serial worker.Serial) (*Stage, error) {
	name, err := below(folder, serial)
	if err != nil {
		return nil, err
	}
	if err := s.root.Mkdir(name, 0o700); errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("open stage of %s: %w: there is one already", serial, worker.ErrConflict)
	} else if err != nil {
		return nil, fmt.Errorf("open stage of %s: %w", serial, err)
	}
	root, err := s.root.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("open stage of %s: %w", serial, err)
	}
	return &Stage{store: s, serial: serial, folder: folder, root: root}, nil
}

// Join makes what NewWarm made the worker's stage. The folder stays the same: who
// has it mounted sees what is written to it from then on.
func (s *Stage) Join() error {
	from, to := path.Join(s.folder, string(s.serial)), path.Join(staging, string(s.serial))
	failpoint.Hit("stage", "join", "before")
	if err := s.store.root.Rename(from, to); err != nil {
		return fmt.Errorf("open stage of %s: %w", s.serial, err)
	}
	failpoint.Hit("stage", "join", "after")
	s.folder, s.joined = staging, true
	return nil
}

// Root is the stage's folder, to read what is in it. It is closed by Sync
// and Close.
func (s *Stage) Root() *os.Root { return s.root }

// Dir is the path of the stage's folder.
func (s *Stage) Dir() string { return filepath.Join(s.store.dir, s.folder, string(s.serial)) }

// Close lets go of the stage; what is in it stays.
func (s *Stage) Close() error { return s.root.Close() }

// Mkdir makes a folder in the stage, or sets the access of the stage's own
// folder, named ".".
func (s *Stage) Mkdir(name string, a Access) error {
	if name != "." {
		if err := s.root.Mkdir(name, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
	}
	d, err := s.root.Open(name)
	if err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	defer d.Close()
	if err := a.give(d); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	s.dirs = append(s.dirs, name)
	return nil
}

// WriteFile writes a new file into the stage, below folders made before.
func (s *Stage) WriteFile(name string, data []byte, a Access) error {
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = a.give(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	s.files = append(s.files, name)
	return nil
}

// give sets owner and mode on the descriptor, so that no name is looked up
// twice. The owner first: a change of owner clears mode bits.
func (a Access) give(f *os.File) error {
	if os.Geteuid() == 0 {
		if err := f.Chown(a.UID, a.GID); err != nil {
			return err
		}
	}
	return f.Chmod(a.Mode)
}

// Promote moves the stage, in one rename, to its place among the workers. A folder
// that is already there is a worker.ErrConflict. Before Sync nothing may say that
// the worker is whole: a power cut may take any part of it.
func (s *Stage) Promote() error {
	from, to := path.Join(staging, string(s.serial)), path.Join(instances, string(s.serial))
	// A rename onto an empty folder would succeed.
	if _, err := s.store.root.Lstat(to); err == nil {
		return fmt.Errorf("promote stage of %s: %w: the worker has a folder already", s.serial, worker.ErrConflict)
	}
	failpoint.Hit("stage", "promote", "before")
	if err := s.store.root.Rename(from, to); err != nil {
		return fmt.Errorf("promote stage of %s: %w", s.serial, err)
	}
	failpoint.Hit("stage", "promote", "after")
	return nil
}

// Sync makes what was promoted durable. It ends the stage. The worker may run
// meanwhile.
func (s *Stage) Sync() error {
	defer s.root.Close()
	failpoint.Hit("stage", "sync", "before")
	if err := errors.Join(s.syncAll(), s.store.syncParents()); err != nil {
		return fmt.Errorf("write folder of %s to disk: %w", s.serial, err)
	}
	failpoint.Hit("stage", "sync", "after")
	return nil
}

// syncAll makes files and folders durable, several at a time: the file system
// commits them together.
func (s *Stage) syncAll() error {
	const together = 8
	var g errgroup.Group
	g.SetLimit(together)
	if s.joined {
		g.Go(func() error { return syncDir(s.store.root, warm) })
	}
	for _, names := range [][]string{s.files, s.dirs, {"."}} {
		for _, name := range names {
			g.Go(func() error { return syncDir(s.root, name) })
		}
	}
	return g.Wait()
}
