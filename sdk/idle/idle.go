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
	pages := programPages() // first: to read about them takes memory
	debug.FreeOSMemory()
	for _, m := range pages {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED)
	}
}

func programPages() []mapping {
	program, err := os.Executable()
	if err != nil {
		return nil
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return nil
	}
	defer maps.Close()
	return unchanged(maps, program)
}

// mapping is a part of the process's memory.
type mapping struct {
	from, to  uintptr
	unchanged bool // it is as the program's file is
}

// unchanged are the mappings of the program that are as its file is. That the process
// cannot write to one is not enough: a dynamic linker could before. Other files' are
// left alone: what is unmapped meanwhile may be memory by the time that it is given
// back, and the program is never unmapped. The format is that of proc_pid_smaps(5).
func unchanged(smaps io.Reader, program string) (all []mapping) {
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
				m = newMapping(from, to)
				access, _, _ := strings.Cut(value, " ")
				m.unchanged = m.to > m.from && !strings.Contains(access, "w") && strings.HasSuffix(value, " "+program)
			}
		}
	}
	return all
}

// newMapping is one that reaches from here to there; empty where that cannot be read.
func newMapping(from, to string) mapping {
	low, lowErr := strconv.ParseUint(from, 16, 64)
	high, highErr := strconv.ParseUint(to, 16, 64)
	if lowErr != nil || highErr != nil {
		return mapping{}
	}
	return mapping{from: uintptr(low), to: uintptr(high)}
}
