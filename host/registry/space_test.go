package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/worker"
)

// mountChild runs a life in a mount namespace of its own, where it may mount a
// small file system for itself.
func mountChild(t *testing.T, life string) {
	t.Helper()
	cmd := child(t, life, t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		t.Fatalf("as a child with its own mounts (root or user namespaces needed): %v", err)
	}
}

// mountSmall mounts a file system of some megabytes on dir.
func mountSmall(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=4m"); err != nil {
		return fmt.Errorf("mount small file system: %w", err)
	}
	return nil
}

func TestFullDiskIsUnavailableAndHeals(t *testing.T) { mountChild(t, "disk full") }

func fillDisk(dir string) error {
	ctx := context.Background()
	if err := mountSmall(dir); err != nil {
		return err
	}
	r, err := Open(ctx, Config{Path: filepath.Join(dir, "registry.db")})
	if err != nil {
		return err
	}
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		return err
	}
	for err == nil {
		_, err = ballast.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("fill disk: %w", err)
	}
	written := map[string]bool{}
	write := func(n int) error {
		key := fmt.Sprint("key ", n)
		err := r.Update(ctx, func(tx *Tx) error {
			_, err := tx.Append(append([]byte(key+" "), make([]byte, 20000)...))
			return errors.Join(err, tx.SetMeta(key, strings.Repeat("x", 20000)))
		})
		written[key] = err == nil
		return err
	}
	var full error
	n := 0
	for ; full == nil && n < 1000; n++ {
		full = write(n)
	}
	for range 3 { // and stays so
		full = write(n)
		n++
		if !errors.Is(full, worker.ErrUnavailable) || worker.HintOf(full) == "" {
			return fmt.Errorf("write on a full disk: %w", full)
		}
	}
	if _, err := r.Meta(ctx, "none"); !errors.Is(err, worker.ErrNotFound) {
		return fmt.Errorf("read on a full disk: %w", err)
	}
	if err := r.Fault(); !errors.Is(err, worker.ErrUnavailable) {
		return fmt.Errorf("the fault that stands: %w", err)
	}
	if err := errors.Join(ballast.Truncate(0), ballast.Close()); err != nil {
		return err
	}
	if err := write(n); err != nil {
		return fmt.Errorf("write when there is space again: %w", err)
	}
	if err := r.Fault(); err != nil {
		return fmt.Errorf("the fault stands although there is space again: %w", err)
	}
	return checkWritten(r, written)
}

// checkWritten checks that just the acknowledged writes are in the registry.
func checkWritten(r *Registry, written map[string]bool) error {
	size, acknowledged := 0, 0
	for g, err := range r.Groups(context.Background(), 0) {
		if err != nil {
			return err
		}
		size += len(g.Entries)
	}
	for key, stands := range written {
		if stands {
			acknowledged++
		}
		if _, err := r.Meta(context.Background(), key); (err == nil) != stands {
			return fmt.Errorf("%s was acknowledged: %t, but reading it: %w", key, stands, err)
		}
	}
	if size != acknowledged {
		return fmt.Errorf("log of %d entries, %d acknowledged", size, acknowledged)
	}
	return r.Close()
}

func TestReadOnlyFileSystem(t *testing.T) { mountChild(t, "remount ro") }

func turnReadOnly(dir string) error {
	ctx := context.Background()
	if err := mountSmall(dir); err != nil {
		return err
	}
	path := filepath.Join(dir, "registry.db")
	r, err := Open(ctx, Config{Path: path})
	if err != nil {
		return err
	}
	if err := r.Update(ctx, func(tx *Tx) error { return tx.SetMeta("x", "1") }); err != nil {
		return err
	}
	if err := r.Close(); err != nil {
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if err := refused(path, unix.EROFS); err != nil {
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if r, err = Open(ctx, Config{Path: path}); err != nil {
		return err
	}
	return r.Close()
}

// A folder of somebody else's. Root may write everywhere, so this runs as
// nobody.
func TestFolderWithoutPermission(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "registry.db")
	r, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, mode := range []fs.FileMode{0o600, 0o666} { // neither, or the folder alone, refuses
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
		cmd := child(t, "no access", path)
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		if err := cmd.Run(); err != nil {
			t.Errorf("file of mode %s in a folder that is not ours: %v", mode, err)
		}
	}
}

func openRefused(path string) error { return refused(path, unix.EACCES) }

// refused checks that Open says in one line why it cannot.
func refused(path string, why error) error {
	r, err := Open(context.Background(), Config{Path: path})
	if err == nil {
		return errors.Join(errors.New("registry was opened"), r.Close())
	}
	if !errors.Is(err, why) || !strings.Contains(err.Error(), filepath.Dir(path)) || strings.Contains(err.Error(), "\n") ||
		worker.HintOf(err) == "" {
		return fmt.Errorf("not a clear refusal: %w", err)
	}
	return nil
}
