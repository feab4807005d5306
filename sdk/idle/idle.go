// Package idle is for processes of which a machine has many, most of them idle.
package idle

import (
	"bufio"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// GiveBack gives the machine the memory that this process does not need at the moment:
// what Go keeps of it, and the pages of the program, which come back from the kernel's
// cache of files when they are used. It takes about 2 ms of CPU. Where the kernel does
// not tell of the pages they stay.
func GiveBack() {
	defer debug.FreeOSMemory() // the last: to read about mappings takes memory
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer maps.Close()
	for _, m := range unchanged(maps) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED)
	}
}

// mapping is a part of the process's memory.
type mapping struct {
	from, to  uintptr
	unchanged bool // it is a file's that cannot be written to, and was not
}

// unchanged are the mappings that are as their files are: that the process cannot write
// to one now is not enough, for a dynamic linker could before. The format is that of
// proc_pid_smaps(5).
func unchanged(smaps io.Reader) (all []mapping) {
	var m mapping
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		switch name {
		case "Anonymous:", "Swap:": // what it has of its own there
			m.unchanged = m.unchanged && strings.TrimSpace(value) == "0 kB"
		case "VmFlags:": // the last
			if m.unchanged {
				all = append(all, m)
			}
		default:
			if from, to, ok := strings.Cut(name, "-"); ok {
				m = newMapping(from, to, strings.Fields(value))
			}
		}
	}
	return all
}

// newMapping is one that reaches from here to there; access, offset, device and inode
// follow. It counts as changed where that cannot be read.
func newMapping(from, to string, rest []string) (m mapping) {
	low, lowErr := strconv.ParseUint(from, 16, 64)
	high, highErr := strconv.ParseUint(to, 16, 64)
	if lowErr != nil || highErr != nil || len(rest) < 4 {
		return mapping{}
	}
	return mapping{uintptr(low), uintptr(high), !strings.Contains(rest[0], "w") && rest[3] != "0"}
}
