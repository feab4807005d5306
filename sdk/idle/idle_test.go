package idle

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestUnchanged: only what is as the program's file is is given back.
func TestUnchanged(t *testing.T) {
	var text strings.Builder
	const program = "/a name: with spaces"
	for _, m := range []struct {
		head            string
		anonymous, swap int
	}{
		{"00400000-00a4b000 r-xp 00000000 fe:00 10226046                           " + program, 0, 0},
		{"00a4b000-011a6000 r--p 0064b000 fe:00 10226046                           " + program, 0, 0},
		{"011a6000-011a7000 r--p 00da6000 fe:00 10226046                           " + program, 4, 0}, // relocated
		{"011a7000-011a8000 r--p 00da6000 fe:00 10226046                           " + program, 0, 4}, // and swapped
		{"011a8000-01217000 rw-p 00da6000 fe:00 10226046                           " + program, 0, 0},
		{"01217000-0325d000 rw-p 00000000 00:00 0 ", 0, 0},
		{"7ffd1c9e6000-7ffd1c9ea000 r-xp 00000000 fe:00 10226047                   /lib/another", 0, 0},
		{"7ffd1c9ea000-7ffd1c9ec000 r-xp 00000000 00:00 0                          [vdso]", 0, 0},
	} {
		fmt.Fprintf(&text, "%s\nSize:   12 kB\nAnonymous:  %d kB\nFilePmdMapped: 0 kB\nSwap:     %d kB\nVmFlags: rd ex mr\n", m.head, m.anonymous, m.swap)
	}
	want := []mapping{{0x400000, 0xa4b000, true}, {0xa4b000, 0x11a6000, true}}
	if got := unchanged(strings.NewReader(text.String()), program); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	const broken = "nothing of this\nVmFlags:\nno-where r-xp 0 fe:00 1 " + program + "\nVmFlags: \n0-1 r-xp\nVmFlags: rd\n2-1 r-xp 0 fe:00 1 " + program + "\nVmFlags: rd\n"
	if got := unchanged(strings.NewReader(broken), program); got != nil {
		t.Errorf("%+v", got)
	}
}

// TestGiveBack: the program's pages go, and the process, with libraries that were
// relocated where it has any, and with all that it has written, goes on.
func TestGiveBack(t *testing.T) {
	kept := bytes.Repeat([]byte("kept"), 1<<20)
	before := resident(t)
	GiveBack()
	if after := resident(t); after >= before {
		t.Errorf("%d KiB of files were resident, and are %d", before, after)
	}
	if bytes.Count(kept, []byte("kept")) != 1<<20 {
		t.Error("what it has written has gone")
	}
}

// resident is how much of files this process has in memory, in KiB: proc_pid_status(5).
func resident(t *testing.T) (kib int) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "RssFile:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return kib
}
