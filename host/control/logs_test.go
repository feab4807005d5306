package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/dals-host/dals-host/host/control"
	"github.com/dals-host/dals-host/host/internal/workerlog"
	"github.com/dals-host/dals-host/host/worker"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// logHost serves the log of a file; it may grow while it is followed.
func logHost(t *testing.T, content string) (hostv1.HostServiceClient, running, string) {
	t.Helper()
	folders := oneFolder(t.TempDir())
	path := filepath.Join(string(folders), "worker.log")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	logs := workerlog.New(folders, "worker.log", hclog.NewNullLogger())
	s := serve(t, &backend{log: func(ref string) (control.Log, error) {
		if ref != "nora" {
			return nil, fmt.Errorf("worker %s: %w", ref, worker.ErrNotFound)
		}
		return logs.Open("")
	}}, filepath.Join(privateDir(t), "s"))
	return dial(t, s.socket), s, path
}

// oneFolder is the folder of the one worker that there is.
type oneFolder string

func (f oneFolder) Instances() ([]worker.Serial, error)      { return []worker.Serial{""}, nil }
func (f oneFolder) Dir(worker.Serial) string                 { return string(f) }
func (f oneFolder) OpenRoot(worker.Serial) (*os.Root, error) { return os.OpenRoot(string(f)) }

func readLogs(t *testing.T, h hostv1.HostServiceClient, r *hostv1.StreamLogsRequest) []string {
	t.Helper()
	stream, err := h.StreamLogs(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for {
		batch, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, batch.GetLines()...)
	}
}

func TestLogs(t *testing.T) {
	line := func(second int) string {
		return fmt.Sprintf(`{"@timestamp":"2026-01-01T00:00:%02d.000000Z","@message":"m"}`, second)
	}
	content := "first\n" + line(1) + "\n\ttrace of 1\n" + line(3) + "\n\ttrace of 3\xff\x1b[31m\r\nno end"
	h, _, _ := logHost(t, content)
	all := []string{"first", line(1), "\ttrace of 1", line(3), "\ttrace of 3\uFFFD\x1b[31m", "no end"}
	for tail := range uint32(len(all) + 2) {
		want := all
		if tail > 0 {
			want = all[max(0, len(all)-int(tail)):]
		}
		if got := readLogs(t, h, &hostv1.StreamLogsRequest{Worker: "nora", Tail: tail}); !slices.Equal(got, want) {
			t.Errorf("tail %d: %q, want %q", tail, got, want)
		}
	}
	since := time.Date(2026, 1, 1, 0, 0, 2, 0, time.UTC).UnixMilli()
	want := []string{all[0], all[3], all[4], all[5]}
	if got := readLogs(t, h, &hostv1.StreamLogsRequest{Worker: "nora", SinceUnixMs: since}); !slices.Equal(got, want) {
		t.Errorf("since: %q, want %q", got, want)
	}
	stream, err := h.StreamLogs(t.Context(), &hostv1.StreamLogsRequest{Worker: "other"})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.NotFound {
		t.Errorf("unknown worker: %v", err)
	}
}

func TestLogsAreBounded(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	h, _, _ := logHost(t, strings.Repeat(long+"\nshort\n", 20)+strings.Repeat("\n", 1000))
	got := readLogs(t, h, &hostv1.StreamLogsRequest{Worker: "nora"})
	if len(got) != 1040 || got[0] != long[:16<<10] || got[1] != "short" || got[1039] != "" {
		t.Fatalf("%d lines, the first of %d bytes", len(got), len(got[0]))
	}
	if got := readLogs(t, h, &hostv1.StreamLogsRequest{Worker: "nora", Tail: 1001}); len(got) != 1001 || got[0] != "short" {
		t.Fatalf("tail over blocks: %d lines from %q", len(got), got[0])
	}
}

func TestFollowLogs(t *testing.T) {
	h, s, path := logHost(t, "one\ntwo")
	stream, err := h.StreamLogs(t.Context(), &hostv1.StreamLogsRequest{Worker: "nora", Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want ...string) {
		t.Helper()
		var got []string
		for len(got) < len(want) {
			batch, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, batch.GetLines()...)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("lines %q, want %q", got, want)
		}
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	expect("one")
	fmt.Fprint(file, "-and-a-half\nthree\n")
	expect("two-and-a-half", "three")
	if err := file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(file, "four\n")
	expect("four")
	fmt.Fprint(file, "last words")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect("last words")
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("after the log was removed: %v", err)
	}

	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if stream, err = h.StreamLogs(context.Background(), &hostv1.StreamLogsRequest{Worker: "nora", Follow: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x\ny"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("x")
	s.stop() // a follower does not keep the host from ending
	expect("y")
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("after the host ended: %v", err)
	}
}
