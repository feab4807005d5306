package control

import (
	"encoding/base64"
	"time"

	"github.com/dals-host/dals-host/host/worker"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// WorkerProto is a worker as the control API tells of it.
func WorkerProto(v WorkerView) *hostv1.Worker {
	return &hostv1.Worker{
		WorkerName:     v.Name,
		WorkerType:     v.Type,
		TypeVersion:    v.TypeVersion,
		ClassCode:      string(v.ClassCode),
		WorkerSerial:   string(v.Serial),
		ModelNumber:    string(v.Model),
		LedgerCode:     string(v.LedgerCode),
		Port:           int32(v.Port),
		State:          string(v.State),
		StateReason:    v.StateReason,
		Launcher:       v.Launcher,
		PublicKey:      base64.StdEncoding.EncodeToString(v.PublicKey),
		Glyph:          v.Glyph,
		ManifestSha256: v.ManifestSHA256,
		ImageDigest:    v.ImageDigest,
		VaultIntegrity: v.VaultIntegrity,
		VaultFault:     v.VaultFault,
		PortFault:      v.PortFault,
		Heartbeat: &hostv1.Heartbeat{
			Last:      timestamp(v.LastHeartbeat),
			IntervalS: int32(v.HeartbeatInterval / time.Second),
			Missed:    int32(v.MissedHeartbeats),
		},
		CreatedAt: timestamp(v.CreatedAt),
		RetiredAt: timestamp(v.RetiredAt),
		Restarts:  int32(v.Restarts),

		RestartTries: int32(v.RestartTries),
		Grants:       v.Grants, NotGranted: v.NotGranted,
		Limits: limitsProto(v.Allowed),
		Usage:  usageProto(v.Usage),
	}
}

// limitsProto is nothing where none are known.
func limitsProto(l worker.Limits) *hostv1.Limits {
	if l == (worker.Limits{}) {
		return nil
	}
	return &hostv1.Limits{MemoryBytes: l.MemoryBytes, CpuMillis: l.CPUMillis, Pids: l.PIDs}
}

// usageProto is nothing where nothing runs.
func usageProto(u worker.Usage) *hostv1.Usage {
	if u.At.IsZero() {
		return nil
	}
	return &hostv1.Usage{At: timestamp(u.At), MemoryBytes: u.MemoryBytes, CpuMs: u.CPU.Milliseconds(), Pids: u.PIDs}
}

// metricsProto is nothing where no heartbeat came.
func metricsProto(m Metrics) *hostv1.Metrics {
	if m.StartedAt.IsZero() {
		return nil
	}
	return &hostv1.Metrics{
		StartedAt: timestamp(m.StartedAt), TasksInFlight: m.InFlight, TasksDone: m.Done, TasksFailed: m.Failed, RssBytes: m.RSSBytes,
	}
}

// trafficProto is nothing for a worker that has no door.
func trafficProto(d WorkerDetail) *hostv1.Traffic {
	if len(d.Grants) == 0 {
		return nil
	}
	t := d.Traffic
	return &hostv1.Traffic{Open: uint32(t.Open), Connections: t.Connections, Refused: t.Refused, Sent: t.Sent, Received: t.Received}
}

func typeProto(t Type) *hostv1.WorkerType {
	d := t.Descriptor
	return &hostv1.WorkerType{
		Name:         d.GetName(),
		Version:      d.GetVersion(),
		Digest:       t.Digest,
		Family:       d.GetFamily(),
		Summary:      d.GetSummary(),
		Tasks:        d.GetTasks(),
		Capabilities: d.GetCapabilities(),
		ConfigSchema: d.GetConfigSchema(),
		Workers:      int32(t.Workers),
		Draining:     t.Draining,
	}
}

func pluginProto(p Plugin) *hostv1.Plugin {
	return &hostv1.Plugin{
		Path: p.Path, Digest: p.Digest, State: p.State, Type: p.Type, Version: p.Version, Reason: p.Reason, Fix: p.Fix,
	}
}

func clientProto(c Client) *hostv1.Client {
	return &hostv1.Client{Name: c.Name, Id: c.ID, CreatedAt: timestamp(c.CreatedAt), RevokedAt: timestamp(c.RevokedAt)}
}

func statusProto(s Status, pid int) *hostv1.GetStatusResponse {
	return &hostv1.GetStatusResponse{
		HostId: s.HostID, Version: s.Version, Launcher: s.Launcher, LauncherReason: s.LauncherReason,
		StartedAt: timestamp(s.StartedAt), Pid: int32(pid),
		RecordSize: s.RecordSize, CheckpointSize: s.CheckpointSize, Degraded: s.Degraded,
	}
}

func planProto(p Plan) *hostv1.ForgeResponse {
	steps := convert(p.Steps, func(s PlanStep) *hostv1.PlanStep {
		return &hostv1.PlanStep{Step: s.Step, Makes: s.Makes}
	})
	files := convert(p.Files, func(f PlanFile) *hostv1.PlanFile {
		return &hostv1.PlanFile{Path: f.Path, Mode: f.Mode, Size: f.Size, Sha256: f.SHA256}
	})
	return &hostv1.ForgeResponse{Worker: WorkerProto(p.Worker), Plan: steps, PlanHash: p.Hash, Files: files, Manifest: p.Manifest}
}

// timestamp is RFC 3339 in UTC, to the millisecond; empty for the zero time.
func timestamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Truncate(time.Millisecond).Format(time.RFC3339Nano)
}

func convert[From, To any](from []From, f func(From) To) []To {
	to := make([]To, len(from))
	for i, v := range from {
		to[i] = f(v)
	}
	return to
}
