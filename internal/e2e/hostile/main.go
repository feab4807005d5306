// Command hostile is a worker type that tries to get out of its cage, one attempt
// a process, and says how far it came. Run by hand as "hostile try NAME ARG..." it
// makes the same attempt where nothing confines it: the control of the test. A copy
// with attempts after its last newline makes them while it is probed, see probe. It
// exists for the tests of internal/e2e only.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/sdk"
)

type attempt struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
}

// outcome is "ok" where the attempt succeeded, else the name of the errno, or
// what else came of it.
type outcome struct {
	Outcome string `json:"outcome"`
}

type amount struct {
	N int `json:"n"`
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "try" {
		fmt.Println(tell(try(os.Args[2], os.Args[3:])))
		return
	}
	if told := readProbe(); told != nil {
		told.serve()
		return
	}
	sdk.Serve(sdk.Type{
		Name: "hostile", Version: "1.0.0", Family: "HS", Summary: "Tries to get out of its cage.",
		Tasks: []sdk.Task{
			sdk.Func("hostile.try", "Makes one attempt in a process of its own.", inChild),
			sdk.Func("hostile.allocate", "Fills n MiB of memory.", allocate),
			sdk.Func("hostile.spin", "Keeps 8 threads busy for n ms.", func(_ context.Context, in amount) (outcome, error) { spin(in.N); return outcome{"ok"}, nil }),
			sdk.Func("hostile.ping", "Answers.", func(context.Context, amount) (outcome, error) { return outcome{"ok"}, nil }),
		},
	})
}

// inChild makes the attempt in a child: it may change what a process is, or end it.
func inChild(ctx context.Context, a attempt) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"try", a.Name}, a.Args...)...)
	cmd.WaitDelay = time.Second // its children may hold its output open
	out, err := cmd.Output()
	if len(out) == 0 && err != nil {
		return outcome{err.Error()}, nil
	}
	return outcome{strings.TrimSpace(string(out))}, nil
}

func try(name string, args []string) error {
	if call, ok := calls[name]; ok {
		return call()
	}
	f, ok := attempts[name]
	if !ok {
		return errors.New("unknown attempt " + name)
	}
	return f(args)
}

func tell(err error) string {
	var errno unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}
