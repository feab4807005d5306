package containerd

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/worker"
)

// TestCgroupsAreFound: without a hierarchy to look into there is no launcher.
func TestCgroupsAreFound(t *testing.T) {
	t.Parallel()
	c, err := newCgroups(cgroupRoot, "test")
	if err != nil || len(c.roots) == 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	for _, root := range c.roots {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			t.Error(err)
		}
	}
	bare := t.TempDir()
	if err := os.Mkdir(filepath.Join(bare, "memory"), 0o700); err != nil { // where nothing is mounted
		t.Fatal(err)
	}
	file := filepath.Join(bare, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mount := range []string{bare, filepath.Join(bare, "missing"), file} {
		if c, err := newCgroups(mount, "test"); !errors.Is(err, worker.ErrUnavailable) || worker.HintOf(err) == "" {
			t.Errorf("%s: %+v, %v", mount, c, err)
		}
	}
}

// TestCgroupControllers: what bounds and counts has to be there, in either version, and
// what lacks is named.
func TestCgroupControllers(t *testing.T) {
	t.Parallel()
	if err := checkCgroups(cgroupRoot); err != nil {
		t.Errorf("of this machine: %v", err)
	}
	v1 := []string{"memory/cgroup.procs", "pids/cgroup.procs", "cpu,cpuacct/cgroup.procs"}
	for name, test := range map[string]struct {
		files []string
		links []string          // to cpu,cpuacct
		text  map[string]string // of files that have any
		lacks string
	}{
		"v1":                        {files: v1, links: []string{"cpu", "cpuacct"}},
		"v1, each alone":            {files: []string{"memory/cgroup.procs", "pids/cgroup.procs", "cpu/cgroup.procs", "cpuacct/cgroup.procs"}},
		"v1 without memory":         {files: v1[1:], links: []string{"cpu", "cpuacct"}, lacks: "memory"},
		"v1 without pids":           {files: []string{v1[0], v1[2]}, links: []string{"cpu", "cpuacct"}, lacks: "pids"},
		"v1 without cpu":            {files: v1, links: []string{"cpuacct"}, lacks: "cpu"},
		"v1 without cpuacct":        {files: v1, links: []string{"cpu"}, lacks: "cpuacct"},
		"v1, nothing mounted there": {files: []string{v1[0], v1[1], "cpu/else", "cpuacct/else"}, lacks: "cpu"},
		"hybrid": {
			files: append(v1, "unified/cgroup.procs"), links: []string{"cpu", "cpuacct"},
			text: map[string]string{"unified/cgroup.controllers": "hugetlb\n"},
		},
		"hybrid with cpu in v2": {files: v1[:2], text: map[string]string{"unified/cgroup.controllers": "cpu hugetlb\n"}, lacks: "cpu"},
		"v2":                    {text: map[string]string{"cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc\n"}},
		"v2 without cpu":        {text: map[string]string{"cgroup.controllers": "cpuset io memory pids\n"}, lacks: "cpu"},
		"v2 without memory":     {text: map[string]string{"cgroup.controllers": "cpuset cpu io pids\n"}, lacks: "memory"},
		"v2 without pids":       {text: map[string]string{"cgroup.controllers": "cpu memory\n"}, lacks: "pids"},
		"v2 without any":        {text: map[string]string{"cgroup.controllers": "\n"}, lacks: "memory"},
		"nothing":               {lacks: "memory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mount := t.TempDir()
			for _, path := range test.files {
				writeGroup(t, mount, path, "")
			}
			for path, text := range test.text {
				writeGroup(t, mount, path, text)
			}
			for _, name := range test.links {
				must(t, os.Symlink("cpu,cpuacct", filepath.Join(mount, name)))
			}
			err := checkCgroups(mount)
			if test.lacks == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			want := "there is no " + test.lacks + " cgroup controller"
			if !errors.Is(err, worker.ErrUnavailable) || !strings.Contains(err.Error(), want) || !strings.Contains(worker.HintOf(err), "cpuacct") {
				t.Errorf("%v, hint %q, want: %s", err, worker.HintOf(err), want)
			}
		})
	}
}

// aGroup is a worker of fakeCgroups.
const aGroup = worker.Serial("DMN-TP-1-deadbeef-00001")

// fakeCgroups are files laid out as the kernel lays them out: {} in a path is the
// group of the worker aGroup.
func fakeCgroups(t *testing.T, files map[string]string) cgroups {
	t.Helper()
	mount := t.TempDir()
	for path, text := range files {
		writeGroup(t, mount, path, text)
	}
	c, err := newCgroups(mount, "test")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func writeGroup(t *testing.T, mount, path, text string) {
	t.Helper()
	path = filepath.Join(mount, strings.Replace(path, "{}", namespace("test")+"/"+string(aGroup), 1))
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestGroupsOfBothVersions reads who is in a group, and whether the kernel has killed
// there, where v1, v2 and hybrids have it.
func TestGroupsOfBothVersions(t *testing.T) {
	t.Parallel()
	v1 := map[string]string{
		"memory/cgroup.procs": "", "pids/cgroup.procs": "1\n",
		"memory/{}/cgroup.procs": "7\n8\n", "pids/{}/cgroup.procs": "7\n8\n",
		"memory/{}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
	}
	hybrid := map[string]string{"unified/cgroup.procs": "", "unified/cgroup.controllers": "hugetlb\n"}
	accounted := map[string]string{"memory/memory.memsw.limit_in_bytes": "9223372036854771712\n"}
	for name, test := range map[string]struct {
		files []map[string]string
		kills string // the file that tells of kills
		text  string // in it, once there was one
		swap  bool
	}{
		"v1":               {[]map[string]string{v1}, "memory/{}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", false},
		"v1, swap counted": {[]map[string]string{v1, accounted}, "memory/{}/memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 3\n", true},
		"both, v1 in use":  {[]map[string]string{v1, hybrid}, "memory/{}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", false},
		"v2": {[]map[string]string{{
			"cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc\n", "cgroup.procs": "1\n", "{}/cgroup.procs": "7\n8\n",
			"{}/memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 0\noom_group_kill 0\n",
		}}, "{}/memory.events", "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := map[string]string{}
			for _, some := range test.files {
				maps.Copy(files, some)
			}
			c := fakeCgroups(t, files)
			all, err := c.processes(aGroup)
			slices.Sort(all)
			if all = slices.Compact(all); err != nil || !slices.Equal(all, []int{7, 8}) {
				t.Errorf("processes %v, %v", all, err)
			}
			if got := c.members(aGroup); !slices.Equal(got, []int{7, 8}) {
				t.Errorf("members %v", got)
			}
			if got := c.all(); !slices.Equal(got, []worker.Serial{aGroup}) {
				t.Errorf("all workers %v", got)
			}
			if got := c.limitsSwap(); got != test.swap {
				t.Errorf("bounds swap: %t, want %t", got, test.swap)
			}
			if n, _ := c.oomKills(aGroup); n != 0 {
				t.Errorf("%d kills where there was none", n)
			}
			writeGroup(t, c.mount, test.kills, test.text)
			if n, group := c.oomKills(aGroup); n != 3 || group == 0 {
				t.Errorf("%d kills in group %d, want 3", n, group)
			}
			const nobody = worker.Serial("DMN-TP-1-deadbeef-00002")
			n, _ := c.oomKills(nobody)
			if pids, err := c.processes(nobody); err != nil || len(pids)+len(c.members(nobody))+n > 0 {
				t.Errorf("of no worker: %v, %v, %d kills", pids, err, n)
			}
		})
	}
}
