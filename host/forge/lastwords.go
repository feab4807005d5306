package forge

import (
	"io"
	"path"
	"strings"
	"unicode"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/worker"
)

// lastWords is the end of a worker's log, fit to stand in an error: what it said
// before it ended is what its author needs, and the folder is about to go.
func (f *Forge) lastWords(serial worker.Serial) string {
	const enough = 500
	root, err := f.Stage.OpenRoot(serial)
	if err != nil {
		return ""
	}
	defer root.Close()
	log, err := root.Open(path.Join(launch.LogsDir, launch.LogFile))
	if err != nil {
		return ""
	}
	defer log.Close()
	if info, err := log.Stat(); err == nil && info.Size() > enough {
		_, _ = log.Seek(-enough, io.SeekEnd) // at worst it tells of the beginning
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
