package pidfd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Stat is the part of /proc/<pid>/stat that tells processes apart.
type Stat struct {
	State   byte // of its first thread
	Parent  int
	Session int
	Threads int
	Start   uint64 // clock ticks after boot
}

// Ended says that the process runs no more, though its number is still taken. One
// whose first thread alone has ended is a zombie too, but it runs.
func (s Stat) Ended() bool { return (s.State == 'Z' || s.State == 'X') && s.Threads <= 1 }

// ReadStat reads the Stat of the process with number pid. It is os.ErrNotExist
// or ESRCH where there is none.
func ReadStat(pid int) (Stat, error) {
	data, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return Stat{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	st, err := parseStat(data)
	if err != nil {
		return Stat{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	return st, nil
}

// parseStat reads proc_pid_stat(5). The name in field 2 is the process's own
// choice and may hold anything, so fields are counted from its last ')'.
func parseStat(data []byte) (Stat, error) {
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return Stat{}, errors.New("stat without a name")
	}
	fields := strings.Fields(string(data[end+1:]))
	const state, parent, session, threads, start = 0, 1, 3, 17, 19 // fields 3, 4, 6, 20 and 22
	if len(fields) <= start || len(fields[state]) != 1 {
		return Stat{}, errors.New("stat is cut short")
	}
	var st Stat
	var errs [4]error
	st.State = fields[state][0]
	st.Parent, errs[0] = strconv.Atoi(fields[parent])
	st.Session, errs[1] = strconv.Atoi(fields[session])
	st.Threads, errs[2] = strconv.Atoi(fields[threads])
	st.Start, errs[3] = strconv.ParseUint(fields[start], 10, 64)
	return st, errors.Join(errs[:]...)
}

// Each calls visit for every process there is that has not ended.
func Each(visit func(pid int, st Stat)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if st, err := ReadStat(pid); err == nil && !st.Ended() {
			visit(pid, st)
		}
	}
	return nil
}

// Cmdline is the argument list of a process; nil if it cannot be read.
func Cmdline(pid int) []string { return readList(procFile(pid, "cmdline")) }

// Environ is the environment that a process was started with; nil if it cannot
// be read.
func Environ(pid int) []string { return readList(procFile(pid, "environ")) }

// UID is the real uid of a process.
func UID(pid int) (int, bool) {
	data, err := os.ReadFile(procFile(pid, "status"))
	if err != nil {
		return 0, false
	}
	_, line, found := bytes.Cut(data, []byte("\nUid:\t")) // a newline in the name is escaped
	if !found {
		return 0, false
	}
	first, _, _ := bytes.Cut(line, []byte("\t"))
	uid, err := strconv.Atoi(string(first))
	return uid, err == nil
}

func readList(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	const enough = 64 << 10 // what a process wrote there may be huge
	data, err := io.ReadAll(io.LimitReader(f, enough))
	if err != nil || len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
