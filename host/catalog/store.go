package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/internal/whole"
)

const (
	storeFolder = "sha256"
	incoming    = ".incoming-"
	// A worker's uid must reach its binary through the store's folder, and must
	// not list it.
	folderMode = 0o711
	binaryMode = 0o555
)

// store is the host's own copies of plugin binaries, named by what is in them:
// nobody but the host can write there, so what was hashed is what is executed.
type store struct {
	dir string // <store>/sha256
	uid int    // of the host
}

func openStore(root string, hostUID int) (*store, error) {
	dir := filepath.Join(root, storeFolder)
	if err := os.MkdirAll(dir, folderMode); err != nil {
		return nil, err
	}
	for _, folder := range []string{root, dir} {
		if err := os.Chmod(folder, folderMode); err != nil { // whatever the umask
			return nil, err
		}
	}
	s := &store{dir: dir, uid: hostUID}
	return s, errors.Join(s.sweep(), whole.Clear(root))
}

// sweep removes what a host that was killed had not finished.
func (s *store) sweep() error {
	names, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range names {
		if strings.HasPrefix(e.Name(), incoming) {
			err = errors.Join(err, os.Remove(filepath.Join(s.dir, e.Name())))
		}
	}
	return err
}

func (s *store) path(digest string) string { return filepath.Join(s.dir, digest) }

// has says whether a whole binary of that digest is there.
func (s *store) has(digest string) bool {
	info, err := os.Lstat(s.path(digest))
	return err == nil && s.isOurs(info)
}

// open opens a binary to execute it by its descriptor.
func (s *store) open(digest string) (*os.File, error) {
	f, err := os.OpenFile(s.path(digest), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !s.isOurs(info) {
		err = &fs.PathError{Op: "open", Path: f.Name(), Err: errors.New("its mode or owner was changed")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (s *store) isOurs(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode() == binaryMode && int(stat.Uid) == s.uid
}

// put copies at most maxBinary bytes from r, hashing them on their way, and
// returns their digest once they are on disk. It takes the place of an earlier
// copy, so that a damaged one heals.
func (s *store) put(ctx context.Context, r io.Reader) (digest string, err error) {
	name, digest, err := s.receive(ctx, r)
	if err != nil {
		return "", err
	}
	failpoint.Hit("catalog", "store", "before")
	if err := os.Rename(name, s.path(digest)); err != nil {
		return "", errors.Join(err, os.Remove(name))
	}
	err = syncFolder(s.dir)
	failpoint.Hit("catalog", "store", "after")
	return digest, err
}

// receive writes a file under a passing name.
func (s *store) receive(ctx context.Context, r io.Reader) (name, digest string, err error) {
	f, err := os.CreateTemp(s.dir, incoming)
	if err != nil {
		return "", "", err
	}
	failpoint.Hit("catalog", "copy", "before")
	digest, err = fill(ctx, f, r)
	failpoint.Hit("catalog", "copy", "after")
	if err = errors.Join(err, f.Close()); err == nil {
		err = awaitNoWriter(ctx, f.Name())
	}
	if err != nil {
		return "", "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), digest, nil
}

func fill(ctx context.Context, f *os.File, r io.Reader) (string, error) {
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, hash), io.LimitReader(until(ctx, r), maxBinary+1))
	if err != nil {
		return "", err
	}
	if n > maxBinary {
		return "", errUnsteady // it was smaller when it was looked at
	}
	if err := f.Chmod(binaryMode); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), f.Sync()
}

// awaitNoWriter waits until a file that was written can be executed. A child
// that was forked meanwhile, anywhere in the host, has the descriptor until it
// executes its own program, and until then executing the file is ETXTBSY
// (golang/go#22315). Passing syscall.ForkLock is not enough: a fork gives it back
// shortly before its child closes what it inherited.
func awaitNoWriter(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if writing, err := isBeingWritten(f); err != nil || !writing {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}

// until is a reader that stops when ctx ends.
func until(ctx context.Context, r io.Reader) io.Reader {
	return readFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(p)
	})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
