package forge

import (
	"context"
	"errors"
	"fmt"

	"github.com/dals-host/dals-host/host/worker"
)

// resolve puts the request into order, and fills in what it leaves to the worker
// that it is to be like.
func (f *Forge) resolve(ctx context.Context, r Request) (Request, error) {
	r, err := r.normal()
	if err != nil || r.Like == "" {
		return r, err
	}
	model, err := f.find(ctx, r.Like)
	if err != nil {
		return r, err
	}
	if r.Type != "" && r.Type != model.Type {
		return r, worker.Hint(fmt.Errorf("worker %s is of type %s, asked for %s: %w", model.Name, model.Type, r.Type, worker.ErrInvalid),
			"leave the type out: it is that of the worker to be like")
	}
	r.Type = model.Type
	if r.Version == "" {
		r.Version = model.TypeVersion
	}
	if r.ClassCode == "" {
		r.ClassCode = string(model.ClassCode)
	}
	if len(r.Config) == 0 {
		r.Config = model.Config
	}
	if len(r.Grants) == 0 {
		r.Grants = model.Grants
	}
	return r, nil
}

// find finds a worker by name or serial.
func (f *Forge) find(ctx context.Context, ref string) (w worker.Worker, err error) {
	if serial, notOne := worker.ParseSerial(ref); notOne == nil {
		w, err = f.Registry.Worker(ctx, serial)
	} else {
		w, err = f.Registry.WorkerByName(ctx, ref)
	}
	if errors.Is(err, worker.ErrNotFound) {
		return w, worker.Hint(fmt.Errorf("worker %.63q to be like: %w", ref, worker.ErrNotFound), "run dals-host workers to see those that there are")
	}
	return w, err
}
