package launch

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"

	"github.com/dals-host/dals-host/host/worker"
)

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Check refuses, as worker.ErrInvalid, an image that no launcher may run. It
// does not look at files.
func (i Image) Check() error {
	if !digestForm.MatchString(i.Digest) {
		return fmt.Errorf("image digest %q is not 64 hex digits: %w", i.Digest, worker.ErrInvalid)
	}
	if !filepath.IsAbs(i.Path) {
		return fmt.Errorf("image path %q is relative: %w", i.Path, worker.ErrInvalid)
	}
	return nil
}

// Check refuses, as worker.ErrInvalid, a Spec that no launcher may run: every
// Create begins with it. It does not look at files.
func (s Spec) Check() error {
	if _, err := worker.ParseSerial(string(s.Serial)); err != nil {
		return err
	}
	if err := s.Image.Check(); err != nil {
		return err
	}
	if !filepath.IsAbs(s.Dir) {
		return fmt.Errorf("folder %q is relative: %w", s.Dir, worker.ErrInvalid)
	}
	if s.UID == 0 {
		return fmt.Errorf("a worker never runs as root: %w", worker.ErrInvalid)
	}
	if s.UID < 0 || s.UID > math.MaxInt32 { // beyond, some of the kernel's interfaces read it as negative
		return fmt.Errorf("uid %d is not from 1 to %d: %w", s.UID, math.MaxInt32, worker.ErrInvalid)
	}
	if l := s.Limits; l.MemoryBytes < 0 || l.CPUMillis < 0 || l.PIDs < 0 {
		return fmt.Errorf("negative limit in %+v: %w", l, worker.ErrInvalid)
	}
	return checkMounts(s.Mounts)
}
