package host

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/catalog"
	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/host/registry"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// One type's unreadable descriptor keeps no host from its start, and nobody else
// from being that version.
func TestUnreadableDescriptor(t *testing.T) {
	r, err := registry.Open(t.Context(), registry.Config{Path: filepath.Join(t.TempDir(), "registry.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	good, err := encodeDescriptor(&workerv1.TypeDescriptor{Name: "ledger", Version: "1.0.0", Family: "LG"})
	if err != nil {
		t.Fatal(err)
	}
	err = r.Update(t.Context(), func(tx *registry.Tx) error {
		for digest, text := range map[string][]byte{"aa": {0xff, 0xff}, "bb": good} {
			d := registry.Descriptor{Digest: digest, Type: "t" + digest, Version: "1.0.0", Descriptor: text}
			if err := tx.PutDescriptor(d); err != nil {
				return err
			}
			if err := tx.PutType(registry.Type{Name: d.Type, Version: d.Version, Digest: digest}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlugins(t.Context(), r, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	verdicts, err := p.Verdicts(t.Context())
	if err != nil || len(verdicts) != 1 || verdicts[0].Digest != "bb" {
		t.Errorf("verdicts %+v, %v: what cannot be read is to be asked again", verdicts, err)
	}
	claims, err := p.Claims(t.Context())
	if err != nil || len(claims) != 2 {
		t.Errorf("claims %+v, %v: the version stays taken", claims, err)
	}
}

// A descriptor of any length is in the record, in parts that are entries.
func TestClaimOfALongDescriptor(t *testing.T) {
	r, err := registry.Open(t.Context(), registry.Config{Path: filepath.Join(t.TempDir(), "registry.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := newPlugins(t.Context(), r, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	d := &workerv1.TypeDescriptor{Name: "ledger", Version: "1.0.0", Family: "LG", ConfigSchema: make([]byte, 3*record.MaxDescriptorPart)}
	at := time.Now().UTC().Truncate(time.Millisecond)
	if err := p.SaveVerdict(t.Context(), catalog.Verdict{Digest: "aa", Descriptor: d, At: at}); err != nil {
		t.Fatal(err)
	}
	if err := p.SaveClaim(t.Context(), catalog.Claim{Type: "ledger", Version: "1.0.0", Family: "LG", Digest: "aa", OwnerUID: 17, At: at}); err != nil {
		t.Fatal(err)
	}
	var text []byte
	var last record.Entry
	for g, err := range r.Groups(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range g.Entries {
			if last, err = record.Decode(line); err != nil {
				t.Fatal(err)
			}
			text = append(text, last.Plugin.Descriptor...)
		}
	}
	got := &workerv1.TypeDescriptor{}
	if err := proto.Unmarshal(text, got); err != nil || !proto.Equal(got, d) {
		t.Errorf("the record has another descriptor, %v", err)
	}
	if last.Kind != record.PluginRegistered || last.Plugin.OwnerUID != 17 || last.Plugin.Version != "1.0.0" {
		t.Errorf("last entry %+v", last)
	}
}
