package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

// finding is what one check found.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // ok, warn or fail
	Detail string `json:"detail"`
	Fix    string `json:"fix"` // what to run or do
}

const (
	statusOK   = "ok"
	statusWarn = "warn"
	statusFail = "fail"
)

func ok(detail string, args ...any) finding {
	return finding{Status: statusOK, Detail: fmt.Sprintf(detail, args...)}
}

func warn(fix, detail string, args ...any) finding {
	return finding{Status: statusWarn, Fix: fix, Detail: fmt.Sprintf(detail, args...)}
}

func fail(fix, detail string, args ...any) finding {
	return finding{Status: statusFail, Fix: fix, Detail: fmt.Sprintf(detail, args...)}
}

func doctorCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine and its host, and say what to do about what is missing",
		Long: `Check this machine and its host. Each line is ok, warn or fail, and names the
command that helps. It changes nothing, and exits 1 when something fails.`,
		Example: `  dals-host doctor
  dals-host doctor --json | jq '.[] | select(.status != "ok")'`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings, err := a.examine(cmd.Context())
			if err != nil {
				return err
			}
			failed := 0
			for _, f := range findings {
				if f.Status == statusFail {
					failed++
				}
			}
			if err := a.show(findings, func(t *table) {
				for _, f := range findings {
					t.row(f.Status, f.Check, f.Detail)
					if f.Fix != "" {
						t.row("", "", "fix: "+f.Fix)
					}
				}
			}); err != nil {
				return err
			}
			if failed > 0 {
				return fmt.Errorf("doctor: %s failed", count(failed, "check"))
			}
			return nil
		},
	}
}

// examine runs every check, in the order in which they build on each other.
func (a *app) examine(ctx context.Context) ([]finding, error) {
	dir, err := a.dataDir()
	if err != nil {
		return nil, err
	}
	var findings []finding
	for _, check := range []struct {
		name string
		find func() finding
	}{
		{"user", checkUser},
		{"containers", func() finding { return checkContainers(ctx) }},
		{"ports", checkPorts},
		{"data folder", func() finding { return checkFolder(dir) }},
		{"file system", func() finding { return checkFileSystem(dir) }},
		{"operator key", func() finding { return a.checkKey(ctx) }},
		{"host", func() finding { return a.checkHost(ctx) }},
		{"workers", func() finding { return a.checkWorkers(ctx) }},
	} {
		f := check.find()
		f.Check = check.name
		findings = append(findings, f)
	}
	return findings, nil
}
