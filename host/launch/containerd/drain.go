package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/worker"
)

// A shim of containerd's own that could not write to a log once, as on a full disk,
// never reads the worker's output again, and the worker blocks as soon as its pipe is
// full. While this launcher is open it reads in the shim's stead. Ours goes on, and
// has nothing taken from it.

// drainEvery is how often outputs are looked at, in the control groups and not by
// asking containerd, which would ask every shim. One that holds what it held the
// last time, with a log that has not changed, is read by nobody.
const drainEvery = 5 * time.Second

// output is the state of one worker's stdout or stderr.
type output struct {
	pipe   uint64    // its inode
	queued int       // bytes that wait in it
	logged time.Time // when the log last changed
}

// drains are the outputs that are read here.
type drains struct {
	*Launcher
	reading sync.WaitGroup
	taken   sync.Map // pipes
	before  map[output]bool
	shims   map[worker.Serial]map[uint64]bool // the pipes that a container's shim has, as far as was looked
}

// drainOutputs looks after the outputs until the launcher is closed.
func (l *Launcher) drainOutputs() {
	d := &drains{Launcher: l}
	defer d.reading.Wait()
	ticker := time.NewTicker(drainEvery)
	defer ticker.Stop()
	for {
		select {
		case <-l.life.Done():
			return
		case <-ticker.C:
		}
		d.look()
	}
}

func (d *drains) look() {
	now := map[output]bool{}
	d.shims = map[worker.Serial]map[uint64]bool{}
	for _, serial := range d.cgroups.all() {
		for _, pid := range d.cgroups.members(serial) {
			for _, fd := range []int{unix.Stdout, unix.Stderr} {
				if o, ok := d.waiting(serial, pid, fd); ok {
					now[o] = true
				}
			}
		}
	}
	d.before = now
}

// waiting says that there is output that nobody has read yet. What there was the
// last time too is read from now on.
func (d *drains) waiting(serial worker.Serial, pid, fd int) (output, bool) {
	// The other end of the pipe that the worker writes to has no other name.
	pipe, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", pid, fd), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return output{}, false // it ends, or has closed it
	}
	o, log, err := d.outputOf(pipe, serial)
	if _, taken := d.taken.Load(o.pipe); err == nil && !taken && d.before[o] && d.isShims(serial, o.pipe) {
		d.log.Warn("a worker's shim does not write its log any more; it is written here", "serial", serial)
		d.taken.Store(o.pipe, true)
		d.reading.Go(func() {
			defer d.taken.Delete(o.pipe)
			d.drain(pipe, log)
		})
		return o, false
	}
	return o, pipe.Close() == nil && err == nil
}

// isShims says whether a pipe is one that the container's shim reads, or should: a
// worker may have others in the place of its output, which are its own affair.
func (d *drains) isShims(serial worker.Serial, pipe uint64) bool {
	if has, known := d.shims[serial]; known {
		return has[pipe]
	}
	d.shims[serial] = map[uint64]bool{}
	shims, err := d.site.shims(string(serial)) // ours is for many, and not found by one
	if err != nil {
		d.log.Debug("shim of a worker not looked at", "serial", serial, "error", err)
	}
	for _, one := range shims {
		for _, inode := range pipesOf(one.Identity().PID) {
			d.shims[serial][inode] = true
		}
		_ = one.Close()
	}
	return d.shims[serial][pipe]
}

// pipesOf are the inodes of the pipes that a process has open: proc_pid_fd(5).
func pipesOf(pid int) (inodes []uint64) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, _ := os.ReadDir(dir) // it may have ended
	for _, fd := range fds {
		var inode uint64
		target, _ := os.Readlink(filepath.Join(dir, fd.Name()))
		if n, _ := fmt.Sscanf(target, "pipe:[%d]", &inode); n == 1 {
			inodes = append(inodes, inode)
		}
	}
	return inodes
}

// outputOf tells of an output with something in it, and of the worker's log. It
// fails where there is nothing, or what is there is no pipe: a worker may put
// another file in the place of its output.
func (d *drains) outputOf(pipe *os.File, serial worker.Serial) (o output, log string, err error) {
	raw, err := pipe.SyscallConn()
	if err != nil {
		return o, "", err
	}
	failed := raw.Control(func(fd uintptr) {
		var st unix.Stat_t
		if err = unix.Fstat(int(fd), &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
			o.queued, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		}
		o.pipe = st.Ino
	})
	if failed != nil || err != nil || o.queued == 0 {
		return o, "", errors.Join(failed, err, io.EOF)
	}
	ctx, cancel := context.WithTimeout(d.life, drainEvery)
	defer cancel()
	c, err := d.client.ContainerService().Get(ctx, string(serial))
	if err != nil {
		return o, "", err
	}
	log = c.Labels[labelLog]
	info, err := os.Lstat(log)
	if err == nil {
		o.logged = info.ModTime()
	}
	return o, log, err
}

// drain writes what comes from a pipe to a log until the worker or the launcher
// ends. What the disk does not take is lost.
func (d *drains) drain(pipe *os.File, log string) {
	defer context.AfterFunc(d.life, func() { _ = pipe.Close() })()
	defer pipe.Close()
	file, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0)
	if err != nil {
		d.log.Warn("a worker's log is not written", "error", err)
		return
	}
	defer file.Close()
	_, err = io.Copy(deaf{file}, pipe)
	d.log.Debug("a worker's log is not written here any more", "log", log, "error", err)
}

// deaf passes on what it can and never fails.
type deaf struct{ io.Writer }

func (d deaf) Write(p []byte) (int, error) {
	_, _ = d.Writer.Write(p)
	return len(p), nil
}
