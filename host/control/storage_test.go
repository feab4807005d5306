package control

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/host/worker"
)

// TestStorageFaults: whatever part of the host meets a fault of the disk, and
// whatever else it says, the caller hears that it is unavailable and what helps.
func TestStorageFaults(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO} {
		at := &fs.PathError{Op: "write", Path: "identity.json", Err: errno}
		for _, err := range []error{at, fmt.Errorf("open stage: %w", at), errors.Join(worker.ErrConflict, at), fmt.Errorf("%w: %w", worker.ErrCorrupt, at)} {
			code, reason := classify(err)
			if code != codes.Unavailable || reason != "unavailable" || storageHint(err) == "" || status.Code(toStatus(err)) != codes.Unavailable {
				t.Errorf("%v: %s, %s", err, code, reason)
			}
		}
	}
	if code, _ := classify(&fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}); code != codes.Internal {
		t.Errorf("not of the disk: %s", code)
	}
}
