package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/dals-host/dals-host/host/registry/sqlcgen"
	"github.com/dals-host/dals-host/host/worker"
)

// Phase is how far a job's step has come.
type Phase string

// The phases of a step. After a crash, a step that was begun may have been done
// in part.
const (
	PhaseBegun   Phase = "begun"
	PhaseDone    Phase = "done"
	PhaseUndoing Phase = "undoing"
)

// Job is an open line of the journal: work that must be finished or undone
// after a crash.
type Job struct {
	ID        string
	Kind      string        // what work: forge, retire
	Serial    worker.Serial // may be empty before it is known
	Request   []byte        // JSON, as Kind defines it
	Step      int
	StepName  string
	Phase     Phase
	StartedAt time.Time
	UpdatedAt time.Time
}

// BeginJob opens a job. Its times are set to now where they are zero, and its
// phase to begun where it is empty. An id that is in the journal is
// worker.ErrConflict.
func (tx *Tx) BeginJob(j Job) error {
	return tx.do("begin job "+j.ID, func() error {
		if j.StartedAt.IsZero() {
			j.StartedAt = tx.now()
		}
		if j.UpdatedAt.IsZero() {
			j.UpdatedAt = j.StartedAt
		}
		if j.Phase == "" {
			j.Phase = PhaseBegun
		}
		return tx.q.InsertJob(tx.ctx, sqlcgen.InsertJobParams{
			ID: j.ID, Kind: j.Kind, Serial: j.Serial, Request: present(j.Request), Step: j.Step, StepName: j.StepName,
			Phase: string(j.Phase), StartedAt: millis(j.StartedAt), UpdatedAt: millis(j.UpdatedAt),
		})
	})
}

// StepJob says where a job stands. No such job is worker.ErrNotFound.
func (tx *Tx) StepJob(id string, step int, name string, phase Phase) error {
	return tx.do(fmt.Sprintf("journal step %s of job %s", name, id), func() error {
		n, err := tx.q.StepJob(tx.ctx, sqlcgen.StepJobParams{
			ID: id, Step: step, StepName: name, Phase: string(phase), UpdatedAt: millis(tx.now()),
		})
		if err == nil && n == 0 {
			err = worker.ErrNotFound
		}
		return err
	})
}

// EndJob strikes a job from the journal. No such job is no error.
func (tx *Tx) EndJob(id string) error {
	return tx.do("end job "+id, func() error { return tx.q.DeleteJob(tx.ctx, id) })
}

// Jobs lists the open jobs, oldest first.
func (r *Registry) Jobs(ctx context.Context) ([]Job, error) {
	rows, err := r.read.Jobs(ctx)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", fault(err))
	}
	jobs := make([]Job, len(rows))
	for i, row := range rows {
		jobs[i] = Job{
			ID: row.ID, Kind: row.Kind, Serial: row.Serial, Request: row.Request, Step: row.Step, StepName: row.StepName,
			Phase: Phase(row.Phase), StartedAt: instant(row.StartedAt), UpdatedAt: instant(row.UpdatedAt),
		}
	}
	return jobs, nil
}
