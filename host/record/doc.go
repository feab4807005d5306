// Package record is the accountability log: what entries say, and the Merkle
// log that is a materialised view of them.
//
// The registry owns the entries: each gets its dense index in the transaction
// of the change that it records. This package turns those rows, and nothing
// else, into files that third parties can check: entry bundles and hash tiles
// (C2SP tlog-tiles) and a signed checkpoint (C2SP tlog-checkpoint). One
// goroutine, Log.Run, writes them. Every file is a pure function of the rows,
// so writing again after a crash gives the same bytes; the checkpoint is
// replaced last, so it never covers what is not on disk. Hence the log can
// neither miss what happened nor tell what did not.
//
// The folder holds exactly the files of the tree that the checkpoint names:
// partial tiles are removed once a larger tile has taken their place. Whoever
// writes holds an exclusive flock on the folder, whoever reads a consistent
// picture of it (Verify, Prove, Extends, in any process) a shared one, briefly.
//
// How it fails: Open refuses rows that do not support the checkpoint on disk
// (worker.ErrCorrupt). Errors of the disk never end Run: it tries again, and
// Lag says how far the view has fallen behind. Files that somebody changed are
// never trusted and never repaired in silence: Verify names them.
//
// It does not store entries, decide what is recorded, or hold keys. It proves
// order and integrity against later change, not against a host that lied
// before somebody else saw a checkpoint.
package record
