// Command testworker is a worker that does as it is told: the other half of
// launchtest. Its socket takes one command a connection, a line of words, and
// answers with one line of JSON. A command in state/command is obeyed at start,
// before there is a socket.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/launchtest/report"
)

func main() {
	if len(os.Args) > 1 {
		actAsChild(os.Args[1])
		return
	}
	fmt.Fprintln(os.Stderr, "testworker:", run(os.Getenv(launch.EnvDir)))
	os.Exit(1)
}

// actAsChild is all that a child of the worker does.
func actAsChild(what string) {
	if n, err := strconv.Atoi(what); err == nil {
		_ = bytes.Repeat([]byte{1}, n<<20)
		return
	}
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP)
	time.Sleep(time.Hour)
}

// run serves until it cannot, and says why.
func run(dir string) error {
	w := &worker{dir: dir, held: make(map[string][]byte)}
	w.onTerm()
	if err := w.count(); err != nil {
		return err
	}
	fmt.Println("testworker: started")
	if line, err := os.ReadFile(filepath.Join(dir, launch.StateDir, "command")); err == nil {
		w.obey(strings.Fields(string(line)))
	}
	socket := filepath.Join(dir, launch.RunDir, launch.SocketFile)
	_ = os.Remove(socket) // of an earlier run
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go w.serve(conn)
	}
}

type worker struct {
	dir  string
	held map[string][]byte
	open []*os.File
}

// onTerm exits with 0 on SIGTERM, until told to ignore it.
func (w *worker) onTerm() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		os.Exit(0)
	}()
}

// count leaves one line in state/starts for every start.
func (w *worker) count() error {
	f, err := os.OpenFile(filepath.Join(w.dir, launch.StateDir, "starts"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, os.Getpid())
	return err
}

func (w *worker) serve(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	answer, err := json.Marshal(w.obey(strings.Fields(line)))
	if err != nil {
		answer = []byte(strconv.Quote(err.Error()))
	}
	_, _ = conn.Write(append(answer, '\n'))
}

func (w *worker) obey(words []string) any {
	if len(words) == 0 {
		return "no command"
	}
	arg := ""
	if len(words) > 1 {
		arg = words[1]
	}
	n, _ := strconv.Atoi(arg)
	switch words[0] {
	case "ping":
	case "exit":
		os.Exit(n)
	case "ignore-term":
		signal.Ignore(syscall.SIGTERM)
	case "flood":
		mark := byte('x')
		if len(words) > 2 {
			mark = words[2][0]
		}
		flood(n, mark)
	case "close-stdout":
		_ = os.Stdout.Close()
	case "lure":
		return w.lure(n)
	case "lured":
		return w.lured()
	case "allocate":
		w.held["allocate"] = bytes.Repeat([]byte{1}, n<<20)
	case "allocate-apart":
		return allocateApart(arg)
	case "fork":
		return start(slices.Repeat([]syscall.SysProcAttr{{Setsid: true}}, n), os.Environ())
	case "fill", "hide":
		return w.fill(words[0] == "hide", n)
	case "files":
		return w.files(n)
	case "disguise":
		return disguise()
	case "report":
		return report.Make()
	case "write":
		return tryWrite(arg)
	case "read":
		return tryRead(arg)
	case "execute":
		return tryExecute(arg)
	case "syscalls":
		return report.Syscalls()
	default:
		return "unknown command"
	}
	return "ok"
}

// fill writes n MiB to a file in state/; a hidden one has no name.
func (w *worker) fill(hidden bool, n int) string {
	path := filepath.Join(w.dir, launch.StateDir, "full")
	f, err := os.Create(path)
	if err != nil {
		return err.Error()
	}
	if hidden {
		if err := os.Remove(path); err != nil {
			return err.Error()
		}
	}
	w.open = append(w.open, f)
	if _, err := f.Write(bytes.Repeat([]byte{1}, n<<20)); err != nil {
		return err.Error()
	}
	return "ok"
}

// files makes n empty files in state/, in folders of folders.
func (w *worker) files(n int) string {
	for i := range n {
		dir := filepath.Join(w.dir, launch.StateDir, strconv.Itoa(i%7), strconv.Itoa(i%5))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err.Error()
		}
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), nil, 0o600); err != nil {
			return err.Error()
		}
	}
	return "ok"
}

// flood writes n bytes in lines, alternately to stdout and stderr.
func flood(n int, mark byte) {
	line := append(bytes.Repeat([]byte{mark}, 1023), '\n')
	for i := range n / len(line) {
		out := os.Stdout
		if i%2 == 1 {
			out = os.Stderr
		}
		_, _ = out.Write(line)
	}
}

// lure has a pipe of its own, with n bytes in it, for its stdout.
func (w *worker) lure(n int) string {
	from, to, err := os.Pipe()
	if err != nil {
		return err.Error()
	}
	w.open = append(w.open, from, to)
	if err := syscall.Dup3(int(to.Fd()), 1, 0); err != nil {
		return err.Error()
	}
	if _, err := to.Write(make([]byte, n)); err != nil {
		return err.Error()
	}
	return "ok"
}

// lured is how many bytes are in it still.
func (w *worker) lured() any {
	n, err := unix.IoctlGetInt(int(w.open[0].Fd()), unix.TIOCINQ)
	if err != nil {
		return err.Error()
	}
	return n
}

// disguise starts children that have none of the worker's descriptors: one with
// another's mark, and one with no environment in namespaces of its own.
func disguise() report.Fork {
	for fd := 3; fd <= 5; fd++ {
		syscall.CloseOnExec(fd)
	}
	r := start([]syscall.SysProcAttr{{Setsid: true}}, []string{"DALS_WORKER_MARK=x"})
	more := start([]syscall.SysProcAttr{{Setsid: true, Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID}}, []string{})
	return report.Fork{Started: r.Started + more.Started, Error: r.Error + more.Error}
}

// start starts children that are deaf to SIGTERM, and tells how many there are
// and the first error.
func start(children []syscall.SysProcAttr, env []string) report.Fork {
	var r report.Fork
	for _, attr := range children {
		cmd := exec.Command("/proc/self/exe", "linger")
		cmd.Args[0] = os.Args[0] + " child" // launchtest knows a worker's processes by the serial there
		cmd.Env = env
		cmd.SysProcAttr = &attr
		if err := cmd.Start(); err != nil {
			r.Error = err.Error()
			break
		}
		r.Started++
	}
	return r
}

// allocateApart has a child take n MiB, and tells how it ended.
func allocateApart(n string) string {
	cmd := exec.Command("/proc/self/exe", n)
	cmd.Args[0] = os.Args[0] + " child"
	if err := cmd.Run(); err != nil {
		return err.Error()
	}
	return "ok"
}

func tryWrite(path string) string {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if _, err := f.WriteString("written"); err != nil {
		return err.Error()
	}
	return "ok"
}

func tryExecute(path string) string {
	if err := exec.Command(path).Run(); err != nil {
		return err.Error()
	}
	return "ok"
}

func tryRead(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	if info.IsDir() {
		_, err = os.ReadDir(path)
	} else {
		_, err = os.ReadFile(path)
	}
	if err != nil {
		return err.Error()
	}
	return "ok"
}
