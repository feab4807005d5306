package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// The folder of the log in the worker's state, and its file of records: the
// truth, of which all else is made.
const (
	logDir      = "ledger"
	recordsFile = "records"
)

// openLog opens the log below dir, or makes an empty one. Records that were
// being written when an earlier process died were never answered for: they are
// cut off, and logged. Damage anywhere else is an error.
func openLog(dir string, log hclog.Logger) (_ *merkleLog, err error) {
	root, err := openLogDir(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	l := &merkleLog{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.records, err = root.OpenFile(recordsFile, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("open records: %w", err)
	}
	if err := unix.Flock(int(l.records.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock records: another process has them: %w", err)
	}
	if l.index, err = newIndex(root); err != nil {
		return nil, err
	}
	if err := l.load(log); err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	return l, syncDir(root)
}

func openLogDir(dir string) (*os.Root, error) {
	state, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	defer state.Close()
	if err := state.Mkdir(logDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make log folder: %w", err)
	}
	if err := syncDir(state); err != nil {
		return nil, err
	}
	root, err := state.OpenRoot(logDir)
	if err != nil {
		return nil, fmt.Errorf("open log folder: %w", err)
	}
	return root, nil
}

// syncDir makes the names in root survive a power cut.
func syncDir(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// load indexes the records and cuts a torn batch off.
func (l *merkleLog) load(log hclog.Logger) error {
	info, err := l.records.Stat()
	if err != nil {
		return err
	}
	batches := newBatchReader(l.records, info.Size())
	for err == nil {
		err = batches.next(l.index.add)
	}
	if errors.Is(err, errTorn) {
		log.Warn("cut off what was being appended when the worker died",
			"bytes", info.Size()-batches.at, "records_kept", l.index.size)
		err = errors.Join(l.records.Truncate(batches.at), l.records.Sync())
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	l.now = state{size: l.index.size, end: batches.at}
	return l.index.flush()
}

func (l *merkleLog) close() error {
	var errs []error
	if l.index != nil {
		errs = append(errs, l.index.close())
	}
	if l.records != nil {
		// Closing alone gives the lock up only once no child has the file open.
		errs = append(errs, unix.Flock(int(l.records.Fd()), unix.LOCK_UN), l.records.Close())
	}
	return errors.Join(errs...)
}
