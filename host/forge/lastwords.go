package forge

import (
	"io"
	"os"
	"path"
	"strings"
	"unicode"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// openLog opens a worker's log to read.
func (f *Forge) openLog(serial worker.Serial) (*os.File, error) {
	root, err := f.Stage.OpenRoot(serial)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Open(path.Join(launch.LogsDir, launch.LogFile))
}

// logSize is how long a worker's log is; 0 where there is none to read.
func (f *Forge) logSize(serial worker.Serial) int64 {
	log, err := f.openLog(serial)
	if err != nil {
		return 0
	}
	defer log.Close()
	info, err := log.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}

// LastWords is the end of a worker's log, fit to stand behind the reason why it
// failed; empty where there is none to read.
func (f *Forge) LastWords(serial worker.Serial) string { return f.lastWords(serial, 0) }

// lastWords is the end of a worker's log since it was logged bytes long, fit to
// stand in an error: what it said before it ended is what its author needs, and
// the folder may be about to go.
func (f *Forge) lastWords(serial worker.Serial, logged int64) string {
	const enough = 500
	log, err := f.openLog(serial)
	if err != nil {
		return ""
	}
	defer log.Close()
	if info, err := log.Stat(); err == nil {
		if info.Size() < logged {
			logged = 0 // it was cut
		}
		_, _ = log.Seek(max(logged, info.Size()-enough), io.SeekStart) // at worst it tells of the beginning
	}
	tail, err := io.ReadAll(io.LimitReader(log, enough))
	words := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, strings.TrimSpace(string(tail)))
	if err != nil || words == "" {
		return ""
	}
	return "; its log ends: " + words
}
