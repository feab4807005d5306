package record

import (
	"bufio"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/mod/sumdb/note"
)

// crashEnv makes the test binary a host that publishes until it is killed.
const crashEnv = "DALS_TEST_RECORD_CRASH"

// publishUntilKilled goes on from what is in the working folder, without a
// pause, with rows that keep coming.
func publishUntilKilled() {
	const dir = "."
	ctx := context.Background()
	_, c, err := folder(dir).checkpoint()
	if err != nil {
		c.Size = 0
	}
	s := newRows(c.Size + 50)
	signer, err := note.NewSigner(testSigner)
	if err != nil {
		panic(err)
	}
	l, err := Open(ctx, Config{Dir: dir, Signer: signer, Source: s, Logger: hclog.NewNullLogger()})
	if err != nil {
		panic(err)
	}
	l.pause = 0
	go func() {
		for range time.Tick(time.Millisecond) {
			s.grow(20)
		}
	}()
	_, _ = os.Stdout.WriteString("opened\n")
	panic(l.Run(ctx))
}

func TestKilledWhilePublishing(t *testing.T) {
	t.Parallel()
	const crashes = 20
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	leftovers := 0
	for range crashes {
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Env = append(os.Environ(), crashEnv+"=1")
		cmd.Dir = dir
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("child said %q: %v", line, err)
		}
		timer := time.NewTimer(time.Duration(rand.IntN(60_000)) * time.Microsecond)
		<-timer.C
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		// Whatever the moment was, nothing looks tampered with.
		_, c, err := folder(dir).checkpoint()
		if err != nil {
			t.Fatal(err)
		}
		r := verify(t, dir, newRows(c.Size+5000))
		if len(r.Problems) > 0 {
			t.Fatalf("after a crash at %d entries: %q", c.Size, r.Problems)
		}
		leftovers += len(r.Leftovers)
	}
	_, c, err := folder(dir).checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d entries, %d files left over by %d crashes", c.Size, leftovers, crashes)
	publishIn(t, dir, newRows(c.Size+1000))
	undisturbed, _ := publish(t, c.Size+1000)
	if d := cmp.Diff(contents(t, undisturbed), contents(t, dir)); d != "" {
		t.Fatal(d)
	}
}
