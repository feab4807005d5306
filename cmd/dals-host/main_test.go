package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/dals-host/dals-host/sdk/client"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"dals-host": main})
}

// TestScripts runs testdata/script. Each script has a data folder of its own
// ($DALS_DATA_DIR) and real plugins in $PLUGINS; whatever host and workers it
// leaves are ended after it.
func TestScripts(t *testing.T) {
	t.Parallel()
	plugins := sync.OnceValues(func() (string, error) { return buildPlugins(t) })
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			dir, err := plugins()
			if err != nil {
				return err
			}
			data := filepath.Join(env.WorkDir, "data")
			env.Setenv("DALS_DATA_DIR", data)
			env.Setenv("PLUGINS", dir)
			env.Setenv("NO_COLOR", "1")
			// Under the race detector every command would sleep a second at its end.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			env.Defer(func() { endAll(t, env, data) })
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "eventually": eventually, "field": field, "flip": flip, "alive": alive,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
	})
}

// buildPlugins builds what scripts drop into a host, once.
func buildPlugins(t *testing.T) (string, error) {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", dir, "../../plugins/template")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build plugin: %w\n%s", err, said)
	}
	wanderer := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "dals-worker-wanderer"), "-ldflags", "-X 'main.asks=egress:example.org:443 mount:/mnt/photos mount:/mnt/inbox'", "../../internal/e2e/wanderer")
	wanderer.Env = build.Env
	if said, err := wanderer.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build plugin: %w\n%s", err, said)
	}
	return dir, os.Rename(filepath.Join(dir, "template"), filepath.Join(dir, "dals-worker-template"))
}

// endAll ends what runs on a data folder; a host that is gone is started again
// for it, since only a host may end workers.
func endAll(t *testing.T, env *testscript.Env, data string) {
	if _, err := os.Stat(filepath.Join(data, "registry.db")); errors.Is(err, fs.ErrNotExist) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	command := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "dals-host", append(args, "--data-dir", data)...)
		cmd.Env = env.Vars
		cmd.Path = filepath.Join(envPath(env), "dals-host")
		return cmd
	}
	if command("down", "--timeout", "1s").Run() == nil {
		return
	}
	serve := command("serve", "--launcher", "process")
	if err := serve.Start(); err != nil {
		t.Errorf("end what runs on %s: %v", data, err)
		return
	}
	var err error
	for err = errors.New("not tried"); err != nil && ctx.Err() == nil; {
		err = command("down", "--timeout", "1s").Run()
	}
	if err != nil {
		t.Errorf("end what runs on %s: %v", data, err)
		serve.Process.Kill()
	}
	serve.Wait()
}

// envPath is where testscript put the commands under test.
func envPath(env *testscript.Env) string {
	first, _, _ := strings.Cut(env.Getenv("PATH"), string(filepath.ListSeparator))
	return first
}

// exits runs a command and wants the exit code: exits 2 dals-host forge.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG]...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("run %s: %v", args[1], err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// eventually runs a command until it succeeds, or with ! until it fails, for at
// most a minute.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	for end := time.Now().Add(time.Minute); ; <-time.After(50 * time.Millisecond) {
		err := ts.Exec(args[0], args[1:]...)
		if (err != nil) == neg {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s: %v, still", strings.Join(args, " "), err)
		}
	}
}

// field sets an environment variable to a field of a JSON file: field SERIAL
// stdout worker_serial.
func field(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: field VARIABLE FILE KEY")
	}
	var object map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &object))
	value, ok := object[args[2]]
	if !ok {
		ts.Fatalf("no %q in %s", args[2], args[1])
	}
	ts.Setenv(args[0], fmt.Sprint(value))
}

// flip changes one bit in the middle of a file, or at an offset.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: flip FILE [OFFSET]")
	}
	path := ts.MkAbs(args[0])
	data, err := os.ReadFile(path)
	ts.Check(err)
	at := len(data) / 2
	if len(args) == 2 {
		at, err = strconv.Atoi(args[1])
		ts.Check(err)
	}
	data[at] ^= 1
	info, err := os.Stat(path)
	ts.Check(err)
	ts.Check(os.WriteFile(path, data, info.Mode().Perm()))
}

// alive wants a process below the data folder, or with ! none: alive FOLDER.
func alive(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] alive FOLDER")
	}
	var found []string
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	ts.Check(err)
	for _, link := range links {
		// Processes end while they are looked at.
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, ts.MkAbs(args[0])+"/") {
			found = append(found, link+" -> "+to)
		}
	}
	if (len(found) == 0) != neg {
		ts.Fatalf("%d open files below %s: %v", len(found), args[0], found)
	}
}

// command runs one command line in this process.
func command(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

// TestHelp: every command says in one line what it does and shows an example.
func TestHelp(t *testing.T) {
	t.Parallel()
	root := newRoot(&app{})
	for _, cmd := range append(root.Commands(), root) {
		for _, c := range append(cmd.Commands(), cmd) {
			path := strings.Fields(c.CommandPath())[1:]
			code, out, errs := command(t, "", append(path, "--help")...)
			if code != 0 || errs != "" || c.Short == "" || !strings.Contains(out, "Usage:") {
				t.Errorf("%s --help: exit %d, stderr %q", c.CommandPath(), code, errs)
			}
			if !strings.Contains(out, "Examples:\n  dals-host") && !strings.Contains(out, "Examples:\n  echo") {
				t.Errorf("%s --help shows no example", c.CommandPath())
			}
			if strings.HasSuffix(c.Short, ".") {
				t.Errorf("%s: %q ends with a full stop", c.CommandPath(), c.Short)
			}
		}
	}
}

// TestInterrupted: Ctrl-C is told as such, whatever it interrupted.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := &app{stderr: &bytes.Buffer{}}
	if code := a.report(ctx, newRoot(a), fmt.Errorf("forge: %w", ctx.Err())); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if got := fmt.Sprint(a.stderr); got != "error: interrupted\n" {
		t.Errorf("stderr %q", got)
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		code int
		want string
	}{
		{nil, 0, ""},
		{usagef("no"), 2, "error: no\nhint: run dals-host --help\n"},
		{withHint(usagef("no"), "do"), 2, "error: no\nhint: do\n"},
		{errors.Join(errors.New("a\x1b[31m"), errors.New("b\r")), 1, "error: a[31m; b\n"},
		{fmt.Errorf("send: %w", &client.Error{Message: "m", Hint: "h\u202e"}), 1, "error: send: m\nhint: h\n"},
	} {
		var errs bytes.Buffer
		a := &app{stderr: &errs}
		if code := a.report(t.Context(), newRoot(a), test.err); code != test.code || errs.String() != test.want {
			t.Errorf("%v: exit %d, %q, want %d, %q", test.err, code, errs.String(), test.code, test.want)
		}
	}
}
