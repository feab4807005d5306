package forge

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
)

// resolve puts the request into order, and fills in what it leaves to the worker
// that it is to be like.
func (f *Forge) resolve(ctx context.Context, r Request) (Request, error) {
	r, err := f.normal(r)
	if err == nil && r.Like != "" {
		r, err = f.liken(ctx, r)
	}
	if err != nil {
		return r, err
	}
	if r.Grants, err = capability.Normal(slices.Concat(r.Grants, r.Mounts)); err != nil {
		return r, fmt.Errorf("grant: %w: %w", err, worker.ErrInvalid)
	}
	r.Mounts = nil
	return r, nil
}

// liken fills in what a request that is in order leaves to its model.
func (f *Forge) liken(ctx context.Context, r Request) (Request, error) {
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
	grants, mounts := apart(model.Grants)
	if len(r.Grants) == 0 {
		r.Grants = grants
	}
	if len(r.Mounts) == 0 {
		r.Mounts = mounts
	}
	r.Limits = r.Limits.Or(model.Limits)
	return r, nil
}

// apart are the grants that are no folders, and those that are.
func apart(all []string) (grants, mounts []string) {
	for _, g := range all {
		if c, err := capability.Parse(g); err == nil && c.Kind == capability.Mount {
			mounts = append(mounts, g)
		} else {
			grants = append(grants, g)
		}
	}
	return grants, mounts
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
