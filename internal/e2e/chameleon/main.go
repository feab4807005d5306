// Command chameleon is a worker type whose version and behaviour stand behind the
// end of its own binary, so that one build gives many versions:
//
//	\nchameleon VERSION BEHAVIOUR\n
//
// The behaviours are well, fails (to open), exits and hangs (before the first
// heartbeat), strict (its config needs another field), and needs, greedy and starves
// (it asks for something, for everything, for next to nothing). It exists for the
// tests of internal/e2e only.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/dals-host/dals-host/sdk"
)

type loose struct {
	Word string `json:"word"`
}

type strict struct {
	Word string `json:"word"`
	Must string `json:"must"`
}

type none struct{}

type about struct {
	Version string `json:"version"` // of the binary that runs
	Told    string `json:"told"`    // what its identity.json says
	Word    string `json:"word"`
	Calls   int64  `json:"calls"` // over all versions
}

func main() {
	version, behaviour, err := trailer()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	config := &loose{Word: "one"}
	t := sdk.Type{
		Name: "chameleon", Version: version, Family: "CH", Summary: "Behaves as its binary says: " + behaviour + ".", Config: config,
		Tasks: []sdk.Task{sdk.Func("chameleon.about", "Tells what runs, and counts its calls in state/ and its log.", func(ctx context.Context, _ none) (about, error) {
			calls, err := count(sdk.FromContext(ctx).StateDir() + "/calls")
			sdk.FromContext(ctx).Logger().Info("was asked", "n", calls)
			return about{Version: version, Told: sdk.FromContext(ctx).Identity().TypeVersion, Word: config.Word, Calls: calls}, err
		})},
		Open:      func(ctx context.Context, _ *sdk.Worker) error { return open(ctx, behaviour) },
		Resources: resources(behaviour),
	}
	if behaviour == "strict" {
		t.Config = &strict{Word: "one"}
	}
	sdk.Serve(t)
}

// resources are what a worker asks for.
func resources(behaviour string) sdk.Resources {
	switch behaviour {
	case "needs":
		return sdk.Resources{MemoryBytes: 96 << 20, CPUMillis: 250, PIDs: 100}
	case "greedy":
		return sdk.Resources{MemoryBytes: 1 << 40, CPUMillis: 1 << 20, PIDs: 1 << 22}
	case "starves":
		return sdk.Resources{PIDs: 1}
	}
	return sdk.Resources{}
}

// trailer reads the line behind the end of the binary.
func trailer() (version, behaviour string, err error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	const enough = 100
	if _, err := f.Seek(-enough, io.SeekEnd); err != nil {
		return "", "", err
	}
	end, err := io.ReadAll(f)
	if err != nil {
		return "", "", err
	}
	lines := strings.Split(strings.TrimSpace(string(end)), "\n")
	if _, err := fmt.Sscanf(lines[len(lines)-1], "chameleon %s %s", &version, &behaviour); err != nil {
		return "", "", fmt.Errorf("no version behind the end of the binary: %w", err)
	}
	return version, behaviour, nil
}

func open(ctx context.Context, behaviour string) error {
	switch behaviour {
	case "fails":
		return errors.New("it does not want to open")
	case "exits":
		os.Exit(7)
	case "hangs":
		<-ctx.Done()
	}
	return nil
}

// count appends to a file and gives its size.
func count(path string) (int64, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.WriteString("."); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
