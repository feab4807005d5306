package containerd

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"runtime"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// seccomp.json is containerd's default profile for a process without
// capabilities, less ptrace and process_vm_*, socketcall, and all sockets but
// unix, TCP and UDP over inet and inet6, and the netlink that tells of interfaces.
// It is committed, so that what a worker may do
// does not depend on the machine or on a dependency's version; a test tells
// when the default has moved. It lists native calls only: the 32-bit ABIs would
// be a way around the sockets.
//
//go:embed seccomp.json
var seccompJSON []byte

var seccompProfile = sync.OnceValues(func() (*specs.LinuxSeccomp, error) {
	arch, ok := map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("there is no seccomp profile for %s", runtime.GOARCH)
	}
	var profile specs.LinuxSeccomp
	if err := json.Unmarshal(seccompJSON, &profile); err != nil {
		return nil, fmt.Errorf("read seccomp profile: %w", err)
	}
	profile.Architectures = []specs.Arch{arch}
	return &profile, nil
})
