package containerd

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// pipe is a FIFO that a shim writes to and we read.
type pipe struct {
	path   string
	reader *os.File
	writer *os.File // ours, so that there is a writer until the shim has come
}

func openPipe(path string) (pipe, error) {
	p := pipe{path: path}
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return p, fmt.Errorf("make pipe: %w", err)
	}
	var err error
	// Not blocking, so that reads can be given a deadline.
	if p.reader, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return p, fmt.Errorf("open pipe: %w", err)
	}
	if p.writer, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		return p, fmt.Errorf("open pipe: %w", err)
	}
	return p, nil
}

// drop takes the pipe's name and our writer away; who reads comes to the end.
func (p *pipe) drop() {
	if p.writer != nil {
		_ = p.writer.Close()
	}
	_ = os.Remove(p.path)
}

func (r *Runner) openPipes() (err error) {
	if r.stdout, err = openPipe(filepath.Join(r.dir, "stdout")); err != nil {
		return err
	}
	r.stderr, err = openPipe(filepath.Join(r.dir, "stderr"))
	return err
}
