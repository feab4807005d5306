package shim

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// output is a pipe that a container prints into, and the file, or FIFO, that all of
// it goes to.
type output struct {
	container *os.File // until the container has it
	pipe, to  *os.File
	ended     chan struct{} // closed when nobody can print any more, and all is written
}

// openOutput opens an output to what is at path.
func openOutput(path string) (*output, error) {
	to, err := openLog(path)
	if err != nil {
		return nil, fmt.Errorf("open output: %w", err)
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, errors.Join(fmt.Errorf("make output: %w", err), to.Close())
	}
	_ = unix.SetNonblock(ends[0], true) // ours waits with all others, the container's blocks
	return &output{
		container: os.NewFile(uintptr(ends[1]), "output"), pipe: os.NewFile(uintptr(ends[0]), "output"),
		to: to, ended: make(chan struct{}),
	}, nil
}

// openLog opens what an output goes to. A FIFO stays open when nobody reads it.
func openLog(path string) (*os.File, error) {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil, err
	case info.Mode().IsRegular():
		return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0)
	case info.Mode()&os.ModeNamedPipe != 0:
		return os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	}
	return nil, fmt.Errorf("%s is neither a file nor a pipe", path)
}

// run passes on what is printed until nobody can print any more.
func (o *output) run() {
	defer close(o.ended)
	defer o.to.Close()
	defer o.pipe.Close()
	raw, err := o.pipe.SyscallConn()
	for more := err == nil; more; {
		ended := raw.Read(func(fd uintptr) (read bool) { read, more = o.pass(int(fd)); return read })
		more = more && ended == nil
	}
}

// buffers are those of outputs with something in them: at rest they have none.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// pass passes on what is in the pipe. It says whether anything was read, else there
// is nothing yet, and whether more can come. What cannot be written is lost: a worker
// does not wait for a disk, and its log goes on when there is space again.
func (o *output) pass(pipe int) (read, more bool) {
	buffer := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buffer)
	n, err := unix.Read(pipe, buffer[:])
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, true
	case errors.Is(err, unix.EINTR):
		return true, true
	case n <= 0:
		return true, false
	}
	_, _ = o.to.Write(buffer[:n])
	return true, true
}

// close gives up an output that was not run.
func (o *output) close() {
	for _, f := range []*os.File{o.container, o.pipe, o.to} {
		_ = f.Close()
	}
}
