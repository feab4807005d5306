package workertest

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/dals-host/dals-host/sdk"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// GoldenFile is where a plugin keeps the descriptor that it last agreed to.
const GoldenFile = "testdata/descriptor.json"

// Golden compares the descriptor of newType's type with GoldenFile: what hosts
// and senders rely on does not change unseen. With UPDATE_GOLDEN=1 in the
// environment it writes the file instead.
func Golden(t testing.TB, newType func() sdk.Type) {
	t.Helper()
	descriptor, err := sdk.Describe(newType())
	must(t, err)
	got := formatDescriptor(t, descriptor)
	if os.Getenv("UPDATE_GOLDEN") == "1" {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(GoldenFile, got, 0o644))
		return
	}
	want, err := os.ReadFile(GoldenFile)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("the descriptor is not as in %s; if that is meant, raise the version and run the test with UPDATE_GOLDEN=1; it is now:\n%s", GoldenFile, got)
	}
}

// formatDescriptor is the descriptor for people, with its schemas in full.
func formatDescriptor(t testing.TB, d *workerv1.TypeDescriptor) []byte {
	t.Helper()
	type task struct {
		Kind         string          `json:"kind"`
		Summary      string          `json:"summary"`
		InputSchema  json.RawMessage `json:"input_schema"`
		OutputSchema json.RawMessage `json:"output_schema"`
	}
	type resources struct {
		MemoryBytes int64 `json:"memory_bytes"`
		CPUMillis   int64 `json:"cpu_millis"`
		PIDs        int64 `json:"pids"`
	}
	tasks := make([]task, len(d.GetTasks()))
	for i, k := range d.GetTasks() {
		tasks[i] = task{k.GetKind(), k.GetSummary(), k.GetInputSchema(), k.GetOutputSchema()}
	}
	r := d.GetResources()
	text, err := json.MarshalIndent(struct {
		Name         string          `json:"name"`
		Version      string          `json:"version"`
		Family       string          `json:"family"`
		Summary      string          `json:"summary"`
		Config       json.RawMessage `json:"config_schema"`
		Tasks        []task          `json:"tasks"`
		Resources    resources       `json:"resources"`
		Capabilities []string        `json:"capabilities"`
	}{
		d.GetName(), d.GetVersion(), d.GetFamily(), d.GetSummary(), d.GetConfigSchema(), tasks,
		resources{r.GetMemoryBytes(), r.GetCpuMillis(), r.GetPids()},
		append([]string{}, d.GetCapabilities()...),
	}, "", "  ")
	must(t, err)
	return append(text, '\n')
}
