// Command rogue is a worker type that misbehaves in every way that a host has to
// stand. It exists for the tests of internal/e2e only.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/sdk"
)

type amount struct {
	N int `json:"n"`
}

type text struct {
	Text string `json:"text"`
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "sleep" { // a program that needs no library, for containers of others
		time.Sleep(time.Hour)
	}
	if how, err := os.ReadFile(os.Getenv("DALS_WORKER_DIR") + "/state/doomed"); err == nil {
		fmt.Fprintln(os.Stderr, "doomed from the start")
		end(doom(how[0]))
	}
	sdk.Serve(sdk.Type{
		Name: "rogue", Version: "1.0.0", Family: "RG", Summary: "Misbehaves on request.",
		Tasks: []sdk.Task{
			sdk.Func("rogue.panic", "Panics.", panics),
			sdk.Func("rogue.hang", "Ignores its deadline and answers n ms after it began.", hang),
			sdk.Func("rogue.linger", "Says in state/ that it waits for state/end, and if SIGTERM comes meanwhile.", linger),
			sdk.Func("rogue.exit", "Ends its process with exit code n.", exit),
			sdk.Func("rogue.doom", "Ends its process with exit code 7, and each later one as it begins, by doom n, while state/doomed is there.", beDoomed),
			sdk.Func("rogue.eat", "Keeps n MiB of memory.", eat),
			sdk.Func("rogue.flood", "Writes n KiB to stdout and to stderr.", flood),
			sdk.Func("rogue.spew", "Goes on writing to stderr for n ms after it answered, and counts the MiB in state/.", spew),
			sdk.Func("rogue.huge", "Answers with n KiB.", huge),
			sdk.Func("rogue.count", "Counts its calls in state/.", count),
		},
	})
}

func panics(context.Context, amount) (text, error) { panic("as asked") }

func hang(_ context.Context, in amount) (text, error) {
	time.Sleep(time.Duration(in.N) * time.Millisecond) // deaf to its context: that is the misbehaviour
	return text{"too late"}, nil
}

func linger(ctx context.Context, _ amount) (text, error) {
	state := sdk.FromContext(ctx).StateDir()
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	defer signal.Stop(told)
	if err := os.WriteFile(state+"/lingers", nil, 0o600); err != nil {
		return text{}, err
	}
	for {
		if _, err := os.Stat(state + "/end"); err == nil {
			return text{"it ends well"}, nil
		}
		select {
		case <-told:
			if err := os.WriteFile(state+"/told", nil, 0o600); err != nil {
				return text{}, err
			}
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func eat(_ context.Context, in amount) (text, error) {
	var kept [][]byte
	for range in.N {
		kept = append(kept, bytes.Repeat([]byte{1}, 1<<20)) // written, so that it is really there
	}
	return text{fmt.Sprintf("%d MiB", len(kept))}, nil
}

func exit(_ context.Context, in amount) (text, error) {
	os.Exit(in.N)
	return text{}, nil
}

// doom is how a process ends.
type doom byte

const (
	byExit doom = iota
	bySignal
	byMemory
)

func beDoomed(ctx context.Context, in amount) (text, error) {
	if err := os.WriteFile(sdk.FromContext(ctx).StateDir()+"/doomed", []byte{byte(in.N)}, 0o600); err != nil {
		return text{}, err
	}
	return exit(ctx, amount{7})
}

func end(d doom) {
	switch d {
	case bySignal:
		// No signal of its own ends the first process of a container; the kernel's does.
		second := &syscall.Rlimit{Cur: 1, Max: 1}
		if err := syscall.Setrlimit(unix.RLIMIT_CPU, second); err != nil {
			panic(err)
		}
		for began := time.Now(); time.Since(began) < time.Hour; {
		}
	case byMemory:
		_, _ = eat(context.Background(), amount{1 << 20})
	}
	os.Exit(9)
}

func flood(_ context.Context, in amount) (text, error) {
	line := strings.Repeat("x", 1023)
	for range in.N {
		fmt.Println(line)
		fmt.Fprintln(os.Stderr, line)
	}
	return text{"written"}, nil
}

func spew(ctx context.Context, in amount) (text, error) {
	path := sdk.FromContext(ctx).StateDir() + "/spewed"
	go func() {
		line := strings.Repeat("x", 1023) + "\n"
		for mib, until := 1, time.Now().Add(time.Duration(in.N)*time.Millisecond); time.Now().Before(until); mib++ {
			for range 1 << 10 {
				_, _ = os.Stderr.WriteString(line)
			}
			_ = os.WriteFile(path, fmt.Append(nil, mib), 0o600)
		}
		_ = os.WriteFile(path+"-end", nil, 0o600)
	}()
	return text{"writing"}, nil
}

func huge(_ context.Context, in amount) (text, error) {
	return text{strings.Repeat("x", in.N<<10)}, nil
}

func count(ctx context.Context, _ amount) (amount, error) {
	path := sdk.FromContext(ctx).StateDir() + "/count"
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return amount{}, err
	}
	defer f.Close()
	if _, err := f.WriteString("."); err != nil {
		return amount{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return amount{}, err
	}
	return amount{int(info.Size())}, nil
}
