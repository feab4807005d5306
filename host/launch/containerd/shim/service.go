package shim

import (
	"context"
	"errors"
	"fmt"
	"os"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// service is containerd's task service. A container has one process that it knows of,
// so exec ids are those of processes that do not exist.
type service struct {
	absent
	daemon *daemon
}

func (s service) find(id, exec string) (*container, error) {
	if exec != "" {
		return nil, status.Errorf(codes.NotFound, "process %s not found", exec)
	}
	return s.daemon.find(id)
}

// Create makes a container. It goes on when containerd goes: what it has made is
// there for the next one.
func (s service) Create(_ context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	var o runcoptions.Options
	if err := r.GetOptions().UnmarshalTo(&o); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "options: %v", err)
	}
	if r.Terminal || r.Stdin != "" || r.Checkpoint != "" || len(r.Rootfs) > 0 || o.BinaryName == "" || o.Root == "" || r.Stdout == "" || r.Stderr == "" || !isName(r.ID) {
		return nil, status.Error(codes.InvalidArgument, "a container has a root file system, a runtime, stdout and stderr, and no terminal, stdin or checkpoint")
	}
	c := newContainer(r.ID, r.Bundle, options{BinaryName: o.BinaryName, Root: o.Root}, s.daemon.namespace, [2]string{r.Stdout, r.Stderr})
	c.turn.Lock() // whoever finds it waits until it is made
	defer c.turn.Unlock()
	if err := s.daemon.add(c); err != nil {
		return nil, err
	}
	if err := c.create(); err != nil {
		s.daemon.forget(c)
		s.daemon.reapOrphans()
		return nil, fmt.Errorf("create %s: %w", c.id, err)
	}
	return &task.CreateTaskResponse{Pid: c.pid()}, nil
}

func (s service) Start(_ context.Context, r *task.StartRequest) (*task.StartResponse, error) {
	c, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &task.StartResponse{Pid: c.pid()}, c.start()
}

func (s service) State(_ context.Context, r *task.StateRequest) (*task.StateResponse, error) {
	c, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	state := &task.StateResponse{ID: c.id, Bundle: c.bundle, Pid: c.pid(), Status: c.is(), Stdout: c.names[0], Stderr: c.names[1]}
	if state.Status == tasktypes.Status_STOPPED {
		<-c.ended
		state.ExitStatus, state.ExitedAt = c.code, timestamppb.New(c.at)
	}
	return state, nil
}

func (s service) Connect(_ context.Context, r *task.ConnectRequest) (*task.ConnectResponse, error) {
	c, err := s.find(r.ID, "")
	if err != nil {
		return nil, err
	}
	return &task.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: c.pid()}, nil
}

func (s service) Wait(ctx context.Context, r *task.WaitRequest) (*task.WaitResponse, error) {
	c, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.ended:
		return &task.WaitResponse{ExitStatus: c.code, ExitedAt: timestamppb.New(c.at)}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (s service) Kill(_ context.Context, r *task.KillRequest) (*emptypb.Empty, error) {
	c, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.signal(r.Signal)
}

func (s service) Pids(_ context.Context, r *task.PidsRequest) (*task.PidsResponse, error) {
	c, err := s.find(r.ID, "")
	if err != nil {
		return nil, err
	}
	return &task.PidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: c.pid()}}}, nil
}

// Delete deletes a container that has ended, or was never started.
func (s service) Delete(_ context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	c, err := s.find(r.ID, r.ExecID)
	if status.Code(err) == codes.NotFound && r.ExecID == "" {
		return nil, errors.Join(err, s.daemon.dismiss(r.ID))
	}
	if err != nil {
		return nil, err
	}
	if err := c.delete(); err != nil {
		return nil, err
	}
	if err := s.daemon.dismiss(c.id); err != nil {
		return nil, err
	}
	s.daemon.reapOrphans()
	return &task.DeleteResponse{Pid: c.pid(), ExitStatus: c.code, ExitedAt: timestamppb.New(c.at)}, nil
}

// Shutdown is asked for after each deletion. The daemon ends by itself.
func (s service) Shutdown(context.Context, *task.ShutdownRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// absent is what no worker needs.
type absent struct{}

var errAbsent = status.Error(codes.Unimplemented, "workers have one process and no terminal, and are not paused, changed or checkpointed: "+errors.ErrUnsupported.Error())

func (absent) Pause(context.Context, *task.PauseRequest) (*emptypb.Empty, error) {
	return nil, errAbsent
}

func (absent) Resume(context.Context, *task.ResumeRequest) (*emptypb.Empty, error) {
	return nil, errAbsent
}

func (absent) Checkpoint(context.Context, *task.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, errAbsent
}

func (absent) Exec(context.Context, *task.ExecProcessRequest) (*emptypb.Empty, error) {
	return nil, errAbsent
}

func (absent) ResizePty(context.Context, *task.ResizePtyRequest) (*emptypb.Empty, error) {
	return nil, errAbsent
}

func (absent) CloseIO(context.Context, *task.CloseIORequest) (*emptypb.Empty, error) {
	return nil, errAbsent
}

func (absent) Update(context.Context, *task.UpdateTaskRequest) (*emptypb.Empty, error) {
	return nil, errAbsent
}

func (absent) Stats(context.Context, *task.StatsRequest) (*task.StatsResponse, error) {
	return nil, errAbsent
}
