// Package shim is a containerd shim for workers: the process that is the parent of
// their containers, tells containerd of them, and writes their logs. It does what
// the launcher asks for and no more: no terminals, no second process in a container,
// no checkpoints, no events.
//
// Up to groupSize containers share one daemon, a group: that is what it is for. One
// of containerd's own shims for each takes half the memory of an idle worker, and a
// quarter of what a forge costs. A daemon that dies takes the group's workers with it,
// as a shim of containerd's takes its one: containerd ends what is left of them, and
// whoever looks after the workers starts them again.
//
// containerd runs the binary in three ways (shim API v2, runtime/v2/README.md of
// containerd 1.6): "start" finds or makes the daemon of a new container and prints
// its address, "delete" ends what a lost daemon has left of one, and between the two
// the daemon answers containerd's task service on its socket. The binary's own
// "serve" is the daemon.
package shim

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
)

// Binary is the name of the program. containerd wants none of this form where it is
// told a path; people who look for shims do.
const Binary = "containerd-shim-dals-v1"

// command is what the binary was called with.
type command struct {
	namespace string // of the containers
	address   string // of containerd
	id        string // of the container; none for serve
	bundle    string // the container's folder
	group     string // the daemon's own folder
	action    string
	info      bool // containerd 2 asks what the shim can do; nothing to tell
}

// Main is the program, with the arguments after its name. What containerd reads of
// it goes to out.
func Main(args []string, out io.Writer) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	switch c.action {
	case "":
		if c.info {
			return nil
		}
	case "start":
		return start(c, out)
	case "delete":
		return settle(context.Background(), c, out)
	case "serve":
		return serve(c)
	}
	return fmt.Errorf("%q is no action: containerd runs this program, and nobody else", c.action)
}

func parse(args []string) (c command, err error) {
	flags := flag.NewFlagSet(Binary, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&c.namespace, "namespace", "", "")
	flags.StringVar(&c.address, "address", "", "")
	flags.StringVar(&c.id, "id", "", "")
	flags.StringVar(&c.bundle, "bundle", "", "")
	flags.StringVar(&c.group, "group", "", "")
	flags.String("publish-binary", "", "") // for events
	flags.Bool("debug", false, "")
	flags.BoolVar(&c.info, "info", false, "")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	c.action = flags.Arg(0)
	if c.bundle == "" { // containerd runs start in it
		if c.bundle, err = os.Getwd(); err != nil {
			return c, err
		}
	}
	if c.action != "serve" && !c.info && !isName(c.id) {
		return c, fmt.Errorf("-id %q is no container id", c.id)
	}
	return c, nil
}
