package catalog

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/registry"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// database is a Registry in the host's SQLite registry.
type database struct{ *registry.Registry }

var _ Registry = database{}

func (d database) Verdicts(ctx context.Context) ([]Verdict, error) {
	descriptors, err := d.Descriptors(ctx)
	if err != nil {
		return nil, err
	}
	quarantines, err := d.Quarantines(ctx)
	if err != nil {
		return nil, err
	}
	var verdicts []Verdict
	for _, row := range descriptors {
		v := Verdict{Digest: row.Digest, Descriptor: &workerv1.TypeDescriptor{}, At: row.ProbedAt}
		if err := proto.Unmarshal(row.Descriptor, v.Descriptor); err != nil {
			return nil, err
		}
		verdicts = append(verdicts, v)
	}
	for _, q := range quarantines {
		verdicts = append(verdicts, Verdict{Digest: q.Digest, Reason: q.Reason, Fix: q.Fix, At: q.At})
	}
	return verdicts, nil
}

func (d database) Claims(ctx context.Context) ([]Claim, error) {
	types, err := d.Types(ctx)
	if err != nil {
		return nil, err
	}
	verdicts, err := d.Verdicts(ctx)
	if err != nil {
		return nil, err
	}
	families := map[string]string{}
	for _, v := range verdicts {
		families[v.Digest] = v.Descriptor.GetFamily()
	}
	var claims []Claim
	for _, t := range types {
		claims = append(claims, Claim{
			Type: t.Name, Version: t.Version, Family: families[t.Digest],
			Digest: t.Digest, OwnerUID: t.OwnerUID, At: t.RegisteredAt,
		})
	}
	return claims, nil
}

func (d database) SaveVerdict(ctx context.Context, v Verdict) error {
	return d.Update(ctx, func(tx *registry.Tx) error {
		if v.Descriptor == nil {
			return tx.PutQuarantine(registry.Quarantine{Digest: v.Digest, Reason: v.Reason, Fix: v.Fix, At: v.At})
		}
		encoded, err := proto.Marshal(v.Descriptor)
		if err != nil {
			return err
		}
		return errors.Join(tx.RemoveQuarantine(v.Digest), tx.PutDescriptor(registry.Descriptor{
			Digest: v.Digest, Type: v.Descriptor.Name, Version: v.Descriptor.Version, Descriptor: encoded, ProbedAt: v.At,
		}))
	})
}

func (d database) SaveClaim(ctx context.Context, c Claim) error {
	return d.Update(ctx, func(tx *registry.Tx) error {
		return tx.PutType(registry.Type{Name: c.Type, Version: c.Version, Digest: c.Digest, OwnerUID: c.OwnerUID, RegisteredAt: c.At})
	})
}

// The template that authors copy, through the whole catalog into the host's own
// registry, across a restart.
func TestTemplateInTheRealRegistry(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	path := filepath.Join(r.dir, "dals-worker-template")
	build := exec.Command("go", "build", "-o", path, "github.com/dals-host/dals-host/plugins/template")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build plugins/template: %v\n%s", err, out)
	}
	broken := r.drop("dals-worker-broken", plug(t, script{Do: "exit"}))
	for range 2 {
		db, err := registry.Open(t.Context(), registry.Config{Path: filepath.Join(r.data, "registry.db")})
		if err != nil {
			t.Fatal(err)
		}
		r.registry = database{db}
		r.start()
		p := r.await(path, Registered)
		q := r.await(broken, Quarantined)
		e, err := r.catalog.Lookup("template", "")
		if err != nil || e.Digest != p.Digest || e.Version == "" || len(e.Descriptor.Tasks) == 0 {
			t.Errorf("registered as %+v, %v", e, err)
		}
		if q.Reason == "" || q.Fix == "" {
			t.Errorf("quarantined as %+v", q)
		}
		r.stop()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
