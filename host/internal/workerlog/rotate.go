package workerlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/worker"
)

const (
	oldSuffix = ".1"     // of the file that has what went before
	newSuffix = ".1.new" // of the same while it is being made
	// maxPartial bounds what is looked for the beginning or the end of a line.
	maxPartial = 64 << 10
	// block is what the beginning that goes is a multiple of: file systems take no
	// parts of their blocks away.
	block = 64 << 10
)

// rotate moves the beginning of a log into its old file.
func (l *Logs) rotate(serial worker.Serial) (err error) {
	root, err := l.folders.OpenRoot(serial)
	if err != nil {
		return err
	}
	defer root.Close()
	file, size, err := openRegular(root, l.path, os.O_RDWR)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := root.Remove(l.path + newSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a host that was killed
		return err
	}
	old, err := root.OpenFile(l.path+newSuffix, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, old.Close())
		if gone := root.Remove(l.path + newSuffix); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}()
	if size > 2*l.max {
		err = copyEnd(old, file, size-l.max, size)
	} else {
		size = (size - 1) / block * block
		err = errors.Join(copyPartial(old, root, l.path+oldSuffix), copyRange(old, file, 0, size))
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errors.Join(l.drop(serial, file, size), err) // what is wanted most is space
	}
	if err != nil {
		return err
	}
	return l.replace(serial, root, file, old, size)
}

// drop gives the space of a log back.
func (l *Logs) drop(serial worker.Serial, file *os.File, size int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := file.Truncate(0)
	if err == nil {
		l.went(serial, size)
	}
	return err
}

// openRegular opens a file of a worker's folder that must be a plain one.
func openRegular(root *os.Root, path string, flag int) (*os.File, int64, error) {
	file, err := root.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file: %w", path, worker.ErrRefused)
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return file, info.Size(), nil
}

// copyPartial copies the line without an end with which the old file ends: the
// rest of it is what the log begins with.
func copyPartial(to io.Writer, root *os.Root, path string) error {
	old, size, err := openRegular(root, path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer old.Close()
	tail, err := io.ReadAll(io.NewSectionReader(old, max(0, size-maxPartial), maxPartial))
	if err != nil {
		return err
	}
	_, err = to.Write(tail[bytes.LastIndexByte(tail, '\n')+1:])
	return err
}

// copyEnd copies the whole lines of what is between from and to.
func copyEnd(out io.Writer, file *os.File, from, to int64) error {
	text, err := io.ReadAll(io.NewSectionReader(file, from, maxPartial))
	if err != nil {
		return err
	}
	return copyRange(out, file, from+int64(bytes.IndexByte(text, '\n'))+1, to)
}

func copyRange(out io.Writer, file *os.File, from, to int64) error {
	_, err := io.Copy(out, io.NewSectionReader(file, from, to-from))
	return err
}

// replace puts the new old file, which ends with what is before end, in the place
// of the one before, and takes what is before end off the log.
func (l *Logs) replace(serial worker.Serial, root *os.Root, file, old *os.File, end int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := root.Rename(l.path+newSuffix, l.path+oldSuffix); err != nil {
		return err
	}
	if end <= 2*l.max { // of a flood, to take a beginning away would be to write it all to disk first
		if unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, end) == nil {
			l.went(serial, end)
			return nil
		}
	}
	// The rest goes too, as far as there is room for it, and then all of it is cut off.
	kept, err := old.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	rest, err := io.Copy(old, io.NewSectionReader(file, end, max(0, 2*l.max-kept)))
	if err != nil {
		return err
	}
	if err := file.Truncate(0); err != nil {
		return err
	}
	l.went(serial, end+rest)
	return nil
}

// went counts what went of a log.
func (l *Logs) went(serial worker.Serial, n int64) {
	c := l.cut[serial]
	c.bytes += n
	l.cut[serial] = c
}
