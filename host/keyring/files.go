package keyring

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/identity"
)

// maxKeyFile is more than any key file has.
const maxKeyFile = 4 << 10

// unfinished begins the names of files that a crash may leave.
const unfinished = ".new-"

// Sweep removes from the folder of keys what a start that was killed has left:
// there may be a key in it. It is for who has the data folder alone.
func Sweep(dir string) error {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range names {
		if strings.HasPrefix(e.Name(), unfinished) {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("sweep keys: %w", err)
	}
	return nil
}

func createSeed(path string) error {
	seed := make([]byte, seedSize)
	if _, err := rand.Read(seed); err != nil {
		return err
	}
	_, err := createOnce(path, seed)
	return err
}

func readSeed(path string) ([]byte, error) {
	seed, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, worker.Hint(fmt.Errorf("%s is missing: %w", path, worker.ErrNotFound),
			"it is the identity of this host: restore it from a backup; only a new data folder gets a new one")
	}
	if err != nil {
		return nil, err
	}
	if len(seed) != seedSize {
		return nil, worker.Hint(fmt.Errorf("%s has %d bytes, want %d: %w", path, len(seed), seedSize, worker.ErrCorrupt),
			"restore it from a backup")
	}
	return seed, nil
}

// LoadOrCreateOperator reads the operator's client key. At the first start of
// the data folder, and only then, a missing one is made; created says so. A
// missing key is otherwise a worker.ErrNotFound.
func (k *Keyring) LoadOrCreateOperator(first bool) (key Key, created bool, err error) {
	path := filepath.Join(k.dir, OperatorFile)
	if first {
		if created, err = createOperator(path); err != nil {
			return Key{}, false, fmt.Errorf("make operator key: %w", err)
		}
	}
	data, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = worker.Hint(fmt.Errorf("%s is missing: %w", path, worker.ErrNotFound),
			"enrol a new key: dals-host client add NAME --key-out FILE")
	}
	if err != nil {
		return Key{}, false, fmt.Errorf("read operator key: %w", err)
	}
	private, err := identity.ParseKey(data)
	if err != nil {
		return Key{}, false, fmt.Errorf("read operator key: %s: %w", path, err)
	}
	return Key{private}, created, nil
}

func createOperator(path string) (bool, error) {
	key, err := NewWorkerKey()
	if err != nil {
		return false, err
	}
	data, err := identity.MarshalKey(key.private)
	if err != nil {
		return false, err
	}
	return createOnce(path, data)
}

// createOnce makes a file with all of data, durable, or leaves the one that is
// there. A crash leaves at most a temporary file beside it, for Sweep.
func createOnce(path string, data []byte) (created bool, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return false, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), unfinished)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, tmp.Close(), os.Remove(tmp.Name())) }()
	if _, err := tmp.Write(data); err != nil {
		return false, err
	}
	failpoint.Hit("keyring", "sync", "before")
	if err := tmp.Sync(); err != nil {
		return false, err
	}
	failpoint.Hit("keyring", "sync", "after")
	failpoint.Hit("keyring", "link", "before")
	err = os.Link(tmp.Name(), path) // which, unlike a rename, never replaces
	failpoint.Hit("keyring", "link", "after")
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	failpoint.Hit("keyring", "sync folders", "before")
	err = errors.Join(syncDir(filepath.Dir(path)), syncDir(filepath.Dir(filepath.Dir(path))))
	failpoint.Hit("keyring", "sync folders", "after")
	return true, err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readSecret reads a file that nobody else can read or change.
func readSecret(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, worker.Hint(fmt.Errorf("%s is a symlink: %w", path, worker.ErrRefused), "put the file itself there")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: %w", path, worker.ErrRefused)
	}
	if system, ok := info.Sys().(*syscall.Stat_t); !ok || int(system.Uid) != os.Geteuid() {
		return nil, worker.Hint(fmt.Errorf("%s belongs to somebody else: %w", path, worker.ErrRefused),
			"whose file it is knows the key: restore it from a backup, owned by the host's user")
	}
	if mode := info.Mode().Perm(); mode&^0o600 != 0 {
		return nil, worker.Hint(fmt.Errorf("%s has mode %04o, others may use it: %w", path, mode, worker.ErrRefused),
			"run: chmod 600 "+path)
	}
	return io.ReadAll(io.LimitReader(f, maxKeyFile))
}
