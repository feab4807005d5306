package process

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/internal/whole"
	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/internal/pidfd"
	"github.com/dals-host/dals-host/host/worker"
)

// record is what outlives the host: one JSON file per created worker.
type record struct {
	Spec launch.Spec     `json:"spec"`
	Run  *pidfd.Identity `json:"run,omitempty"`  // from Start until Stop has settled it
	Exit *launch.Exit    `json:"exit,omitempty"` // of the last settled run
}

func (r record) exit() launch.Exit {
	if r.Exit == nil {
		return launch.Exit{Unknown: true}
	}
	return *r.Exit
}

func (r record) save(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	failpoint.Hit("process", "record", "before")
	if err := whole.WriteFile(recordPath(dir, r.Spec.Serial), append(data, '\n')); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	failpoint.Hit("process", "record", "after")
	return nil
}

func recordPath(dir string, serial worker.Serial) string {
	return filepath.Join(dir, string(serial)+".json")
}

func (l *Launcher) lockPath(serial worker.Serial) string {
	return filepath.Join(l.dir, string(serial)+".lock")
}

func loadRecords(dir string) ([]record, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list records: %w", err)
	}
	var all []record
	for _, e := range entries {
		serial, isRecord := strings.CutSuffix(e.Name(), ".json")
		if !isRecord {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read record: %w", err)
		}
		rec, err := parseRecord(data)
		if err != nil || string(rec.Spec.Serial) != serial {
			return nil, worker.Hint(fmt.Errorf("read record %s: %w", e.Name(), worker.ErrCorrupt),
				"see whether the worker runs (ps -ef | grep "+serial+"), end it, then delete the record")
		}
		all = append(all, rec)
	}
	return all, nil
}

func parseRecord(data []byte) (record, error) {
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return record{}, err
	}
	return rec, check(rec.Spec)
}
