package ports

import (
	"bytes"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/worker"
)

// Health is what the host knows of a worker, as its port shows it.
type Health struct {
	Live           bool   // heartbeats arrive
	Ready          bool   // live, and its vault is whole: it takes envelopes
	Reason         string // why it is not live, in a word; empty where none is known
	IdentityJSON   []byte
	VaultIntegrity bool
	LastHeartbeat  time.Time // zero before the first
	Missed         int       // heartbeats, in a row
	Restarts       int
	TasksInFlight  uint32
	TasksDone      uint64        // since the worker's process began
	TasksFailed    uint64        // since the worker's process began
	RSSBytes       uint64        // as the worker itself tells
	Limits         worker.Limits // what it may use; zero where nothing enforces it
	Usage          worker.Usage  // what it uses, as the host has just read it; zero where it does not run
	// Traffic of its door since the host began; nil for a worker without one.
	Traffic *Traffic
}

// Traffic is what went through a worker's door.
type Traffic struct {
	Open                 int // connections of the moment
	Connections, Refused uint64
	Sent, Received       uint64 // bytes, by the worker
}

// metrics are the numbers in Prometheus' text format. There are no labels: a
// port is one worker, and /identity says which.
func (h Health) metrics() []byte {
	var b bytes.Buffer
	metric := func(name, kind, help string, value any) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s %v\n", name, help, name, kind, name, value)
	}
	metric("dals_worker_live", "gauge", "Whether heartbeats arrive.", number(h.Live))
	metric("dals_worker_ready", "gauge", "Whether the worker takes envelopes.", number(h.Ready))
	metric("dals_worker_vault_integrity", "gauge", "Whether manifest and vault are whole.", number(h.VaultIntegrity))
	if !h.LastHeartbeat.IsZero() {
		metric("dals_worker_heartbeat_timestamp_seconds", "gauge", "When the last heartbeat arrived.",
			fmt.Sprintf("%.3f", float64(h.LastHeartbeat.UnixMilli())/1000))
	}
	metric("dals_worker_heartbeats_missed", "gauge", "Heartbeats missed in a row.", h.Missed)
	metric("dals_worker_restarts_total", "counter", "Restarts by the host.", h.Restarts)
	metric("dals_worker_tasks_in_flight", "gauge", "Tasks being worked on.", h.TasksInFlight)
	metric("dals_worker_tasks_done_total", "counter", "Tasks done since the process began.", h.TasksDone)
	metric("dals_worker_tasks_failed_total", "counter", "Tasks failed since the process began.", h.TasksFailed)
	metric("dals_worker_resident_memory_bytes", "gauge", "Resident memory, as the worker tells.", h.RSSBytes)
	if l := h.Limits; l != (worker.Limits{}) {
		metric("dals_worker_memory_limit_bytes", "gauge", "Memory that the worker may use.", l.MemoryBytes)
		metric("dals_worker_cpu_limit_cores", "gauge", "Cores that the worker may use.", float64(l.CPUMillis)/1000)
		metric("dals_worker_pids_limit", "gauge", "Processes and threads that the worker may have.", l.PIDs)
	}
	if u := h.Usage; !u.At.IsZero() {
		metric("dals_worker_memory_bytes", "gauge", "Memory of all its processes, as the kernel counts it now.", u.MemoryBytes)
		metric("dals_worker_cpu_seconds_total", "counter", "CPU time of all its processes since its container began.", u.CPU.Seconds())
		metric("dals_worker_pids", "gauge", "Processes and threads of the worker.", u.PIDs)
	}
	if t := h.Traffic; t != nil {
		metric("dals_worker_egress_connections_open", "gauge", "Connections that the worker has through the host.", t.Open)
		metric("dals_worker_egress_connections_total", "counter", "Connections made for the worker since the host began.", t.Connections)
		metric("dals_worker_egress_refused_total", "counter", "Connections refused to the worker since the host began.", t.Refused)
		metric("dals_worker_egress_sent_bytes_total", "counter", "Bytes that the worker sent since the host began.", t.Sent)
		metric("dals_worker_egress_received_bytes_total", "counter", "Bytes that the worker received since the host began.", t.Received)
	}
	return b.Bytes()
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}
