package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
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
