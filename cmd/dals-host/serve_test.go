package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host"
)

// TestNotify speaks to systemd as a unit of Type=notify does.
func TestNotify(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	notify(hclog.NewNullLogger(), daemon.SdNotifyReady)
	if err := systemd.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	heard := make([]byte, 100)
	n, err := systemd.Read(heard)
	if err != nil || string(heard[:n]) != "READY=1" {
		t.Fatalf("systemd heard %q, %v", heard[:n], err)
	}
}

func TestReadWarm(t *testing.T) {
	for text, want := range map[string]int{"template=1": 1, "template=64": 64, "template": 0, "template=0": 0, "template=65": 0, "=4": 0, "template=x": 0, "template=4=4": 0} {
		var config host.Config
		if err := readWarm([]string{text}, &config); (err == nil) != (want > 0) || config.Warm["template"] != want {
			t.Errorf("%s: %v, %v", text, config.Warm, err)
		}
	}
	if err := readWarm([]string{"template=1", "template=2"}, &host.Config{}); err == nil {
		t.Error("a type twice")
	}
}
