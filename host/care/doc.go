// Package care looks after a data folder as a whole: it makes a backup of a
// running host, restores one, and makes a lost registry again from the record.
//
// A backup is one signed file (docs/formats/backup.md). It is one moment of the
// registry with the files that belong to it: the checkpoint that the record had
// published, the immutable files of each worker, the plugin binaries that they
// run, and, encrypted, the keys. Workers' own state is not in it.
//
// Restore reads all of a backup and checks it before it writes anything, puts
// the new data folder together beside the target and swaps the two in one
// rename: there is a restored host or what was there before. It refuses what
// would roll the record back behind a checkpoint that somebody still has.
//
// Recover reads the entries from the record's own files, as far as the signed
// checkpoint vouches for them, replays them into a new registry, and tells what
// on disk and in the launcher is not as they say. It never deletes the old
// registry. What a host did after its last checkpoint is not known after that:
// numbers are left out, and envelopes of that time refused.
//
// Restore and Recover are for a data folder that no host runs on: the caller
// holds its lock. Errors are of the families of host/worker; what is damaged is
// named. The package starts no workers and changes none.
package care

// The keys under which the registry remembers what happens once in the life of
// a data folder.
const (
	MetaOperator  = "operator_enrolled" // the id of the operator's first key
	MetaRecord    = "record_published"  // the record has a checkpoint
	MetaNotBefore = "not_before"        // envelopes issued before are refused: RFC 3339
)

// jump is how many numbers a registry that was made again leaves out: more than
// a host gives between two checkpoints, or a careful operator between backups.
const jump = 1000

// UIDs is the range of uids that a root host gives to its workers, both ends
// included; zero where all run as the host's own.
type UIDs struct{ Low, High int }

func (u UIDs) own(uid int) bool { return u.High > 0 && u.Low <= uid && uid <= u.High }
