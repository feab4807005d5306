package sdk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// attempt names one delivery of one envelope.
type attempt struct {
	id string
	n  uint32
}

func attemptOf(a *workerv1.Attempt) attempt { return attempt{id: a.GetEnvelopeId(), n: a.GetAttempt()} }

func (a attempt) proto() *workerv1.Attempt {
	return &workerv1.Attempt{EnvelopeId: a.id, Attempt: a.n}
}

func (a attempt) file() string { return fmt.Sprintf("%s/%s.%d", resultsDir, a.id, a.n) }

// newSuffix marks the file of a result that is still being written.
const newSuffix = ".new"

// parseAttempt reads the name of a kept result's file.
func parseAttempt(name string) (attempt, bool) {
	id, number, _ := strings.Cut(name, ".")
	n, err := strconv.ParseUint(number, 10, 32)
	a := attempt{id: id, n: uint32(n)}
	parsed, idErr := uuid.Parse(id)
	ok := err == nil && idErr == nil && parsed.String() == id && path.Base(a.file()) == name
	return a, ok
}

// results are the signed results that the host has not yet receipted, one file
// each. Files survive the end of the process; they are not forced to disk,
// because a result that a power cut takes is one of a host that was cut off too,
// and a torn file is known by its signature, and removed at the next start. write
// and load may be called at any time; the rest keeps the index and is guarded by
// the desk's lock.
type results struct {
	root   *os.Root
	bounds bounds
	log    hclog.Logger
	kept   []keptResult // oldest first
	bytes  int64
}

type keptResult struct {
	attempt attempt
	size    int64
	header  *workerv1.Header // the result's own
}

// openResults finds the results that an earlier process kept. A file that has
// the name of a result, or of one being written, and is none of this worker is
// removed; any other is left alone. Both are logged.
func openResults(f *folder, b bounds, log hclog.Logger) (*results, error) {
	if err := f.root.MkdirAll(resultsDir, 0o700); err != nil {
		return nil, fmt.Errorf("open results: %w", err)
	}
	entries, err := fs.ReadDir(f.root.FS(), resultsDir)
	if err != nil {
		return nil, fmt.Errorf("open results: %w", err)
	}
	r := &results{root: f.root, bounds: b, log: log}
	type found struct {
		keptResult
		at time.Time
	}
	var all []found
	for _, entry := range entries {
		k, at, err := r.inspect(f, entry)
		if err != nil {
			r.reject(entry, err)
			continue
		}
		all = append(all, found{keptResult: k, at: at})
	}
	slices.SortStableFunc(all, func(a, b found) int { return a.at.Compare(b.at) })
	for _, k := range all {
		r.add(k.keptResult)
	}
	r.trim()
	return r, nil
}

// reject deals with what is no result.
func (r *results) reject(entry fs.DirEntry, why error) {
	a, ok := parseAttempt(strings.TrimSuffix(entry.Name(), newSuffix))
	_, unread := errors.AsType[*fs.PathError](why) // it may well be one
	if !ok || unread || !entry.Type().IsRegular() {
		r.log.Warn("ignored a file among the results", "file", entry.Name(), "error", why)
		return
	}
	err := r.root.Remove(path.Join(resultsDir, entry.Name()))
	r.log.Warn("removed a file that is no result", "envelope", a.id, "attempt", a.n, "error", errors.Join(why, err))
}

// inspect says which result a file holds, and since when.
func (r *results) inspect(f *folder, entry fs.DirEntry) (keptResult, time.Time, error) {
	a, ok := parseAttempt(entry.Name())
	info, err := entry.Info()
	switch {
	case err != nil:
		return keptResult{}, time.Time{}, err
	case !ok || !info.Mode().IsRegular():
		return keptResult{}, time.Time{}, errors.New("not a result")
	case info.Size() > maxResultFile:
		return keptResult{}, time.Time{}, errors.New("too large for a result")
	}
	e, err := r.load(a)
	if err != nil {
		return keptResult{}, time.Time{}, err
	}
	h, err := envelope.Parse(e)
	if err != nil {
		return keptResult{}, time.Time{}, err
	}
	if err := envelope.Verify(e, h, f.identity.PublicKey); err != nil {
		return keptResult{}, time.Time{}, err
	}
	if h.InReplyTo != a.id || h.Attempt != a.n {
		return keptResult{}, time.Time{}, errors.New("the result of another attempt")
	}
	return keptResult{attempt: a, size: info.Size(), header: h}, info.ModTime(), nil
}

