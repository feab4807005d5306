package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// advance takes every file as far as it can go now, in the order in which they
// came.
func (k *keeper) advance(ctx context.Context) {
	now := time.Now()
	for _, f := range k.inTurn() {
		if f.busy || now.Before(f.retryAt) {
			continue
		}
		if f.look != f.checked {
			k.recognise(ctx, f, now)
		}
		if f.look == f.checked && (f.State == Verified || f.State == Probed) {
			k.decide(ctx, f)
		}
	}
}

// recognise finds out which bytes a file holds: it looks as it did before, or it
// is verified once it is settled.
func (k *keeper) recognise(ctx context.Context, f *file, now time.Time) {
	if digest, ok := k.sightings.digest(f.Path, f.look); ok && k.store.has(digest) {
		k.take(f, digest)
		return
	}
	if now.Sub(f.since) < settle || k.full() {
		return
	}
	f.busy = true
	seen := f.look
	var digest string
	k.start(func() (err error) {
		digest, err = k.verify(ctx, f.Path, seen)
		return err
	}, func(err error) {
		f.busy = false
		if k.files[f.Path] == f && f.look == seen { // else it is looked at again
			k.verified(f, digest, err)
		}
	})
}

// full says whether no job may begin now.
func (k *keeper) full() bool { return k.working >= maxJobs || len(k.collecting) > 0 }

// start runs a job beside Run's goroutine, and then its conclusion on it.
func (k *keeper) start(job func() error, conclude func(error)) {
	k.working++
	k.jobs.Go(func() {
		err := job()
		k.finished <- func() {
			k.working--
			conclude(err)
		}
	})
}

// verify copies a file into the store once it has passed its checks.
func (k *keeper) verify(ctx context.Context, path string, seen look) (string, error) {
	f, err := openPlugin(path, seen, k.store.uid)
	if err != nil {
		return "", err
	}
	defer f.Close()
	digest, err := k.store.put(ctx, f)
	if err != nil {
		return "", fmt.Errorf("store plugin: %w", err)
	}
	return digest, sameAs(f, seen)
}

func (k *keeper) verified(f *file, digest string, err error) {
	var fault *Fault
	switch {
	case err == nil:
		k.sightings.set(f.Path, f.look, digest)
		k.take(f, digest)
	case errors.Is(err, errUnsteady), errors.Is(err, fs.ErrNotExist):
		f.since = time.Now()
	case errors.As(err, &fault):
		k.release(f)
		f.checked, f.again = f.look, false
		f.Digest, f.Type, f.Version = "", "", ""
		k.move(f, Quarantined, fault.Reason, fault.Fix)
	default:
		k.postpone(f, err)
	}
}

// take notes which bytes a file holds. A file that is registered with these very
// bytes stays so.
func (k *keeper) take(f *file, digest string) {
	f.checked, f.tries = f.look, 0
	if f.claim != nil && f.Digest == digest {
		return
	}
	k.release(f)
	f.Digest, f.Type, f.Version = digest, "", ""
	k.move(f, Verified, "", "")
}

// decide judges a verified file by what its probe said, and has it probed if
// nobody has yet.
func (k *keeper) decide(ctx context.Context, f *file) {
	v := k.verdicts[f.Digest]
	if v != nil && v.Descriptor == nil && f.again {
		delete(k.verdicts, f.Digest)
		v = nil
	}
	f.again = false
	if v == nil {
		k.probe(ctx, f.Digest)
		return
	}
	if !v.saved {
		if err := k.cfg.Registry.SaveVerdict(ctx, v.Verdict); err != nil {
			k.postpone(f, fmt.Errorf("record verdict: %w", err))
			return
		}
		v.saved = true
	}
	if v.Descriptor == nil {
		k.move(f, Quarantined, v.Reason, v.Fix)
		return
	}
	k.register(ctx, f, v.Descriptor)
}

// probe asks a stored binary for its descriptor, unless that is being done.
func (k *keeper) probe(ctx context.Context, digest string) {
	if k.probing[digest] || k.full() {
		return
	}
	k.probing[digest] = true
	var descriptor *workerv1.TypeDescriptor
	k.start(func() (err error) {
		descriptor, err = k.ask(ctx, digest)
		return err
	}, func(err error) {
		delete(k.probing, digest)
		k.probed(digest, descriptor, err)
	})
}

func (k *keeper) ask(ctx context.Context, digest string) (*workerv1.TypeDescriptor, error) {
	binary, err := k.store.open(digest)
	if err != nil {
		return nil, fmt.Errorf("open stored plugin: %w", err)
	}
	defer binary.Close()
	said, err := k.cfg.Prober.Probe(ctx, binary)
	if err != nil {
		return nil, err
	}
	return checkDescriptor(said)
}

// probed keeps a verdict; trouble of the host's is none.
func (k *keeper) probed(digest string, descriptor *workerv1.TypeDescriptor, err error) {
	v := Verdict{Digest: digest, Descriptor: descriptor, At: time.Now()}
	if fault, ok := errors.AsType[*Fault](err); ok {
		v.Reason, v.Fix = fault.Reason, fault.Fix
	} else if err != nil {
		for _, f := range k.files {
			if f.Digest == digest && f.State == Verified {
				k.postpone(f, err)
			}
		}
		return
	}
	k.verdicts[digest] = &verdict{Verdict: v}
}

// register makes a probed file stand for its type, on record first.
func (k *keeper) register(ctx context.Context, f *file, d *workerv1.TypeDescriptor) {
	f.Type, f.Version = d.Name, d.Version
	claim, err := k.book.check(f.Digest, d)
	if fault, ok := errors.AsType[*Fault](err); ok {
		k.move(f, Quarantined, fault.Reason, fault.Fix)
		return
	}
	if f.State != Probed {
		k.move(f, Probed, "", "")
	}
	if claim == nil {
		claim = &Claim{
			Type: d.Name, Version: d.Version, Family: d.Family,
			Digest: f.Digest, OwnerUID: int(f.look.UID), At: time.Now(),
		}
		if err := k.cfg.Registry.SaveClaim(ctx, *claim); err != nil {
			k.postpone(f, fmt.Errorf("record type: %w", err))
			return
		}
		k.book.add(*claim)
	}
	f.claim = claim
	k.move(f, Registered, "", "")
}

// postpone waits with a file while the host is in trouble, longer each time.
func (k *keeper) postpone(f *file, err error) {
	if errors.Is(err, context.Canceled) {
		return // the host ends
	}
	delay := min(time.Second<<min(f.tries, 10), maxDelay)
	f.tries++
	f.retryAt = time.Now().Add(delay)
	if f.claim == nil {
		k.move(f, f.State, "waits, because the host has trouble: "+oneLine(err.Error(), maxReason), "nothing: it is tried again by itself")
	}
}
