package shim

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// addressFile is where containerd looks for a daemon's address, in the container's
// folder.
const addressFile = "address"

// start has the container in a group and tells containerd of its daemon: on out, and
// in the file by which a later containerd finds it.
func start(c command, out io.Writer) error {
	g, err := groupsIn(stateOf(c.bundle))
	if err != nil {
		return fmt.Errorf("start %s: %w", c.id, err)
	}
	socket, err := g.join(c.id, func(folder string, listener *net.UnixListener) error {
		return spawn(c, folder, listener)
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", c.id, err)
	}
	address := "unix://" + socket
	if err := os.WriteFile(filepath.Join(c.bundle, addressFile), []byte(address), 0o600); err != nil {
		return fmt.Errorf("start %s: %w", c.id, err)
	}
	_, err = io.WriteString(out, address)
	return err
}

// spawn starts the daemon of a group, in a session of its own.
func spawn(c command, folder string, listener *net.UnixListener) error {
	socket, err := listener.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	said, err := os.OpenFile(folder+logSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer said.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	daemon := exec.Command(self, "-namespace", c.namespace, "-address", c.address, "-group", folder, "serve")
	daemon.Args[0] = Binary
	daemon.Dir, daemon.ExtraFiles = "/", []*os.File{socket}
	daemon.Stdout, daemon.Stderr = said, said
	daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := daemon.Start(); err != nil {
		return err
	}
	return daemon.Process.Release()
}
