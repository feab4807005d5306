package worker

import (
	"errors"
	"testing"
)

func TestLimits(t *testing.T) {
	for _, good := range []Limits{{}, {MinMemoryBytes, MinCPUMillis, MinPIDs}, {MaxMemoryBytes, MaxCPUMillis, MaxPIDs}, {PIDs: 64}} {
		if err := good.Check(); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
	for _, bad := range []Limits{
		{MemoryBytes: MinMemoryBytes - 1},
		{MemoryBytes: MaxMemoryBytes + 1},
		{MemoryBytes: -1},
		{CPUMillis: MinCPUMillis - 1},
		{CPUMillis: MaxCPUMillis + 1},
		{PIDs: MinPIDs - 1},
		{PIDs: MaxPIDs + 1},
	} {
		if err := bad.Check(); !errors.Is(err, ErrInvalid) || HintOf(err) == "" {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if got := (Limits{MemoryBytes: 1, PIDs: 3}).Or(Limits{4, 5, 6}); got != (Limits{1, 5, 3}) {
		t.Errorf("%+v", got)
	}
}
