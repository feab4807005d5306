package launch

import "testing"

func TestExitReads(t *testing.T) {
	t.Parallel()
	for want, exit := range map[string]Exit{
		"exit code 0":                      {},
		"exit code 3":                      {Code: 3},
		"killed by SIGTERM":                {Code: 143, Signal: "SIGTERM"},
		"killed by SIGKILL, out of memory": {Code: 137, Signal: "SIGKILL", OOMKilled: true},
		"ended while no host was watching": {Unknown: true},
	} {
		if got := exit.String(); got != want {
			t.Errorf("%+v reads %q, want %q", exit, got, want)
		}
	}
}
