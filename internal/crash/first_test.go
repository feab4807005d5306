package crash

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// firstStarts kills the first start of a data folder at every point: the second
// one finds or makes what belongs to it, and it is one host, with one pair of
// keys.
func firstStarts(t *testing.T, launcher string, table *table) {
	began := time.Now()
	trace := filepath.Join(t.TempDir(), "trace")
	h := newHost(t, launcher)
	one := map[string]string{"1.0.0": "well"}
	h.install(one)
	h.boot([]string{"DALS_FAILPOINT_TRACE=" + trace})
	h.registered(1)
	points := numbered(quiet(t, trace))
	points = slices.DeleteFunc(points, func(p string) bool { return area(p) == "control" })
	h.down()
	if h.listed("first start", points); *update {
		return
	}
	for _, point := range points {
		m := &matrix{host: newHost(t, launcher), table: table, calls: map[string]int64{}}
		m.install(one)
		err := m.firstStart(point)
		m.judge("first start", point, err)
		m.clean()
	}
	table.took("first start", launcher, time.Since(began))
}

func (m *matrix) firstStart(point string) error {
	m.spawn([]string{"DALS_FAILPOINT=" + point})
	dead, err := m.died(patience)
	if !dead {
		err = m.missed(point)
	}
	m.before = m.log
	m.boot(nil)
	if err != nil {
		return err
	}
	m.registered(1)
	if err := m.forge("1.0.0"); err != nil {
		return fmt.Errorf("forge: %w", err)
	}
	return m.sound()
}

// missed ends a host that runs and has not come to a point, which is an error unless it
// is chance whether one does.
func (m *matrix) missed(point string) error {
	m.kill()
	if republished(point) {
		return nil
	}
	return errors.New("the host did not come to the point")
}

// republished says of a point that it is of the record's second publication or a later
// one: how often a start publishes in the background is chance.
func republished(point string) bool {
	name, count, _ := strings.Cut(point, "#")
	return area(name) == "record" && count != "1"
}
