// Command plugin is the plugin of the catalog's tests. What it does is told by a
// JSON document after the last newline of its own binary, so that one build
// makes any number of plugins, good and bad.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"golang.org/x/sys/unix"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
	"github.com/dals-host/dals-host/sdk/wire"
)

type script struct {
	Do      string // what to do instead of serving
	Line    string // printed on stdout
	Version uint   // of the protocol
	Cookie  string
	Type    workerv1.TypeDescriptor
}

func main() {
	s := readScript()
	switch s.Do {
	case "print":
		fmt.Print(strings.ReplaceAll(s.Line, "PROBE", os.Getenv(plugin.EnvUnixSocketDir)))
	case "panic":
		panic("the goat ate the config")
	case "exit":
		fmt.Fprintln(os.Stderr, "cannot find my config")
		os.Exit(3)
	case "hang":
		time.Sleep(time.Hour)
	case "fork":
		fork()
	case "fork bomb":
		for bomb() == nil {
		}
		time.Sleep(time.Hour)
	case "memory bomb":
		held := make([]byte, 4<<30)
		for i := 0; i < len(held); i += 4096 {
			held[i] = 1
		}
	case "read", "append", "create", "truncate":
		panic(fmt.Sprint(s.Do, ": ", touch(s.Do, s.Line)))
	case "dial", "listen", "mptcp", "udp", "io_uring", "abstract", "signal":
		panic(fmt.Sprint(s.Do, ": ", reach(s.Do, s.Line)))
	case "write":
		panic(fmt.Sprint(writable()))
	case "network":
		_, err := net.Dial("tcp", s.Line)
		panic(err)
	case "symlink":
		dir := os.Getenv(plugin.EnvUnixSocketDir)
		if err := os.Symlink("/run/somebody.sock", dir+"/s"); err != nil {
			panic(err)
		}
		fmt.Printf("1|1|unix|%s/s|grpc\n", dir)
	case "deaf":
		dir := os.Getenv(plugin.EnvUnixSocketDir)
		if _, err := net.Listen("unix", dir+"/s"); err != nil {
			panic(err)
		}
		fmt.Printf("1|1|unix|%s/s|grpc\n", dir)
		time.Sleep(time.Hour)
	case "linger":
		time.Sleep(time.Minute)
		return
	default:
		if s.Line != "" {
			fmt.Println(s.Line)
		}
	}
	if s.Do == "print" || s.Do == "symlink" {
		time.Sleep(time.Minute)
	}
	serve(s)
}

func readScript() *script {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		panic(err)
	}
	defer self.Close()
	end, _ := self.Seek(0, io.SeekEnd)
	tail := make([]byte, min(end, 1<<16))
	if _, err := self.ReadAt(tail, end-int64(len(tail))); err != nil {
		panic(err)
	}
	s := &script{}
	if os.Getenv("LINGER") != "" {
		s.Do = "linger"
		return s
	}
	if err := json.Unmarshal(tail[bytes.LastIndexByte(tail, '\n')+1:], s); err != nil {
		panic(err)
	}
	return s
}

// bomb starts one more of itself.
func bomb() error { return exec.Command("/proc/self/exe").Start() }

// touch tries one thing with a folder, or the file f in it.
func touch(what, dir string) (err error) {
	switch what {
	case "read":
		_, err = os.ReadFile(dir + "/f")
	case "append":
		_, err = os.OpenFile(dir+"/f", os.O_WRONLY|os.O_APPEND, 0)
	case "create":
		_, err = os.Create(dir + "/h")
	case "truncate":
		err = os.Truncate(dir+"/f", 0)
	}
	return err
}

// reach tries to get at somebody: by an address, or its parent by a signal.
func reach(how, address string) (err error) {
	switch how {
	case "dial":
		_, err = net.Dial("tcp", address)
	case "mptcp":
		_, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
	case "udp":
		_, err = net.ListenPacket("udp", "127.0.0.1:0")
	case "io_uring":
		var p [120]byte
		if _, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0); errno != 0 {
			err = errno
		}
	case "listen":
		_, err = net.Listen("tcp", "127.0.0.1:0")
	case "abstract":
		_, err = net.Dial("unix", address)
	case "signal":
		err = syscall.Kill(os.Getppid(), 0)
	}
	return err
}

// writable are the folders that it could make a file in, and what of the machine's
// it can see.
func writable() (found []string) {
	for _, dir := range []string{"/", "/etc", "/var/tmp", "/dev", "/dev/shm", "/run", "/root", "/home", "/proc/sys/kernel"} {
		f, err := os.CreateTemp(dir, "hostile")
		if err == nil {
			found = append(found, f.Name())
			_ = os.Remove(f.Name())
		}
	}
	for _, file := range []string{"/etc/passwd", "/var/log", "/usr/bin"} {
		if _, err := os.Stat(file); err == nil {
			found = append(found, file)
		}
	}
	return found
}

// fork leaves a child in a session of its own that holds stdout open.
func fork() {
	child := exec.Command("/proc/self/exe")
	child.Env = []string{"LINGER=1"}
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		panic(err)
	}
}

func serve(s *script) {
	handshake := wire.Handshake()
	if s.Version != 0 {
		handshake.ProtocolVersion = s.Version
	}
	if s.Cookie != "" {
		handshake.MagicCookieValue = s.Cookie
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: handshake,
		Plugins:         wire.PluginSet(&describer{script: s}),
		GRPCServer:      plugin.DefaultGRPCServer,
		Logger:          hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: os.Stderr}),
	})
}

type describer struct {
	workerv1.UnimplementedPluginServiceServer
	script *script
}

func (d *describer) Describe(context.Context, *workerv1.DescribeRequest) (*workerv1.DescribeResponse, error) {
	t := &d.script.Type
	switch d.script.Do {
	case "panic describing":
		panic("the goat ate the descriptor")
	case "hang describing":
		time.Sleep(time.Hour)
	case "huge":
		t.ConfigSchema = bytes.Repeat([]byte(" "), 20<<20)
	case "tell":
		t.Summary = tell()
	}
	return &workerv1.DescribeResponse{Descriptor_: t}, nil
}

// tell says how it is confined, in one line.
func tell() string {
	var told []string
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		for _, key := range []string{"Uid:", "Groups:", "NoNewPrivs:"} {
			if strings.HasPrefix(line, key) {
				told = append(told, strings.Join(strings.Fields(line), "_"))
			}
		}
	}
	limits, _ := os.ReadFile("/proc/self/limits")
	for line := range strings.Lines(string(limits)) {
		for _, key := range []string{"Max core", "Max data", "Max processes"} {
			if strings.HasPrefix(line, key) {
				told = append(told, strings.Join(strings.Fields(line), "_"))
			}
		}
	}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		told = append(told, "$"+name)
	}
	interfaces, _ := net.Interfaces()
	told = append(told, fmt.Sprintf("pid_%d", os.Getpid()), fmt.Sprintf("interfaces_%d", len(interfaces)))
	return strings.Join(told, " ")
}
