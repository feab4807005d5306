package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/dals-host/dals-host/sdk/client"
)

const (
	// maxCount bounds how many workers one command forges.
	maxCount = 1000
	// forgesAtOnce is how many of them are on their way at a time.
	forgesAtOnce = 8
)

// forgedMany is what forge --count prints.
type forgedMany struct {
	Made   []client.Forged `json:"made"` // those that existed too
	Failed []failedForge   `json:"failed"`
}

// failedForge is a worker that was not made.
type failedForge struct {
	WorkerName string `json:"worker_name"`
	Error      string `json:"error"`
	Hint       string `json:"hint,omitempty"`
}

// forgeMany forges the workers NAME-1 to NAME-count. One that fails does not keep
// the others from being made. An interruption lets none begin; those on their way
// finish, so that what is said of them is what became of them.
func (a *app) forgeMany(ctx context.Context, c *client.Client, r client.ForgeRequest, count int) error {
	results := make([]result, count)
	bar := a.newBar(count)
	defer context.AfterFunc(ctx, bar.interrupt)()
	var g errgroup.Group
	g.SetLimit(forgesAtOnce)
	for i := range results {
		one := r
		one.Name = fmt.Sprintf("%s-%d", r.Name, i+1)
		results[i].name = one.Name
		g.Go(func() error {
			if results[i].err = ctx.Err(); results[i].err == nil {
				results[i].made, results[i].err = c.Forge(context.WithoutCancel(ctx), one)
			}
			bar.step(results[i].err != nil)
			return nil
		})
	}
	_ = g.Wait() // each tells for itself
	bar.end()
	return a.showMany(ctx, results)
}

// result is what became of one of many.
type result struct {
	name string
	made client.Forged
	err  error
}

func (a *app) showMany(ctx context.Context, results []result) error {
	said := forgedMany{Made: []client.Forged{}, Failed: []failedForge{}}
	workers := []client.Worker{}
	var first error
	for _, r := range results {
		if r.err == nil {
			said.Made = append(said.Made, r.made)
			workers = append(workers, r.made.Worker)
			continue
		}
		if first == nil {
			first = r.err
		}
		said.Failed = append(said.Failed, failedForge{r.name, oneLine(r.err.Error()), oneLine(hintOf(r.err))})
	}
	if err := a.show(said, func(t *table) { workerTable(t, workers) }); err != nil {
		return err
	}
	if first == nil {
		return nil
	}
	a.listFailed(said.Failed)
	err := fmt.Errorf("%d of %s not made", len(said.Failed), count(len(results), "worker"))
	if ctx.Err() != nil {
		err = fmt.Errorf("interrupted: %w", err)
	}
	err = withHint(err, "the same command again makes those that are missing")
	if len(workers) > 0 {
		return &partlyError{err}
	}
	return err
}

// listFailed names the workers that were not made on stderr: those that have the
// same reason in one line.
func (a *app) listFailed(failed []failedForge) {
	names := map[string][]string{}
	var reasons []string
	for _, f := range failed {
		reason := strings.TrimPrefix(f.Error, "forge "+f.WorkerName+": ")
		if names[reason] == nil {
			reasons = append(reasons, reason)
		}
		names[reason] = append(names[reason], f.WorkerName)
	}
	for _, reason := range reasons {
		fmt.Fprintf(a.stderr, "%s %s: %s\n", a.paint(red, "not made:"), strings.Join(names[reason], ", "), reason)
	}
}

// bar shows people at a terminal how far many forges have come.
type bar struct {
	a            *app
	on           bool
	total        int
	mu           sync.Mutex
	done, missed int
}

func (a *app) newBar(total int) *bar {
	return &bar{a: a, on: !a.quiet && isTerminal(a.stderr) && os.Getenv("TERM") != "dumb", total: total}
}

func (b *bar) step(failed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done++
	if failed {
		b.missed++
	}
	if !b.on {
		return
	}
	const width = 40
	full := b.done * width / b.total
	fmt.Fprintf(b.a.stderr, "\r[%s%s] %d of %d", strings.Repeat("#", full), strings.Repeat(" ", width-full), b.done, b.total)
	if b.missed > 0 {
		fmt.Fprintf(b.a.stderr, ", %d not made", b.missed)
	}
}

// interrupt says why the command does not end at once.
func (b *bar) interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.on {
		fmt.Fprintln(b.a.stderr)
	}
	b.a.message("interrupted: finishing the workers on their way; interrupt again to leave them to the host")
}

func (b *bar) end() {
	if b.on {
		fmt.Fprintln(b.a.stderr)
	}
}
