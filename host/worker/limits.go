package worker

import (
	"fmt"
	"time"
)

// Limits bound what one worker may use. Zero leaves a limit to the worker's type,
// and where that says nothing, to the launcher's default.
type Limits struct {
	MemoryBytes int64
	CPUMillis   int64 // thousandths of one core
	PIDs        int64
}

// The bounds of what may be asked for: below, a worker does not come up; beyond,
// a number is no limit.
const (
	MinMemoryBytes = 16 << 20
	MaxMemoryBytes = 1 << 40
	MinCPUMillis   = 10
	MaxCPUMillis   = 1 << 20
	MinPIDs        = 16
	MaxPIDs        = 1 << 22
)

// Check refuses, as ErrInvalid, limits outside of the bounds. Zero is none.
func (l Limits) Check() error {
	for _, v := range []struct {
		name, unit     string
		has, low, high int64
	}{
		{"memory", "bytes", l.MemoryBytes, MinMemoryBytes, MaxMemoryBytes},
		{"cpu", "thousandths of a core", l.CPUMillis, MinCPUMillis, MaxCPUMillis},
		{"pids", "processes", l.PIDs, MinPIDs, MaxPIDs},
	} {
		if v.has != 0 && (v.has < v.low || v.has > v.high) {
			return Hint(fmt.Errorf("%s limit of %d %s: %w", v.name, v.has, v.unit, ErrInvalid),
				fmt.Sprintf("give from %d to %d, or leave it to the worker's type", v.low, v.high))
		}
	}
	return nil
}

// Or is l, with what it leaves open as other has it.
func (l Limits) Or(other Limits) Limits {
	choose := func(a, b int64) int64 {
		if a == 0 {
			return b
		}
		return a
	}
	return Limits{choose(l.MemoryBytes, other.MemoryBytes), choose(l.CPUMillis, other.CPUMillis), choose(l.PIDs, other.PIDs)}
}

// Usage is what all processes of a worker use, as the kernel counts it at one
// moment.
type Usage struct {
	At          time.Time
	MemoryBytes int64         // without page cache that can be dropped at once
	CPU         time.Duration // all that was used since its start
	PIDs        int64         // processes and threads
}
