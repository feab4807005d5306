package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/sdk/wire"
)

const (
	useSDK   = "build it with the DALS SDK: main calls sdk.Serve"
	runIt    = "run it as the host does: it must print nothing before sdk.Serve, and go on running; touch the file to have it tried again"
	mendInit = "mend what it does before it describes itself; touch the file to have it tried again"
)

// diagnose says what an error of a probe means, once its process has ended: the
// reason nearest to the plugin's author.
func (p *process) diagnose(err error, patience time.Duration) error {
	var fault *Fault
	switch {
	case !p.started:
		return diagnoseStart(err)
	case p.lacksLoader():
		return diagnoseStart(syscall.ENOENT)
	case p.noise != nil:
		return p.noise
	case errors.As(err, &fault): // about its socket
		return fault
	case p.timeOver, errors.Is(p.ctx.Err(), context.DeadlineExceeded):
		return p.late(err, patience)
	}
	rpc, described := status.FromError(err)
	ended := p.obituary()
	switch {
	case described && ended != "":
		return bad(mendInit, "%s while it described itself%s", ended, p.said())
	case described:
		return diagnoseDescribe(rpc, p.said())
	case strings.Contains(string(p.stderr), "This binary is a plugin."):
		return bad(useSDK, "is a plugin for another program: it does not know the magic cookie %s", wire.Handshake().MagicCookieKey)
	case ended != "":
		return bad(runIt, "%s before the handshake%s", ended, p.said())
	}
	return bad(useSDK, "cannot be talked to: %v%s", err, p.said())
}

// late says what a plugin did not do in its time.
func (p *process) late(err error, patience time.Duration) error {
	if _, described := status.FromError(err); described {
		return bad("let Describe answer at once, and do the work in Open; touch the file to have it tried again",
			"did not describe itself within %v%s", patience, p.said())
	}
	return bad("let main call sdk.Serve first; touch the file to have it tried again",
		"did not finish the handshake within %v%s", patience, p.said())
}

// diagnoseStart says why a process could not be started at all.
func diagnoseStart(err error) error {
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		return bad(rebuild, "cannot be executed here: %v", syscall.ENOEXEC)
	case errors.Is(err, syscall.ENOENT):
		return bad("link it statically: CGO_ENABLED=0 go build", "needs a dynamic loader that is not on this machine")
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("start plugin (is the store's file system mounted noexec?): %w", err)
	}
	return fmt.Errorf("start plugin: %w", err)
}

func diagnoseDescribe(rpc *status.Status, said string) error {
	switch rpc.Code() {
	case codes.Unimplemented:
		return bad(useSDK, "does not serve dals.worker.v1.PluginService")
	case codes.ResourceExhausted:
		return bad("describe fewer tasks, with smaller schemas", "gives a descriptor that is too large: %s", rpc.Message())
	}
	return bad("mend its Describe", "could not describe itself: %s%s", rpc.Message(), said)
}

// said is what the plugin's log tells best, ready to follow a reason.
func (p *process) said() string {
	if line := p.stderr.telling(); line != "" {
		return ": " + line
	}
	return ""
}
