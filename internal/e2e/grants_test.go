package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/host/record"
	"github.com/dals-host/dals-host/sdk/client"
)

// uses is a worker that does all that it may have been granted.
type uses struct {
	*host
	outpost
	worker client.Worker
}

// TestGrantsOverTime: what was granted holds over stop, start and a new host; a
// version that does not ask for it loses it at once, at each use, and one that
// asks again does not get it back.
func TestGrantsOverTime(t *testing.T) {
	t.Parallel()
	launchers(t, grantsOverTime)
}

func grantsOverTime(t *testing.T, h *host) {
	u := uses{host: h, outpost: newOutpost(t, h)}
	all := []string{"call:template", u.grant(), "ingress:hooks"}
	h.dropWandererOf("2.0.0", "ingress:hooks")
	h.dropWandererOf("3.0.0", all...)
	h.forge("nora", "template")
	args := []string{"forge", "--type", "wanderer", "--version", "1.0.0", "--name", "far", "--class-code", "A1"}
	for _, grant := range all {
		args = append(args, "--grant", grant)
	}
	h.runJSON(&u.worker, args...)
	u.may(all...)
	for _, command := range []string{"stop", "start", "restart"} {
		if _, stderr, code := h.run(command, "far"); code != 0 {
			t.Fatalf("%s: exit %d: %s", command, code, stderr)
		}
	}
	u.may(all...)
	h.next(h.kill)
	u.may(all...)
	for _, version := range []string{"2.0.0", "3.0.0"} {
		if _, stderr, code := h.run("upgrade", "far", "--version", version); code != 0 {
			t.Fatalf("upgrade: exit %d: %s", code, stderr)
		}
		u.may("ingress:hooks")
		h.next(h.kill)
		u.may("ingress:hooks")
	}
	u.told()
}

// told: what the worker was refused since its host was killed is in the record.
func (u uses) told() {
	u.t.Helper()
	if _, stderr, code := u.run("stop", "far"); code != 0 {
		u.t.Fatalf("stop: exit %d: %s", code, stderr)
	}
	n := u.count(func(e record.Entry) bool {
		return e.Kind == record.RefusedSummary && e.Refusal.Code == "call_not_granted" && e.Refusal.Peer == "worker "+u.worker.WorkerSerial && e.Refusal.Count == 1
	})
	if n == 0 {
		u.t.Error("the refused call is not recorded")
	}
	if refused := u.entriesOf(u.worker.WorkerSerial, record.EgressRefused); len(refused) == 0 || refused[len(refused)-1].Refusal.Code != "egress_not_granted" {
		u.t.Errorf("refused %+v", refused)
	}
}

// may: the worker was granted this, which works, and nothing else does.
func (u uses) may(grants ...string) {
	u.t.Helper()
	u.eventually("worker connected", func() error {
		if got := u.host.worker("far"); got.State != "live" || got.Heartbeat.Last.IsZero() {
			return fmt.Errorf("%+v", got)
		}
		return nil
	})
	if got := u.host.worker("far").Grants; !slices.Equal(got, grants) {
		u.t.Errorf("granted %q, want %q", got, grants)
	}
	ways := []bool{true}
	if u.launcher == "containerd" {
		ways = append(ways, false)
	}
	for _, bySDK := range ways {
		said, err := u.send("far", "wanderer.fetch", u.fetch(bySDK))
		u.check(u.grant(), grants, strings.Contains(string(said.Result), "hello from"), says(err, "not_granted", "refused"), err)
	}
	said, err := u.relay("far", "template.echo", map[string]any{"message": "hello"})
	u.check("call:template", grants, strings.Contains(string(said.Result), "hello"), says(err, "granted"), err)
	status, _, text := u.request(u.worker, "POST", "/in/hooks", "hello")
	u.check("ingress:hooks", grants, status == 202 && strings.Contains(text, "HELLO"), status == 404, fmt.Errorf("%d %s", status, text))
}

// check: what was granted works, and what was not is refused.
func (u uses) check(use string, grants []string, works, refused bool, said error) {
	u.t.Helper()
	if granted := slices.Contains(grants, use); granted != works || granted == refused {
		u.t.Errorf("%s of %q: works %t, refused %t: %v", use, grants, works, refused, said)
	}
}
