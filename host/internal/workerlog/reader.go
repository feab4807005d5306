package workerlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"

	"github.com/dals-host/dals-host/host/worker"
)

// Reader reads one worker's log, the old file first. Positions count from where
// the log began when its Logs were made: those of the old file may be negative. It
// is for one goroutine.
type Reader struct {
	logs   *Logs
	serial worker.Serial
	dir    *os.Root // of the log, wherever an upgrade takes it meanwhile
	file   *os.File
	at     int64
}

// Open opens a worker's log to read from its beginning. A worker without a log is
// fs.ErrNotExist. The caller closes it.
func (l *Logs) Open(serial worker.Serial) (*Reader, error) {
	root, err := l.folders.OpenRoot(serial)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	dir, err := root.OpenRoot(path.Dir(l.path))
	if err != nil {
		return nil, err
	}
	file, _, err := openRegular(dir, path.Base(l.path), os.O_RDONLY)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	r := &Reader{logs: l, serial: serial, dir: dir, file: file}
	l.mu.RLock()
	defer l.mu.RUnlock()
	if r.at, err = r.first(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// first is the position of the first byte that is kept.
func (r *Reader) first() (int64, error) {
	old, err := r.openOld()
	if err != nil || old == nil {
		return r.logs.cut[r.serial].bytes, err
	}
	defer old.Close()
	return r.logs.cut[r.serial].bytes - sizeOf(old), nil
}

// openOld opens the old file; nil where there is none.
func (r *Reader) openOld() (*os.File, error) {
	old, _, err := openRegular(r.dir, path.Base(r.logs.path)+oldSuffix, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // as where the worker, and all that it had, is gone
	}
	return old, err
}

func sizeOf(file *os.File) int64 {
	info, err := file.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// Close closes the log.
func (r *Reader) Close() error { return errors.Join(r.file.Close(), r.dir.Close()) }

// Read reads on. At the end of what is written it is io.EOF, and may be more the
// next time. What has gone meanwhile, because the worker printed faster than it
// was read, is passed over; a log that somebody else has cut is read from its
// beginning.
func (r *Reader) Read(p []byte) (int, error) {
	r.logs.mu.RLock()
	defer r.logs.mu.RUnlock()
	cut := r.logs.cut[r.serial].bytes
	if r.at > cut+sizeOf(r.file) {
		r.at = cut
	}
	n, at, err := r.readAt(p, r.at, cut)
	r.at = at + int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// readAt reads what is at position at, or after it where that has gone.
func (r *Reader) readAt(p []byte, at, cut int64) (n int, found int64, err error) {
	if at < cut {
		old, err := r.openOld()
		if err != nil {
			return 0, at, err
		}
		if old != nil {
			defer old.Close()
			first := cut - sizeOf(old)
			at = max(at, first)
			n, err := old.ReadAt(p, at-first)
			if n > 0 || !errors.Is(err, io.EOF) {
				return n, at, err
			}
		}
		at = cut
	}
	n, err = r.file.ReadAt(p, at-cut)
	return n, at, err
}

// Last has reading begin with the last n lines, or with all there are.
func (r *Reader) Last(n int) error {
	r.logs.mu.RLock()
	defer r.logs.mu.RUnlock()
	cut := r.logs.cut[r.serial].bytes
	end := cut + sizeOf(r.file)
	first, err := r.first()
	if err != nil {
		return err
	}
	r.at = first
	// The newline that ends the last line begins none.
	found, text := -1, make([]byte, maxPartial)
	for to := end; to > r.at; to -= int64(len(text)) {
		from := max(r.at, to-int64(len(text)))
		part := text[:to-from]
		if err := r.readAll(part, from, cut); err != nil {
			return fmt.Errorf("read backwards: %w", err)
		}
		if to == end && part[len(part)-1] != '\n' {
			found++
		}
		for i, char := range slices.Backward(part) {
			if char != '\n' {
				continue
			}
			if found++; found == n {
				r.at = from + int64(i) + 1
				return nil
			}
		}
	}
	return nil
}

// readAll fills p with what is at position at, over the end of the old file.
func (r *Reader) readAll(p []byte, at, cut int64) error {
	for len(p) > 0 {
		n, _, err := r.readAt(p, at, cut)
		if n == 0 {
			return err
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// Removed says that the log is gone for good, and read to its end.
func (r *Reader) Removed() (bool, error) {
	r.logs.mu.RLock()
	defer r.logs.mu.RUnlock()
	info, err := r.file.Stat()
	if err != nil {
		return false, fmt.Errorf("look at log: %w", err)
	}
	system, ok := info.Sys().(*syscall.Stat_t)
	return ok && system.Nlink == 0 && r.at >= r.logs.cut[r.serial].bytes+info.Size(), nil
}
