// Package wire is what a host and a plugin binary must agree on before they can
// speak: the go-plugin handshake, the one plugin of its plugin set, where a
// worker finds its folder, and the size of the largest message. Both sides
// import it; plugin authors never do.
//
// It holds no state and starts nothing. What is said over the wire is in
// sdk/proto/worker/v1.
package wire

import (
	"context"
	"errors"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// PluginName is the name to dispense from PluginSet.
const PluginName = "type"

// MaxMessage bounds one gRPC message on the worker plane: the largest payload
// (4 MiB) with its header, proof and stamp. Both sides set it as the limit of
// what they receive.
const MaxMessage = 4<<20 + 64<<10

// The worker plane: a launcher starts the binary with WorkerDirEnv naming the
// worker's folder, and the worker serves on Socket in it.
const (
	WorkerDirEnv = "DALS_WORKER_DIR"
	Socket       = "run/worker.sock"

	// WorkerMountsEnv says where the folders are that the worker is shown, if not at
	// their places: PLACE=PATH, with a colon between.
	WorkerMountsEnv = "DALS_WORKER_MOUNTS"
)

// A worker that was granted something reaches its host on Door in its folder:
// HTTP/1.1, CONNECT HOST:PORT for a connection (docs/adr/0017); GET PickPath and a
// type for the serial of a worker of that type; POST CallPath with an Envelope for
// that worker, the headers DoorTask (envelope id, a slash, attempt: the task that
// the caller works on) and DoorTimeout (milliseconds), for a SendResponse. What is
// refused has a stable code in the header DoorCode, and the reason as its text.
const (
	Door        = "door/door.sock"
	DoorCode    = "Dals-Code"
	DoorTask    = "Dals-Task"
	DoorTimeout = "Dals-Timeout-Ms"
	PickPath    = "/workers/"
	CallPath    = "/calls"
)

// Handshake is the type plane's handshake. The cookie is no secret: it tells a
// host's probe from a person who runs the binary by hand.
func Handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{
		ProtocolVersion:  1,
		MagicCookieKey:   "DALS_PLUGIN",
		MagicCookieValue: "579321d75603ef3aa550f968c937283d906770fbfdfb2548705e0c7aa603860a",
	}
}

// PluginSet is what both sides give to go-plugin. A plugin passes its service;
// a host passes nil and dispenses PluginName, which is then a
// workerv1.PluginServiceClient. gRPC only.
func PluginSet(service workerv1.PluginServiceServer) plugin.PluginSet {
	return plugin.PluginSet{PluginName: &typePlugin{service: service}}
}

type typePlugin struct {
	plugin.NetRPCUnsupportedPlugin
	service workerv1.PluginServiceServer
}

var _ plugin.GRPCPlugin = (*typePlugin)(nil)

// GRPCServer registers the plugin's service; go-plugin calls it.
func (p *typePlugin) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	if p.service == nil {
		return errors.New("serve plugin: no service given")
	}
	workerv1.RegisterPluginServiceServer(s, p.service)
	return nil
}

// GRPCClient makes what a host dispenses; go-plugin calls it.
func (p *typePlugin) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return workerv1.NewPluginServiceClient(c), nil
}
