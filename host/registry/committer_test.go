package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/worker"
)

// append1 is a closure that appends one entry and says where it went.
func append1(entry string, index *uint64) func(*Tx) error {
	return func(tx *Tx) (err error) {
		*index, err = tx.Append([]byte(entry))
		return err
	}
}

// together runs closures in one group: they pile up behind one that waits for
// them.
func together(t *testing.T, r *Registry, closures ...func(*Tx) error) []error {
	t.Helper()
	errs := make([]error, len(closures))
	var wg sync.WaitGroup
	wg.Go(func() {
		first := r.Update(t.Context(), func(*Tx) error {
			for i, closure := range closures {
				wg.Go(func() { errs[i] = r.Update(t.Context(), closure) })
				await(t, "closure to queue", func() bool { return queued(r) == i+1 })
			}
			return nil
		})
		if first != nil {
			t.Error(first)
		}
	})
	wg.Wait()
	return errs
}

func queued(r *Registry) int {
	r.committer.mu.Lock()
	defer r.committer.mu.Unlock()
	return len(r.committer.queue)
}

// await polls a condition.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Errorf("no %s in a minute", what)
			return
		}
	}
}

func TestCancelledCallerHarmsNobody(t *testing.T) {
	r := openTest(t)
	const callers, cancelled = 100, 42
	ctx, cancel := context.WithCancel(t.Context())
	running, release := make(chan struct{}), make(chan struct{})
	inStatement := func() { close(running); <-release }
	hold.Store(&inStatement)
	indices := make([]uint64, callers)
	told := make(chan struct{})
	var wg sync.WaitGroup
	for i := range callers {
		entry := fmt.Sprintf("entry %d", i)
		closure := append1(entry, &indices[i])
		if i == cancelled {
			wg.Go(func() {
				err := r.Update(ctx, func(tx *Tx) error {
					if err := closure(tx); err != nil {
						return err
					}
					var n int
					return tx.conn.QueryRowContext(tx.ctx, `WITH RECURSIVE n(i) AS (
						SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 1000) SELECT sum(hold(i)) FROM n`).Scan(&n)
				})
				if err != nil {
					t.Errorf("cancelled caller whose closure ran: %v", err)
				}
				close(told)
			})
			continue
		}
		wg.Go(func() {
			if err := r.Update(t.Context(), func(tx *Tx) error {
				return errors.Join(closure(tx), tx.SetMeta(entry, entry))
			}); err != nil {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	<-running
	cancel()
	select {
	case <-told:
		t.Error("the cancelled caller was told while its statement still ran")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	wg.Wait()

	log := entries(t, r)
	if len(log) != callers {
		t.Fatalf("%d entries, want %d: the write of the cancelled caller stands too", len(log), callers)
	}
	for i, index := range indices {
		entry := fmt.Sprintf("entry %d", i)
		if log[index] != entry {
			t.Errorf("entry %d is %q, want %q", index, log[index], entry)
		}
		if i == cancelled {
			continue // it wrote no meta
		}
		if value, err := r.Meta(t.Context(), entry); value != entry {
			t.Errorf("meta of caller %d: %q, %v", i, value, err)
		}
	}
}

func TestCallerWhoLeavesTheQueueRunsNothing(t *testing.T) {
	r := openTest(t)
	ctx, cancel := context.WithCancel(t.Context())
	update(t, r, func(*Tx) error {
		left := make(chan error)
		go func() {
			left <- r.Update(ctx, func(*Tx) error { t.Error("closure ran"); return nil })
		}()
		await(t, "closure to queue", func() bool { return queued(r) == 1 })
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		return nil
	})
	update(t, r, func(*Tx) error { return nil })
	if err := r.Update(ctx, func(*Tx) error { t.Error("closure ran"); return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestFailingClosuresLeaveTheirGroupAlone(t *testing.T) {
	var logged bytes.Buffer
	r := openTest(t)
	r.committer.logger = hclog.New(&hclog.LoggerOptions{Output: &logged})
	mine := errors.New("my own")
	var a, b, c, d, e uint64
	errs := together(t, r,
		append1("a", &a),
		func(tx *Tx) error {
			return errors.Join(append1("b", &b)(tx), tx.SetMeta("b", "b"), mine)
		},
		append1("c", &c),
		func(tx *Tx) error {
			_ = append1("panic", new(uint64))(tx)
			_ = tx.SetMeta("panic", "panic")
			panic("oh no")
		},
		func(tx *Tx) error { // a violation ends its statement, not the closure
			j := Client{ID: "j", Name: "robot"}
			if err := errors.Join(append1("d", &d)(tx), tx.AddClient(j)); err != nil {
				return err
			}
			if err := tx.AddClient(j); !errors.Is(err, worker.ErrConflict) {
				t.Errorf("second client with one id: %v", err)
			}
			return nil
		},
		func(tx *Tx) error { return tx.AddClient(Client{ID: "j", Name: "other"}) },
		append1("e", &e),
	)
	for i, err := range errs {
		switch i {
		case 1:
			if !errors.Is(err, mine) {
				t.Errorf("closure %d: %v", i, err)
			}
		case 3:
			if err == nil || !strings.Contains(err.Error(), "oh no") {
				t.Errorf("closure %d: %v", i, err)
			}
			if !strings.Contains(logged.String(), "committer_test.go") {
				t.Errorf("the log has no stack of the panic: %s", logged.String())
			}
		case 5:
			if !errors.Is(err, worker.ErrConflict) || !strings.Contains(err.Error(), "id is taken") {
				t.Errorf("closure %d: %v", i, err)
			}
		default:
			if err != nil {
				t.Errorf("closure %d: %v", i, err)
			}
		}
	}
	if got := strings.Join(entries(t, r), " "); got != "a c d e" {
		t.Errorf("log is %q", got)
	}
	if a != 0 || c != 1 || d != 2 || e != 3 {
		t.Errorf("indices %d %d %d %d", a, c, d, e)
	}
	for _, key := range []string{"b", "panic"} {
		if _, err := r.Meta(t.Context(), key); !errors.Is(err, worker.ErrNotFound) {
			t.Errorf("meta %s: %v", key, err)
		}
	}
	for g, err := range r.Groups(t.Context(), 0) {
		if err != nil || len(g.Entries) != 4 {
			t.Errorf("group of %d, %v: the closures did not share one", len(g.Entries), err)
		}
	}
}

// A closure in whose midst SQLite gave up the whole transaction, as it may on a
// full disk, fails everybody, even if it goes on as if nothing had happened.
func TestAbortedTransactionFailsTheGroup(t *testing.T) {
	for name, swallow := range map[string]bool{"told": false, "swallowed": true} {
		t.Run(name, func(t *testing.T) {
			r := openTest(t)
			update(t, r, func(tx *Tx) error {
				_, err := tx.conn.ExecContext(tx.ctx, `CREATE TRIGGER abort BEFORE INSERT ON meta
					WHEN NEW.key = 'abort' BEGIN SELECT RAISE(ROLLBACK, 'all is lost'); END`)
				return err
			})
			mine := errors.New("my own")
			errs := together(t, r,
				append1("before", new(uint64)),
				func(*Tx) error { return mine },
				func(tx *Tx) error { return tx.SetMeta("before", "x") },
				func(tx *Tx) error {
					err := tx.SetMeta("abort", "x")
					if err == nil || !strings.Contains(err.Error(), "all is lost") {
						t.Errorf("abort: %v", err)
					}
					after := tx.SetMeta("after", "x")
					if after == nil {
						t.Error("a statement ran after its transaction was gone")
					}
					if swallow {
						return nil
					}
					return err
				},
				append1("behind", new(uint64)),
			)
			for i, err := range errs {
				if err == nil {
					t.Errorf("closure %d was told that it succeeded", i)
				}
				if want := i != 1; want == errors.Is(err, mine) {
					t.Errorf("closure %d: %v", i, err)
				}
			}
			for _, key := range []string{"before", "abort", "after"} {
				if _, err := r.Meta(t.Context(), key); !errors.Is(err, worker.ErrNotFound) {
					t.Errorf("meta %s: %v", key, err)
				}
			}
			if log := entries(t, r); len(log) != 0 {
				t.Errorf("log is %q", log)
			}
			var index uint64
			update(t, r, append1("next", &index))
			if log := entries(t, r); len(log) != 1 || index != 0 {
				t.Errorf("log is %q, the entry was told index %d", log, index)
			}
		})
	}
}

func TestKeptTxIsRefused(t *testing.T) {
	r := openTest(t)
	var kept *Tx
	update(t, r, func(tx *Tx) error { kept = tx; return nil })
	if _, err := kept.Append([]byte("x")); err == nil {
		t.Error("a transaction that is over took an entry")
	}
	if err := kept.SetMeta("x", "x"); err == nil {
		t.Error("a transaction that is over took a write")
	}
}

func TestCloseDrains(t *testing.T) {
	r := openTest(t)
	const callers = maxGroup + 20 // more than one group
	var done atomic.Int32
	closed := make(chan error)
	var wg sync.WaitGroup
	update(t, r, func(*Tx) error {
		for i := range callers {
			wg.Go(func() {
				if err := r.Update(t.Context(), append1("x", new(uint64))); err == nil {
					done.Add(1)
				}
			})
			await(t, "closure to queue", func() bool { return queued(r) == i+1 })
		}
		go func() { closed <- r.Close() }()
		await(t, "refusal", func() bool {
			r.committer.mu.Lock()
			defer r.committer.mu.Unlock()
			return r.committer.closed
		})
		return nil
	})
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if done.Load() != callers {
		t.Errorf("%d of %d accepted closures were committed", done.Load(), callers)
	}
	err := r.Update(t.Context(), func(*Tx) error { t.Error("closure ran"); return nil })
	if !errors.Is(err, ErrClosed) || !errors.Is(err, worker.ErrUnavailable) {
		t.Errorf("update after close: %v", err)
	}
}

// A closure that ends the committer's goroutine (t.FailNow does) must not leave
// everybody waiting.
func TestGoexitEndsTheRegistry(t *testing.T) {
	r := openTest(t)
	for range 2 {
		if err := r.Update(t.Context(), func(*Tx) error { runtime.Goexit(); return nil }); !errors.Is(err, ErrClosed) {
			t.Errorf("update: %v", err)
		}
	}
}

func TestCommitted(t *testing.T) {
	r := openTest(t)
	update(t, r, func(tx *Tx) error { return tx.SetMeta("no", "entry") })
	select {
	case <-r.Committed():
		t.Error("woken without an entry")
	default:
	}
	for range 3 {
		update(t, r, append1("x", new(uint64)))
	}
	<-r.Committed()
	select {
	case <-r.Committed():
		t.Error("woken twice")
	default:
	}
	if size, err := r.Size(t.Context()); size != 3 || err != nil {
		t.Errorf("size %d, %v", size, err)
	}
}
