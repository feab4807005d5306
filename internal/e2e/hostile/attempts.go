package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// errNothing is what an attempt brings that was not refused and got nothing.
var errNothing = errors.New("nothing")

// attempts take arguments: paths, addresses, numbers.
var attempts = map[string]func(args []string) error{
	"nothing":     func([]string) error { return nil },
	"sleep":       func([]string) error { time.Sleep(time.Hour); return nil },
	"read":        read,
	"list":        list,
	"write":       write,
	"append":      appendTo,
	"open":        open,
	"connect":     func(a []string) error { return dial("unix", a[0]) },
	"dial":        func(a []string) error { return dial(a[0], a[1]) },
	"send":        send,
	"socket":      socket,
	"socketpair":  socketpair,
	"signal":      func(a []string) error { return unix.Kill(number(a[0]), 0) },
	"find":        find,
	"descriptors": descriptors,
	"strangers":   strangers,
	"interfaces":  interfaces,
	"addresses":   addresses,
	"fork bomb":   forkBomb,
	"open files":  openFiles,
	"grow":        grow,
	"fill files":  fillFiles,
	"fill parts":  fillParts,
	"fill hidden": fillHidden,
	"fill named":  fillNamed,
	"status":      status,
	"burn":        burn,
	"allocate":    func(a []string) error { _, err := allocate(context.Background(), amount{number(a[0])}); return err },

	"many processes": manyProcesses,
}

func number(text string) int {
	n, _ := strconv.Atoi(text)
	return n
}

func read(a []string) error {
	f, err := os.Open(a[0])
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := f.Read(make([]byte, 16)); n == 0 {
		if err == io.EOF {
			return errNothing
		}
		return err
	}
	return nil
}

func list(a []string) error {
	entries, err := os.ReadDir(a[0])
	if err == nil && len(entries) == 0 {
		return errNothing
	}
	return err
}

// write makes a file, or overwrites one.
func write(a []string) error {
	f, err := os.OpenFile(a[0], os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("hostile")
	return err
}

func open(a []string) error {
	f, err := os.OpenFile(a[0], os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// appendTo writes a word into a file that is there.
func appendTo(a []string) error {
	f, err := os.OpenFile(a[0], os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(a[1])
	return err
}

func dial(network, address string) error {
	conn, err := net.DialTimeout(network, address, 3*time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}

func send(a []string) error {
	conn, err := net.Dial("udp", a[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("hostile"))
	return err
}

func socket(a []string) error {
	fd, err := unix.Socket(number(a[0]), number(a[1]), number(a[2]))
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

func socketpair(a []string) error {
	_, err := unix.Socketpair(number(a[0]), number(a[1]), 0)
	return err
}

// find looks for a word in every environment and command line it can see.
func find(a []string) error {
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range append(files, lines...) {
		if filepath.Dir(file) == "/proc/"+strconv.Itoa(os.Getpid()) {
			continue
		}
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte(a[0])) {
			return nil
		}
	}
	return errNothing
}

// descriptors looks for a file below a path, or a folder, that somebody has open.
func descriptors(a []string) error {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || strings.HasPrefix(target, "/proc") || strings.HasPrefix(target, "/worker") {
			continue
		}
		info, err := os.Stat(link)
		if strings.HasPrefix(target, a[0]) || err == nil && info.IsDir() {
			return errors.New("found " + target)
		}
	}
	return errNothing
}

// strangers looks for processes of others.
func strangers([]string) error {
	folders, _ := filepath.Glob("/proc/[0-9]*")
	for _, folder := range folders {
		var st unix.Stat_t
		if err := unix.Stat(folder, &st); err == nil && int(st.Uid) != os.Getuid() || os.Getuid() == 0 && filepath.Base(folder) != strconv.Itoa(os.Getpid()) {
			return nil
		}
	}
	return errNothing
}

func interfaces([]string) error {
	all, err := net.Interfaces()
	if err == nil && len(all) == 1 {
		return errNothing
	}
	return err
}

// addresses looks for an address of the kernel's that is not zero.
func addresses(a []string) error {
	text, err := os.ReadFile(a[0])
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if address := strings.Trim(strings.Fields(line)[0], "0-"); address != "" {
			return nil
		}
	}
	return errNothing
}

// forkBomb has each child make more children until no more can be had; they stay.
func forkBomb([]string) error {
	first := os.Getenv("BOMB") == ""
	if err := os.Setenv("BOMB", "1"); err != nil {
		return err
	}
	for {
		err := exec.CommandContext(context.Background(), "/proc/self/exe", "try", "fork bomb").Start()
		if err != nil && first {
			return err
		}
		if err != nil {
			time.Sleep(time.Hour)
		}
	}
}

// manyProcesses makes no more children than it is told, which stay until it ends.
func manyProcesses(a []string) error {
	for range number(a[0]) {
		child := exec.Command("/proc/self/exe", "try", "sleep")
		if err := child.Start(); err != nil {
			return err
		}
		defer func() {
			_ = child.Process.Kill()
			_ = child.Wait()
		}()
	}
	return nil
}

// status is what the kernel says of this process under a word.
func status(a []string) error {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, a[0]+":"); ok {
			return errors.New(strings.TrimSpace(value))
		}
	}
	return errNothing
}

func openFiles([]string) error {
	for n := 0; ; n++ {
		if _, err := unix.Open("/proc/self/exe", unix.O_RDONLY, 0); err != nil {
			return fmt.Errorf("%s at %d", tell(err), (n+500)/1000*1000)
		}
		if n > 1<<20 {
			return nil
		}
	}
}

// grow makes one file longer, without writing to it: its path, and how many MiB.
func grow(a []string) error {
	f, err := os.OpenFile(a[0], os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(int64(number(a[1])) << 20)
}

// fillParts writes to files of half a MiB each: a folder, and how many MiB.
func fillParts(a []string) error {
	half := bytes.Repeat([]byte{'x'}, 1<<19)
	for i := range 2 * number(a[1]) {
		if err := os.WriteFile(filepath.Join(a[0], strconv.Itoa(i)), half, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// fillFiles makes empty files: a folder, and how many.
func fillFiles(a []string) error {
	for i := range number(a[1]) {
		f, err := os.Create(filepath.Join(a[0], strconv.Itoa(i)))
		if err != nil {
			return err
		}
		f.Close()
	}
	return nil
}

// fillHidden takes space for files that have no name any more: a folder, how many
// MiB, and for how many seconds.
func fillHidden(a []string) error { return fill(a, os.Remove) }

// fillNamed is the same for files that keep their names.
func fillNamed(a []string) error { return fill(a, func(string) error { return nil }) }

func fill(a []string, made func(path string) error) error {
	const each = 256
	megabyte := make([]byte, 1<<20)
	for i := range number(a[1]) / each {
		path := filepath.Join(a[0], "filled"+strconv.Itoa(i))
		f, err := os.Create(path) // to be open until this process ends
		if err == nil {
			err = made(path)
		}
		for range each {
			if err == nil {
				_, err = f.Write(megabyte)
			}
		}
		if err != nil {
			return err
		}
	}
	time.Sleep(time.Duration(number(a[2])) * time.Second) // what it has open is its hold on the disk
	return nil
}
