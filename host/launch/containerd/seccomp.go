package containerd

import (
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/dals-host/dals-host/host/worker"
)

// seccomp.json is containerd's default profile for a process without
// capabilities, less ptrace and process_vm_*, fallocate, socketcall, and all sockets but
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

// compiledFilter is the annotation that hands crun a compiled filter, in base64.
// runc, and a crun that knows no such thing, compile the profile beside it.
const compiledFilter = "run.oci.seccomp_bpf_data"

// annotations hand a runtime what it made of the profile before: to compile it
// takes crun a tenth of what it needs for a container.
func (l *Launcher) annotations() map[string]string {
	filter, ok := l.filter.Load().(string)
	if !ok {
		return nil
	}
	return map[string]string{compiledFilter: filter}
}

// keepFilter remembers the filter that crun has compiled for a container, in a file
// that is root's alone. Other runtimes, and later versions of crun, leave none there.
// The container must be one that this process has made: an earlier host's may have
// had another profile.
func (l *Launcher) keepFilter(id worker.Serial) {
	if l.filter.Load() != nil {
		return
	}
	data, err := os.ReadFile(filepath.Join(l.site.runcRoot(), l.site.namespace, string(id), "seccomp.bpf"))
	if err == nil && len(data) > 0 {
		l.filter.CompareAndSwap(nil, base64.StdEncoding.EncodeToString(data))
	}
}
