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

	"github.com/dals-host/dals-host/host/launch/launchtest"
	"github.com/dals-host/dals-host/host/worker"
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
	denied := []string{"ptrace", "process_vm_readv", "process_vm_writev", "socketcall", "socket", "socketpair", "modify_ldt", "fallocate"}
	for _, call := range def.Syscalls {
		call.Names = slices.DeleteFunc(slices.Clone(call.Names), func(name string) bool { return slices.Contains(denied, name) })
		if len(call.Names) > 0 {
			out.Syscalls = append(out.Syscalls, call)
		}
	}
	// It takes a disk in no time, and a watch comes too late. libc writes instead where
	// it is not supported.
	notSupported := uint(unix.EOPNOTSUPP)
	out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{Names: []string{"fallocate"}, Action: specs.ActErrno, ErrnoRet: &notSupported})
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

// TestFilterIsCompiledOnce: the second container gets the filter that was compiled
// for the first, and it refuses the same. One that an earlier host has made gives
// none: its profile may have been another.
func TestFilterIsCompiledOnce(t *testing.T) {
	t.Parallel()
	b := launchtest.NewBench(t, open)
	filter := func(serial worker.Serial) string {
		t.Helper()
		c, err := launcher(b).client.ContainerService().Get(b.Context(), string(serial))
		if err != nil {
			t.Fatal(err)
		}
		var spec specs.Spec
		if err := json.Unmarshal(c.Spec.GetValue(), &spec); err != nil || spec.Linux.Seccomp == nil {
			t.Fatalf("its spec has the profile %v, %v", spec.Linux.Seccomp, err)
		}
		return spec.Annotations[compiledFilter]
	}
	first, second := b.Guest(), b.Guest()
	if a, b := filter(first.Spec.Serial), filter(second.Spec.Serial); a != "" || b == "" {
		t.Fatalf("the containers have filters of %d and %d characters", len(a), len(b))
	}
	var compiled, given map[string]string
	first.Get("syscalls", &compiled)
	second.Get("syscalls", &given)
	if diff := cmp.Diff(compiled, given); diff != "" || len(given) == 0 {
		t.Errorf("the filters differ (-compiled +given):\n%s", diff)
	}
	if r := second.Report(); r.Status["Seccomp"] != "2" || r.Status["Seccomp_filters"] != "1" {
		t.Errorf("Seccomp %s, %s filters", r.Status["Seccomp"], r.Status["Seccomp_filters"])
	}
	if err := b.Launcher.Close(); err != nil {
		t.Fatal(err)
	}
	b.Reopen()
	b.Stop(first.Spec.Serial, 0)
	b.Stop(second.Spec.Serial, 0)
	if err := b.Launcher.Start(b.Context(), first.Spec.Serial); err != nil {
		t.Fatal(err)
	}
	if launcher(b).annotations() != nil {
		t.Error("an earlier host's container has given a filter")
	}
}
