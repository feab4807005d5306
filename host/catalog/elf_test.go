package catalog

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"testing"
)

func TestELFOfThisMachine(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/bin/true", "/proc/self/exe"} {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkELF(bytes.NewReader(data), int64(len(data))); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		// Cut anywhere before the end of its last section, it is noticed.
		for _, n := range []int{1, 63, 64, 65, 1000, len(data) / 2, len(data) - len(data)/16} {
			if err := checkELF(bytes.NewReader(data[:n]), int64(n)); err == nil {
				t.Errorf("%s cut to %d of %d bytes passes", path, n, len(data))
			}
		}
	}
}

func FuzzELF(f *testing.F) {
	whole, err := os.ReadFile("/bin/true")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole[:min(len(whole), 2048)], int64(len(whole)))
	f.Add(whole[:64], int64(64))
	f.Add([]byte("\x7fELF"), int64(4))
	f.Add([]byte("#!/bin/sh"), int64(9))
	for _, at := range []int{18, 32, 40, 54, 56, 58, 60} { // tables of any size, anywhere
		bent := bytes.Clone(whole[:2048])
		copy(bent[at:], "\xff\xff\xff\xff\xff\xff\xff\xff")
		f.Add(bent, int64(1<<62))
	}
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		// The file may be shorter than it was: that is no trouble of the host's.
		size = max(size, int64(len(data)))
		err := checkELF(bytes.NewReader(data), size)
		var fault *Fault
		if err != nil && !errors.As(err, &fault) {
			t.Fatalf("no fault: %v", err)
		}
		if err == nil && (!bytes.HasPrefix(data, []byte("\x7fELF\x02\x01")) || len(data) < 64+56 || runtime.GOARCH == "amd64" && data[18] != 62) {
			t.Fatalf("passes: %x", data)
		}
	})
}
