// Package registry is the host's memory: workers and their numbers, clients,
// known plugins, outstanding envelopes, and the entries of the record, all in one
// SQLite file. The state of a worker's row is the forge's journal. Nothing else
// in the project speaks SQL.
//
// Every write goes through Update: a closure that one goroutine, the committer,
// runs. It takes all closures that wait, runs each in a savepoint of one
// transaction, commits, and then tells each caller: many callers share one
// fsync, and a nil error means that the write is on disk. The closure runs under
// the committer's own context, never the caller's, because cancelling a running
// statement would undo the whole transaction and everybody's write with it. That
// is why the methods of Tx take no context, against the habit of the language.
//
// A closure that returns an error or panics undoes its own writes and entries
// and nobody else's. Any other failure (a full disk, a transaction that SQLite
// gave up) fails every closure of its group; no space and I/O errors are
// worker.ErrUnavailable, and the next Update starts afresh, so the registry
// heals when the cause is gone. A caller whose context ends is told so at once;
// its write stands if the committer had taken it.
//
// Tx.Append gives an entry the next index of the log in the transaction of the
// change that it records, so the log is dense and tells exactly what happened.
//
// Reads run beside the writer on connections of their own and see what is
// committed. Errors are of the families in host/worker: ErrNotFound,
// ErrConflict, ErrExhausted, ErrUnavailable, ErrCorrupt.
//
// The registry does not keep a second process away (the host locks its data
// folder), makes no keys, binds no ports, and decides nothing: which state may
// follow which, and what an entry says, is up to the layers above.
package registry

//go:generate go tool -modfile=../../tools/sqlc/go.mod sqlc generate
