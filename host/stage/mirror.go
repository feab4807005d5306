package stage

import (
	"bytes"
	"fmt"
	"path"

	"github.com/dals-host/dals-host/host/internal/failpoint"
	"github.com/dals-host/dals-host/host/worker"
)

// WriteMirror writes instances/worker_<serial>.json, when it does not say the
// same already. The registry is the truth; this is for people and scripts.
func (s *Store) WriteMirror(serial worker.Serial, json []byte) error {
	name, err := mirror(serial)
	if err != nil {
		return err
	}
	if old, err := s.root.ReadFile(name); err == nil && bytes.Equal(old, json) {
		return nil
	}
	// Not made durable: what a power cut damages differs, and is written again.
	unfinished := path.Join(staging, path.Base(name))
	failpoint.Hit("stage", "mirror", "before")
	err = s.root.WriteFile(unfinished, json, 0o600)
	if err == nil {
		err = s.root.Rename(unfinished, name)
	}
	failpoint.Hit("stage", "mirror", "after")
	if err != nil {
		return fmt.Errorf("write mirror of %s: %w", serial, err)
	}
	return nil
}

func mirror(serial worker.Serial) (string, error) {
	name, err := promoted(serial)
	if err != nil {
		return "", err
	}
	return path.Join(path.Dir(name), "worker_"+path.Base(name)+".json"), nil
}
