package catalog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/host/launch/containerd"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

// Prober asks a plugin binary what it provides.
type Prober interface {
	// Probe executes binary by its descriptor, once, and leaves nothing of it
	// behind. A *Fault is the plugin's own; any other error, that of an ended ctx
	// too, is no verdict on the plugin. What it returns is unchecked.
	Probe(ctx context.Context, binary *os.File) (*workerv1.TypeDescriptor, error)
}

const (
	// probesAtOnce is how many plugins run at a time, each as a uid of its own.
	probesAtOnce = 2
	probeTime    = 5 * time.Second
	cageTime     = 20 * time.Second // for a busy machine to make a container
	// lastWords is how long a plugin that broke its connection may take to die of
	// what broke it, so that the reason can name that.
	lastWords = 500 * time.Millisecond
	// maxDescriptor bounds Describe's answer on the wire: all tasks with the
	// largest schemas.
	maxDescriptor = (2*maxTasks+2)*maxSchema + 1<<20
	socketDirs    = "plugin-dir" // as go-plugin names them
)

// ProberConfig is what a PluginProber needs.
type ProberConfig struct {
	// Dir holds a folder with the socket of each running probe. It is made if it
	// does not exist, and belongs to this prober alone.
	Dir string
	// UID, when the host is root, is the first of two unprivileged uids (and gids)
	// that nobody else on the machine uses: each running probe has one of them.
	// When the host is not root it is not used: plugins run as the host.
	UID int
	// Cage, where there is one, has each plugin run in a container of its own
	// instead of a process of the host's machine.
	Cage   *containerd.Launcher
	Logger hclog.Logger
}

// PluginProber probes plugins, each for at most five seconds as an unprivileged
// uid, with no environment but go-plugin's and no privilege to gain.
//
// With a Cage that is in a container: it has no network, nothing of the host's
// files, nothing on the disk to write, bounded memory and processes, and whatever
// it does is gone with the container, also after the host was killed.
//
// Without one a plugin runs as a process of the host's machine, with limits on
// memory, files, processes and time, in a session of its own, without sockets but
// unix and netlink and, where the kernel has Landlock, without the files of others,
// abstract sockets and signals to others; when the host is root also in PID, network and IPC namespaces of its own,
// so that it reaches nobody and nothing of it can outlive its probe. Where the
// machine does not allow namespaces, whatever is left of that uid is killed; where
// the host is not root, a process that leaves its session may outlive its probe.
//
// It speaks go-plugin's handshake and gRPC on a unix socket in a folder that only
// the plugin and the host can enter. That replaces AutoMTLS, whose throw-away
// certificates cost 39 ms per probe and would protect the same connection from
// the same nobody.
//
// It may be used by several goroutines; a third probe waits.
type PluginProber struct {
	cfg      ProberConfig
	uids     chan int // free ones
	patience time.Duration
}

var _ Prober = (*PluginProber)(nil)

// NewProber makes a prober and removes what an earlier host's left behind.
func NewProber(cfg ProberConfig) (*PluginProber, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	p := &PluginProber{cfg: cfg, uids: make(chan int, probesAtOnce), patience: probeTime}
	for i := range probesAtOnce {
		uid := os.Geteuid()
		if uid == 0 {
			uid = cfg.UID + i
		}
		if uid <= 0 {
			return nil, errors.New("make prober: plugins are never executed as root: an unprivileged uid is required")
		}
		p.uids <- uid
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder for probes: %w", err)
	}
	left, err := os.ReadDir(cfg.Dir)
	for _, e := range left {
		if strings.HasPrefix(e.Name(), socketDirs) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(cfg.Dir, e.Name())))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("sweep folder for probes: %w", err)
	}
	return p, nil
}

// Probe implements Prober.
func (p *PluginProber) Probe(ctx context.Context, binary *os.File) (*workerv1.TypeDescriptor, error) {
	var uid int
	select {
	case uid = <-p.uids:
		defer func() { p.uids <- uid }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	limit := p.patience
	if p.cfg.Cage != nil {
		limit += cageTime // a plugin's own time begins when its container runs
	}
	run, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	proc := &process{ctx: run, cancel: cancel, binary: binary, uid: uid, cage: p.cfg.Cage, patience: p.patience, log: p.cfg.Logger}
	descriptor, err := p.converse(proc)
	if status.Code(err) == codes.Unavailable {
		proc.linger()
	}
	proc.end()
	switch {
	case err == nil:
		return descriptor, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, proc.diagnose(err, p.patience)
}

// converse starts the plugin and asks it. Of go-plugin's client it uses Start
// alone, which negotiates: Client and Kill wait for the plugin without a bound,
// open streams that nobody needs, and leave goroutines behind when it dies.
func (p *PluginProber) converse(proc *process) (*workerv1.TypeDescriptor, error) {
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig:  wire.Handshake(),
		Plugins:          wire.PluginSet(nil),
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			return proc, proc.prepare(cmd.Env, dir)
		},
		SkipHostEnv:      true,
		StartTimeout:     2 * (p.patience + cageTime), // the process's context ends it before
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: p.cfg.Dir},
		Logger:           hclog.NewNullLogger(),
	})
	if _, err := client.Start(); err != nil {
		return nil, err
	}
	return ask(proc.ctx, proc.dial)
}

// ask calls Describe on the connection that dial makes.
func ask(ctx context.Context, dial func(context.Context, string) (net.Conn, error)) (*workerv1.TypeDescriptor, error) {
	conn, err := grpc.NewClient("passthrough:///plugin",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dial),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxDescriptor)),
		grpc.WithMaxHeaderListSize(16<<10),
	)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	answer, err := workerv1.NewPluginServiceClient(conn).Describe(ctx, &workerv1.DescribeRequest{})
	return answer.GetDescriptor_(), err
}
