package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/semver"

	"github.com/dals-host/dals-host/host/launch/containerd/shim"
	"github.com/dals-host/dals-host/host/worker"
)

// minVersion is the oldest containerd that is known to work: Debian 12's.
const minVersion = "v1.6.0"

const installHint = "run: apt-get install containerd crun"

// toolPath is where containerd and the runtimes live, whatever the caller's PATH says.
const toolPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// tools are the programs that the launcher runs, by absolute path.
type tools struct {
	containerd, shim, runtime string
	versions                  string // for people
}

// Available says whether workers can run under a private containerd here, and
// by what: the host is root, the programs are installed and new enough, and
// there are cgroups. The error says why not, and carries the fix as its hint.
func Available(ctx context.Context) (what string, err error) {
	t, err := findTools(ctx, "", "")
	return t.versions, err
}

func findTools(ctx context.Context, ownShim, runtime string) (tools, error) {
	if err := checkRoot(); err != nil {
		return tools{}, err
	}
	found := make(map[string]string)
	for _, name := range []string{"containerd", itsShim} {
		path := lookPath(name)
		if path == "" {
			return tools{}, unavailable(installHint, "%s is not installed", name)
		}
		found[name] = path
	}
	out, err := exec.CommandContext(ctx, found["containerd"], "--version").Output()
	if err != nil {
		return tools{}, unavailable(installHint, "%s --version: %w", found["containerd"], err)
	}
	if err := checkVersion(parseVersion(string(out))); err != nil {
		return tools{}, err
	}
	if err := checkCgroups(cgroupRoot); err != nil {
		return tools{}, err
	}
	path, version, err := findRuntime(ctx, runtime)
	if err != nil {
		return tools{}, err
	}
	versions := "containerd " + parseVersion(string(out)) + ", " + version
	if ownShim, err = findShim(ownShim); err != nil {
		return tools{}, err
	}
	if ownShim == "" {
		versions += ", a shim for each worker"
	}
	return tools{containerd: found["containerd"], shim: cmp.Or(ownShim, found[itsShim]), runtime: path, versions: versions}, nil
}

// itsShim is containerd's own shim.
const itsShim = "containerd-shim-runc-v2"

// findShim finds the shim of this project, at path or, where that is empty, beside
// the program that runs or where programs are; "" when it is not installed.
func findShim(path string) (string, error) {
	if path != "" {
		if !isProgram(path) {
			return "", unavailable("build it: make build", "%s is no program", path)
		}
		return path, nil
	}
	if self, err := os.Executable(); err == nil {
		if path := filepath.Join(filepath.Dir(self), shim.Binary); isProgram(path) {
			return path, nil
		}
	}
	return lookPath(shim.Binary), nil
}

// findToolsBeside finds what is needed beside a containerd of the operator's: a
// runtime that works there. crun does not where it sees cgroups of both versions,
// and what another's containerd sees is not ours to change.
func findToolsBeside(ctx context.Context, runtime string) (tools, error) {
	if err := errors.Join(checkRoot(), checkCgroups(cgroupRoot)); err != nil {
		return tools{}, err
	}
	hybrid, err := isHybrid()
	if err != nil {
		return tools{}, err
	}
	if hybrid && runtime == Crun {
		return tools{}, unavailable("use --runtime runc, or --containerd private",
			"crun cannot run under it: this machine has cgroups of both versions")
	}
	if hybrid && runtime == "" {
		runtime = Runc
	}
	path, version, err := findRuntime(ctx, runtime)
	return tools{runtime: path, versions: version}, err
}

func checkRoot() error {
	if os.Geteuid() != 0 {
		return unavailable("run the host as root, or with --launcher process", "containers need root")
	}
	return nil
}

func unavailable(hint, format string, args ...any) error {
	return worker.Hint(fmt.Errorf("containerd cannot be used: %w (%w)", fmt.Errorf(format, args...), worker.ErrUnavailable), hint)
}

func lookPath(name string) string {
	for _, dir := range filepath.SplitList(toolPath) {
		if path := filepath.Join(dir, name); isProgram(path) {
			return path
		}
	}
	return ""
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// parseVersion finds the version in what containerd --version prints: its
// name, its repository, and the version in some distribution's spelling.
func parseVersion(line string) string {
	if fields := strings.Fields(line); len(fields) >= 3 {
		return fields[2]
	}
	return ""
}

var versionNumbers = regexp.MustCompile(`^v?([0-9]+\.[0-9]+\.[0-9]+)`)

// checkVersion wants minVersion or later of a version as containerd tells it,
// such as 1.6.20~ds1 or v2.1.0.
func checkVersion(version string) error {
	numbers := versionNumbers.FindStringSubmatch(version)
	if numbers == nil {
		return unavailable(installHint, "its version %q cannot be read", version)
	}
	if semver.Compare("v"+numbers[1], minVersion) < 0 {
		return unavailable("install containerd "+minVersion[1:]+" or later",
			"version %s is too old, at least %s is needed", version, minVersion[1:])
	}
	return nil
}

const cgroupHint = "mount the cgroup file system at /sys/fs/cgroup with the controllers memory, pids, cpu and, of version 1, cpuacct"

// checkCgroups wants the controllers at mount by which workers are bounded and what
// they use is counted. What hybrids have in their hierarchy of version 2 is of no use
// to a runtime: it looks in those of version 1.
func checkCgroups(mount string) error {
	if controllers, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers")); err == nil {
		have := strings.Fields(string(controllers))
		for _, name := range []string{"memory", "pids", "cpu"} {
			if !slices.Contains(have, name) {
				return unavailable(cgroupHint, "there is no %s cgroup controller", name)
			}
		}
		return nil
	}
	for _, name := range []string{"memory", "pids", "cpu", "cpuacct"} {
		if _, err := os.Stat(filepath.Join(mount, name, "cgroup.procs")); err != nil {
			return unavailable(cgroupHint, "there is no %s cgroup controller: %w", name, err)
		}
	}
	return nil
}
