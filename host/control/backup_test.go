package control_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/client"
)

// backups is a host that writes what it is told.
type backups func(ctx context.Context, passphrase string, w io.Writer) error

func (b backups) Backup(ctx context.Context, passphrase string, w io.Writer) error {
	return b(ctx, passphrase, w)
}

func backupHost(t *testing.T, b backups) *client.Client {
	t.Helper()
	socket := filepath.Join(privateDir(t), "host.sock")
	s, err := control.New(control.Config{Socket: socket, Backups: b, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	c, err := client.Dial(t.Context(), client.Config{Host: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestBackup(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789abcde"), 100_000) // of no round size
	c := backupHost(t, func(_ context.Context, passphrase string, w io.Writer) error {
		if passphrase != "secret" {
			t.Errorf("passphrase %q", passphrase)
		}
		for rest := want; len(rest) > 0; {
			n, err := w.Write(rest[:min(len(rest), 777_777)])
			if err != nil {
				return err
			}
			rest = rest[n:]
		}
		return nil
	})
	var got bytes.Buffer
	if err := c.Backup(t.Context(), "secret", &got); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes, want %d, %v", got.Len(), len(want), err)
	}
}

func TestBackupFails(t *testing.T) {
	c := backupHost(t, func(_ context.Context, _ string, w io.Writer) error {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			return err
		}
		return worker.Hint(worker.ErrUnavailable, "free some space")
	})
	err := c.Backup(t.Context(), "", io.Discard)
	if said, ok := errors.AsType[*client.Error](err); !ok || said.Code != client.CodeUnavailable || said.Hint != "free some space" {
		t.Errorf("a backup that fails in the middle: %v", err)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space") }

// Who cannot write a backup ends the host's work on it.
func TestBackupIsLeft(t *testing.T) {
	ended := make(chan error, 1)
	c := backupHost(t, func(ctx context.Context, _ string, w io.Writer) (err error) {
		for err == nil {
			_, err = w.Write(make([]byte, 1<<20))
		}
		<-ctx.Done()
		ended <- ctx.Err()
		return err
	})
	if err := c.Backup(t.Context(), "", fullDisk{}); err == nil || err.Error() != "write backup: no space" {
		t.Errorf("%v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the host's side: %v", err)
	}
}
