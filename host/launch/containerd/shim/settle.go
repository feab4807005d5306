package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// settle ends what is left of a container, after every deletion and after every loss
// of a daemon, and tells containerd how it has ended: killed, as far as anybody knows.
// containerd runs it in the container's folder; where that is another by now there is
// a new container of that name, which is not meant.
func settle(ctx context.Context, c command, out io.Writer) error {
	if sameFolder(".", c.bundle) {
		if err := Remove(ctx, stateOf(c.bundle), c.namespace, c.bundle, c.id); err != nil {
			return fmt.Errorf("delete %s: %w", c.id, err)
		}
	}
	text, err := proto.Marshal(&task.DeleteResponse{ExitStatus: 128 + uint32(unix.SIGKILL), ExitedAt: timestamppb.New(time.Now())})
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}

func sameFolder(one, other string) bool {
	a, err := os.Stat(one)
	if err != nil {
		return false
	}
	b, err := os.Stat(other)
	return err == nil && os.SameFile(a, b)
}

// Remove ends and deletes what is left of a container of the containerd that has its
// state there: by its daemon, or by its runtime where that is lost. It is nothing to
// remove what there is not.
func Remove(ctx context.Context, state, namespace, bundle, id string) error {
	g, err := groupsIn(state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	in, err := g.having(id)
	if err != nil {
		return err
	}
	for _, group := range in { // else the daemon has deleted it
		if err := removeBy(ctx, g.socket(group), id); err != nil {
			return err
		}
	}
	switch r, err := runtimeOf(bundle, namespace); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case r.knows(id):
		if err := r.delete(bundle, id); err != nil {
			return err
		}
	}
	for _, group := range in {
		err = errors.Join(err, leave(g.folder(group), id))
	}
	return err
}

// Clear deletes the sockets of all groups of the containerd that has its state there.
// Their daemons have to have ended.
func Clear(state string) error {
	g, err := groupsIn(state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	all, err := g.list()
	for _, group := range all {
		if gone := os.Remove(g.socket(group)); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

// removeTime bounds how long a daemon may take. containerd gives it all 5 s.
const removeTime = 4 * time.Second

// removeBy has the daemon that listens at socket, if any, kill and delete a container.
func removeBy(ctx context.Context, socket, id string) error {
	daemon, hangUp, err := call(socket)
	if isLost(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer hangUp()
	ctx, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	_, err = daemon.Kill(ctx, &task.KillRequest{ID: id, Signal: uint32(unix.SIGKILL)})
	if err == nil {
		_, err = daemon.Wait(ctx, &task.WaitRequest{ID: id})
	}
	if err == nil || errdefs.IsNotFound(errgrpc.ToNative(err)) { // it may have ended, or be in the making
		_, err = daemon.Delete(ctx, &task.DeleteRequest{ID: id})
	}
	if errdefs.IsNotFound(errgrpc.ToNative(err)) || errors.Is(err, ttrpc.ErrClosed) {
		return nil
	}
	return err
}

// Member is the file which says that a container of the containerd that has its state
// there is in a group; "" where it is in none.
func Member(state, id string) string {
	g, err := groupsIn(state)
	if err != nil {
		return ""
	}
	in, err := g.having(id)
	if err != nil || len(in) == 0 {
		return ""
	}
	return g.member(in[0], id)
}
