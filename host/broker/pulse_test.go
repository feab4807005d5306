package broker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// beats is a worker that sends these heartbeats at once, reads nothing, and is
// silent from then on.
func beats(beats ...*workerv1.HeartbeatResponse) func(workerv1.WorkerService_HeartbeatServer) error {
	return func(stream workerv1.WorkerService_HeartbeatServer) error {
		for _, b := range beats {
			if err := stream.Send(b); err != nil {
				return err
			}
		}
		<-stream.Context().Done()
		return nil
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	r := served(t, &fake{})
	if err := r.AwaitHeartbeat(t.Context(), serial, time.Time{}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := r.Ping(t.Context(), serial); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.Missed(serial, time.Time{}); n != 0 {
		t.Errorf("%d missed", n)
	}
}

// TestForgedPong: pongs to pings that were never sent do not keep a worker alive
// that answers nothing.
func TestForgedPong(t *testing.T) {
	t.Parallel()
	r := up(t, &fake{beat: beats(&workerv1.HeartbeatResponse{Serial: string(serial), VaultIntegrity: true, Pong: 1 << 63})})
	if err := r.AwaitHeartbeat(t.Context(), serial, time.Time{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := r.Ping(ctx, serial); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ping: %v", err)
	}
}

// TestHeartbeatText: what a worker says of itself is bounded and fit to be shown.
func TestHeartbeatText(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ fault, want string }{
		"no reason": {"", "no reason given"},
		"controls":  {"config.json\n\x1b[2J: \u202echanged\x00", "config.json  [2J:  changed"},
		"long":      {strings.Repeat("é", 20_000), strings.Repeat("é", maxText)},
		"blank":     {"\n\n", "no reason given"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := served(t, &fake{beat: beats(&workerv1.HeartbeatResponse{Serial: string(serial), VaultFault: c.fault})})
			err := r.AwaitHeartbeat(t.Context(), serial, time.Time{})
			if h := r.Health(serial); h.VaultFault != c.want || h.VaultIntegrity || !errors.Is(err, worker.ErrCorrupt) {
				t.Errorf("%q, %v", h.VaultFault, err)
			}
		})
	}
	t.Run("huge", func(t *testing.T) {
		t.Parallel()
		r := served(t, &fake{beat: beats(&workerv1.HeartbeatResponse{Serial: string(serial), VaultFault: strings.Repeat("x", maxBeat)})})
		eventually(t, "the link ends over it", func() bool { return r.log.count("larger than max") > 0 })
		if h := r.Health(serial); !h.Last.IsZero() {
			t.Errorf("it was heard: %+v", h)
		}
	})
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "plain", "a\nb", "\xff\xfe", "\u202e", strings.Repeat("🐐", 600), "a" + strings.Repeat("\xf0\x9f\x90\x90", 499) + "\xf0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := clean(s)
		if !utf8.ValidString(c) || utf8.RuneCountInString(c) > maxText || clean(c) != c {
			t.Fatalf("%q became %q", s, c)
		}
	})
}
