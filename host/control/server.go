package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// MaxMessage is the largest request that is read, in bytes: well above an
// envelope's limit, so that the gate itself can refuse what is too large.
const MaxMessage = 8 << 20

// lastWord is how long calls may take to answer that they were cut.
const lastWord = time.Second

// handshake is how long a peer may take to begin to speak gRPC. Whoever connects
// and says nothing would hold up a stop for as long.
const handshake = 5 * time.Second

// Config is what a Server needs. All fields are required.
type Config struct {
	// Socket is the path of the control socket, of any length. Its folder exists
	// and is closed to group and others. A socket that is there is taken for a
	// dead host's and replaced: the caller holds the lock of the data folder.
	Socket    string
	Forger    Forger
	Lifecycle Lifecycle
	Workers   Workers
	Sender    Sender
	Clients   Clients
	Host      Host
	Backups   Backuper
	Collector Collector
	// Drain is how long running calls may take once Serve was told to end.
	Drain  time.Duration
	Logger hclog.Logger
}

// Server is the control API on its socket. Callers may connect from New on;
// they are answered once Serve runs.
type Server struct {
	socket   string
	listener *net.UnixListener
	grpc     *grpc.Server
	stopping chan struct{}
	drain    time.Duration
	calls    *calls
	log      hclog.Logger
}

// New opens the control socket. The caller then calls Serve or Close.
func New(c Config) (*Server, error) {
	listener, err := listen(c.Socket)
	if err != nil {
		return nil, err
	}
	s := &Server{
		socket: c.Socket, listener: listener, stopping: make(chan struct{}), drain: c.Drain, calls: newCalls(), log: c.Logger,
	}
	faults := faults{log: c.Logger}
	s.grpc = grpc.NewServer(
		grpc.Creds(peerCredentials{hostUID: os.Geteuid(), log: c.Logger}),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.ConnectionTimeout(handshake),
		grpc.ChainUnaryInterceptor(faults.unary, s.calls.unary),
		grpc.ChainStreamInterceptor(faults.stream, s.calls.stream),
	)
	hostv1.RegisterHostServiceServer(s.grpc, &service{Config: c, stopping: s.stopping})
	return s, nil
}

// Serve answers calls until ctx ends. Then it takes no new ones, ends log
// streams, gives running calls the time of Drain, cuts those that are left and
// removes the socket. What was cut is answered with worker.ErrUnavailable, which
// is also the cause of the end of its context. It is called once, and returns
// nil when ctx ended it.
func (s *Server) Serve(ctx context.Context) error {
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ctx.Done():
			s.stop()
		case <-done:
		}
	}()
	err := s.grpc.Serve(s.listener)
	if errors.Is(err, grpc.ErrServerStopped) {
		err = nil // ctx had ended before
	}
	close(done)
	<-stopped
	return errors.Join(wrap("serve control socket", err), s.remove())
}

// Close removes the socket of a Server that never served.
func (s *Server) Close() error {
	return errors.Join(wrap("close control socket", s.listener.Close()), s.remove())
}

func (s *Server) stop() {
	close(s.stopping)
	late := time.AfterFunc(s.drain, func() {
		if n := s.calls.running.Load(); n > 0 {
			s.log.Warn("running calls cut", "calls", n, "after", s.drain)
		}
		s.calls.cut(errEnds)
	})
	defer late.Stop()
	deaf := time.AfterFunc(s.drain+lastWord, s.grpc.Stop)
	defer deaf.Stop()
	s.grpc.GracefulStop()
}

func (s *Server) remove() error {
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove control socket: %w", err)
	}
	return nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
