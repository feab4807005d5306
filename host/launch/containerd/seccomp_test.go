package containerd

import (
	"encoding/json"
	"flag"
	"os"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write seccomp.json anew")

// TestSeccompIsTheDefaultLessOurs tells when containerd's default profile has
// moved: look at what changed, then run with -update.
func TestSeccompIsTheDefaultLessOurs(t *testing.T) {
	t.Parallel()
	want, err := json.MarshalIndent(derived(), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile("seccomp.json", want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(want), string(seccompJSON)); diff != "" {
		t.Fatalf("seccomp.json is not containerd's default less what is denied (-want +got):\n%s", diff)
	}
}

func derived() *specs.LinuxSeccomp {
	def := seccomp.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	out := &specs.LinuxSeccomp{DefaultAction: def.DefaultAction}
	denied := []string{"ptrace", "process_vm_readv", "process_vm_writev", "socketcall", "socket", "socketpair", "modify_ldt"}
	for _, call := range def.Syscalls {
		call.Names = slices.DeleteFunc(slices.Clone(call.Names), func(name string) bool { return slices.Contains(denied, name) })
		if len(call.Names) > 0 {
			out.Syscalls = append(out.Syscalls, call)
		}
	}
	allow := func(name string, args ...specs.LinuxSeccompArg) {
		out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: args})
	}
	is := func(index uint, value uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: index, Value: value, Op: specs.OpEqualTo}
	}
	allow("socket", is(0, unix.AF_UNIX))
	allow("socketpair", is(0, unix.AF_UNIX))
	allow("socket", is(0, unix.AF_NETLINK), is(2, unix.NETLINK_ROUTE)) // libraries list interfaces by it
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	for _, family := range []uint64{unix.AF_INET, unix.AF_INET6} {
		for _, kind := range []uint64{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			allow("socket", is(0, family),
				specs.LinuxSeccompArg{Index: 1, Value: 0xffffffff &^ flags, ValueTwo: kind, Op: specs.OpMaskedEqual},
				specs.LinuxSeccompArg{Index: 2, Value: unix.IPPROTO_UDP, Op: specs.OpLessEqual})
		}
	}
	return out
}
