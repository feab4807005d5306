package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/sdk/client"
)

// TestEgressBytes: large transfers come through as they are, each side may end its
// own first, silent and endless servers hold nobody, and all is counted right.
func TestEgressBytes(t *testing.T) {
	t.Parallel()
	const name, large = "shop.example", 10 << 20
	n := newInternet(t, map[string][]string{name: {public}})
	echo := n.web(public+":80", func(w http.ResponseWriter, r *http.Request) {
		if body, err := io.ReadAll(r.Body); err == nil {
			_, _ = w.Write(body)
		}
	})
	ended := make(chan string, 1)
	first := n.serve(public+":81", func(c counted) {
		_, _ = io.WriteString(c, "that is all from me")
		_ = c.CloseWrite()
		text, err := io.ReadAll(c)
		ended <- fmt.Sprint(string(text), err)
	})
	endless := n.web(public+":82", func(w http.ResponseWriter, _ *http.Request) {
		for piece := bytes.Repeat([]byte("x"), 32<<10); ; {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	})
	silent := n.serve(public+":83", func(c counted) { _, _ = io.Copy(io.Discard, c) })
	places := []string{name + ":80", name + ":81", name + ":82", name + ":83"}
	h := newOnline(n, places...)
	w := h.forgeOnline("far", places...)
	said := h.mustSend("far", "wanderer.exchange", map[string]any{"url": "http://" + name + "/", "size": large})
	if !strings.Contains(string(said.Result), strconv.Itoa(large)) || echo.in.Load() <= large {
		t.Errorf("exchanged %s, the server has read %d", said.Result, echo.in.Load())
	}
	h.closedTo(w.WorkerSerial, name+":80", echo, "closed")
	said = h.mustSend("far", "wanderer.outlast", map[string]any{"text": name + ":81"})
	if got := <-ended; !strings.Contains(string(said.Result), "that is all from me") || got != "the last word<nil>" {
		t.Errorf("read %s, the server %s", said.Result, got)
	}
	h.closedTo(w.WorkerSerial, name+":81", first, "closed")
	h.eventually("silent server reached", func() error {
		said, err := h.client.Send(t.Context(), client.SendRequest{
			Worker: "far", Kind: "wanderer.fetch", Input: map[string]any{"url": "http://" + name + ":83/"}, Timeout: time.Second,
		})
		if !says(err, "deadline") {
			t.Errorf("of the silent: %s, %v", said.Result, err)
		}
		if silent.in.Load() == 0 { // this machine was busy elsewhere
			return err
		}
		return nil
	})
	h.closedTo(w.WorkerSerial, name+":83", silent, "closed", "aborted")
	if _, err := h.visit("far", "http://"+name+":82/", false); err != nil {
		t.Error(err)
	}
	h.endedEarly(w.WorkerSerial, endless)
	h.totals("far", w.WorkerSerial)
}

// endedEarly: of a connection that its worker has broken off the record has what
// the worker's side has taken, which is less than what its server has written.
func (h *host) endedEarly(serial string, endless *passing) {
	h.t.Helper()
	h.eventually("end of the endless recorded", func() error {
		ends := h.entriesOf(serial, record.EgressClosed)
		e := ends[len(ends)-1].Egress
		if e.Port != 82 {
			return fmt.Errorf("the last is %+v", e)
		}
		if e.Outcome != "aborted" || e.Sent != endless.in.Load() || e.Received < 1<<20 || e.Received > endless.out.Load() {
			h.t.Errorf("%+v, the server has read %d and written %d", e, endless.in.Load(), endless.out.Load())
		}
		return nil
	})
}

// totals: what is shown of a worker is the sum of what its record has.
func (h *host) totals(name, serial string) {
	h.t.Helper()
	var want client.Traffic
	for _, e := range h.entriesOf(serial, record.EgressClosed) {
		want.Connections++
		want.Sent += e.Egress.Sent
		want.Received += e.Egress.Received
	}
	h.eventually("traffic", func() error {
		var got struct{ Traffic *client.Traffic }
		h.runJSON(&got, "worker", name)
		if got.Traffic == nil || *got.Traffic != want {
			return fmt.Errorf("%+v, want %+v", got.Traffic, want)
		}
		return nil
	})
}
