package workertest

import (
	"context"
	"os"
	"testing"

	"github.com/dals-host/dals-host/sdk"
)

// recorder is a test that may fail without failing the one that looks at it.
type recorder struct {
	testing.TB
	failed bool
}

// Errorf notes the failure.
func (r *recorder) Errorf(string, ...any) { r.failed = true }

func TestGoldenSeesEveryChange(t *testing.T) {
	t.Chdir(t.TempDir())
	type in struct {
		A string `json:"a"`
	}
	type other struct {
		A string `json:"a,omitempty"`
	}
	typ := sdk.Type{
		Name: "gold", Version: "1.0.0", Family: "GO", Summary: "Is compared.",
		Tasks: []sdk.Task{sdk.Func("gold.echo", "Echo.", func(_ context.Context, v in) (in, error) { return v, nil })},
	}
	newType := func() sdk.Type { return typ }
	t.Setenv("UPDATE_GOLDEN", "1")
	Golden(t, newType)
	if _, err := os.Stat(GoldenFile); err != nil {
		t.Fatal(err)
	}
	t.Setenv("UPDATE_GOLDEN", "")
	Golden(t, newType)
	typ.Tasks = []sdk.Task{sdk.Func("gold.echo", "Echo.", func(_ context.Context, v other) (in, error) { return in(v), nil })}
	r := &recorder{TB: t}
	if Golden(r, newType); !r.failed {
		t.Error("a field that became optional was overlooked")
	}
}