// maxResultFile is the largest marshalled result.
const maxResultFile = envelope.MaxPayload + envelope.MaxHeader + 1<<10

// write puts a result on disk, to be added. Only one task ever writes the result
// of an attempt.
func (r *results) write(a attempt, e *workerv1.Envelope) (keptResult, error) {
	header, err := envelope.Parse(e)
	if err != nil {
		return keptResult{}, fmt.Errorf("keep result: %w", err)
	}
	data, err := proto.Marshal(e)
	if err != nil {
		return keptResult{}, fmt.Errorf("marshal result: %w", err)
	}
	unfinished := a.file() + newSuffix
	err = r.root.WriteFile(unfinished, data, 0o600)
	if err == nil {
		err = r.root.Rename(unfinished, a.file())
	}
	if err != nil {
		return keptResult{}, errors.Join(fmt.Errorf("keep result: %w", err), r.unlink(unfinished))
	}
	return keptResult{attempt: a, size: int64(len(data)), header: header}, nil
}

// load reads a result back.
func (r *results) load(a attempt) (*workerv1.Envelope, error) {
	data, err := r.root.ReadFile(a.file())
	if err != nil {
		return nil, fmt.Errorf("load result: %w", err)
	}
	e := &workerv1.Envelope{}
	if err := proto.Unmarshal(data, e); err != nil {
		return nil, fmt.Errorf("load result: %w", err)
	}
	return e, nil
}

// add indexes a result that has been written.
func (r *results) add(k keptResult) {
	r.kept = append(r.kept, k)
	r.bytes += k.size
}

// full says whether nothing more should be taken on, with so many in flight.
func (r *results) full(inFlight int) bool {
	return len(r.kept)+inFlight >= r.bounds.kept
}

// hasRoom says whether a task may begin whose result will be kept.
func (r *results) hasRoom() bool { return r.bytes < r.bounds.keptBytes }

// trim drops the oldest where there are too many. It is for when no Exchange is
// open: what one has queued is promised to the host.
func (r *results) trim() {
	for len(r.kept) > r.bounds.kept || r.bytes > r.bounds.keptBytes {
		oldest := r.kept[0].attempt
		r.log.Error("dropped the oldest result: the host has not taken it", "envelope", oldest.id, "attempt", oldest.n)
		r.remove(oldest)
	}
}

// remove forgets a result. One that is not there is no error.
func (r *results) remove(a attempt) {
	i := slices.IndexFunc(r.kept, func(k keptResult) bool { return k.attempt == a })
	if i < 0 {
		return
	}
	r.bytes -= r.kept[i].size
	r.kept = slices.Delete(r.kept, i, i+1)
	if err := r.unlink(a.file()); err != nil {
		r.log.Warn("left a result that is no longer needed", "error", err)
	}
}

func (r *results) unlink(file string) error {
	if err := r.root.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove result: %w", err)
	}
	return nil
}

func (r *results) has(a attempt) bool { return r.header(a) != nil }

// header is that of a kept result, or nil.
func (r *results) header(a attempt) *workerv1.Header {
	i := slices.IndexFunc(r.kept, func(k keptResult) bool { return k.attempt == a })
	if i < 0 {
		return nil
	}
	return r.kept[i].header
}

// attempts are the kept ones, oldest first.
func (r *results) attempts() []attempt {
	all := make([]attempt, len(r.kept))
	for i, k := range r.kept {
		all[i] = k.attempt
	}
	return all
}
