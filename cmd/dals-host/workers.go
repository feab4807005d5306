package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/client"
)

func workersCommand(a *app) *cobra.Command {
	var filter client.WorkerFilter
	cmd := &cobra.Command{
		Use:   "workers",
		Short: "List workers",
		Example: `  dals-host workers
  dals-host workers --type ledger --state live
  dals-host workers --all --json | jq -r '.[].worker_serial'`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("state") {
				if _, err := worker.ParseState(filter.State); err != nil {
					return usagef("--state: %w", err)
				}
			}
			return answer(cmd.Context(), a, func(c *client.Client) ([]client.Worker, error) {
				return c.Workers(cmd.Context(), filter)
			}, workerTable)
		},
	}
	cmd.Flags().StringVar(&filter.Type, "type", "", "only workers of this type")
	cmd.Flags().StringVar(&filter.State, "state", "", "only workers in this state: "+strings.Join(worker.StateNames(), ", "))
	cmd.Flags().BoolVar(&filter.Retired, "all", false, "the retired ones too")
	completeFlag(cmd, "type", a.typeNames)
	completeFlag(cmd, "state", func(context.Context) []string { return worker.StateNames() })
	return cmd
}

func workerCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "worker WORKER",
		Short: "Tell all about one worker, by name or serial",
		Long: `Tell all about one worker, by name or serial. --json adds its identity.json and
worker_manifest.json as they are on disk.`,
		Example: `  dals-host worker nora
  dals-host worker DMN-TP-1-5f3a9c01-00002 --json | jq .manifest.files`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeWorker,
		RunE: func(cmd *cobra.Command, args []string) error {
			return answer(cmd.Context(), a, func(c *client.Client) (client.WorkerDetail, error) {
				return c.Worker(cmd.Context(), args[0])
			}, detailText)
		},
	}
}

func workerTable(t *table, workers []client.Worker) {
	t.row("NAME", "TYPE", "VERSION", "SERIAL", "CLASS", "PORT", "STATE", "VAULT", "HEARTBEAT", "MEM", "CPU", "PIDS")
	for _, w := range workers {
		t.row(w.WorkerName, w.WorkerType, w.TypeVersion, w.WorkerSerial, w.ClassCode, portWord(w),
			w.State, vaultWord(w), heartbeatWord(w), memoryWord(w), cpuWord(w), pidsWord(w))
	}
}

// workerText is a worker object, a line for each field.
func workerText(t *table, w client.Worker) {
	factsText(t, w)
	keyText(t, w)
}

// detailText adds what the worker tells of itself and what it answers.
func detailText(t *table, w client.WorkerDetail) {
	factsText(t, w.Worker)
	if m := w.Metrics; m != nil {
		// What it uses is in "uses": a stranger's worker may say here what it likes.
		t.row("process", fmt.Sprintf("started %s; %.1f MiB of memory, by its own word", stamp(m.StartedAt), float64(m.RSSBytes)/(1<<20)))
		t.row("tasks", fmt.Sprintf("%d running, %d done, %d failed", m.TasksInFlight, m.TasksDone, m.TasksFailed))
	}
	if m := w.Traffic; m != nil {
		t.row("traffic", fmt.Sprintf("%d open, %d connections, %d refused, %d bytes sent, %d received", m.Open, m.Connections, m.Refused, m.Sent, m.Received))
	}
	label := "answers"
	for _, k := range w.Tasks {
		t.row(label, k.Kind, k.Summary)
		label = ""
	}
	keyText(t, w.Worker)
}

func factsText(t *table, w client.Worker) {
	t.row("name", w.WorkerName)
	t.row("type", w.WorkerType+" "+w.TypeVersion)
	t.row("serial", w.WorkerSerial)
	t.row("model number", w.ModelNumber)
	t.row("ledger code", w.LedgerCode)
	t.row("class code", w.ClassCode)
	t.row("port", reasoned(strconv.Itoa(w.Port), w.PortFault))
	t.row("launcher", w.Launcher)
	t.row("state", reasoned(w.State, w.StateReason))
	if w.Restarts > 0 || w.RestartTries > 0 {
		t.row("restarts", fmt.Sprintf("%d, %d tried since it was last healthy", w.Restarts, w.RestartTries))
	}
	grantText(t, w)
	t.row("vault", reasoned("vault_integrity="+strconv.FormatBool(w.VaultIntegrity), w.VaultFault))
	t.row("heartbeat", heartbeatWord(w))
	limitsText(t, w)
	t.row("created", stamp(w.CreatedAt))
	if !w.RetiredAt.IsZero() {
		t.row("retired", stamp(w.RetiredAt))
	}
	t.row("manifest", w.ManifestSHA256)
	if w.ImageDigest != "" {
		t.row("image", w.ImageDigest)
	}
}

// grantText tells what the worker may do beyond its own folder, a line for each.
func grantText(t *table, w client.Worker) {
	label := "granted"
	for _, g := range w.Grants {
		t.row(label, g)
		label = ""
	}
	label = "not granted"
	for _, g := range w.NotGranted {
		t.row(label, g)
		label = ""
	}
}

func keyText(t *table, w client.Worker) {
	t.row("public key", w.PublicKey)
	t.block("glyph", w.Glyph)
}

func reasoned(word, reason string) string {
	if reason == "" {
		return word
	}
	return word + ": " + reason
}

func portWord(w client.Worker) string {
	if w.PortFault != "" {
		return strconv.Itoa(w.Port) + " not served"
	}
	return strconv.Itoa(w.Port)
}

func vaultWord(w client.Worker) string {
	switch {
	case w.VaultIntegrity:
		return "ok"
	case w.VaultFault == "": // it does not run, and cannot say
		return "-"
	}
	return "FAULT"
}

func heartbeatWord(w client.Worker) string {
	if w.Heartbeat.Last.IsZero() {
		return "none"
	}
	ago := max(0, time.Since(w.Heartbeat.Last.Time)).Round(100 * time.Millisecond)
	if w.Heartbeat.Missed > 0 {
		return fmt.Sprintf("%s ago, %d missed", ago, w.Heartbeat.Missed)
	}
	return fmt.Sprintf("%s ago", ago)
}

func memoryWord(w client.Worker) string {
	if w.Usage == nil {
		return "-"
	}
	return mib(w.Usage.MemoryBytes)
}

// cpuWord is CPU time, as ps has it: a share would be of which time?
func cpuWord(w client.Worker) string {
	if w.Usage == nil {
		return "-"
	}
	return (time.Duration(w.Usage.CPUTimeMs) * time.Millisecond).String()
}

// pidsWord counts processes and threads.
func pidsWord(w client.Worker) string {
	if w.Usage == nil {
		return "-"
	}
	return strconv.FormatInt(w.Usage.PIDs, 10)
}

func limitsText(t *table, w client.Worker) {
	if u := w.Usage; u != nil {
		t.row("uses", fmt.Sprintf("%s, %s of CPU time, %d processes and threads", memoryWord(w), cpuWord(w), u.PIDs))
	}
	if l := w.Limits; l != nil {
		text := fmt.Sprintf("%s, %g cores, %d processes and threads", mib(l.MemoryBytes), float64(l.CPUMillis)/1000, l.PIDs)
		if w.Launcher == "process" {
			text += "; not enforced: it is a plain process"
		}
		t.row("limits", text)
	}
}

func stamp(t client.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
