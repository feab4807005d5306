// Package crash holds the tests that kill a real host at every failpoint, start
// the next one on the same data folder, and look whether anything is left that
// is not whole. It has no code of its own.
//
// The points come from traced runs of a host that is built with the tag
// failpoint: a step or a durable write that is new is killed at without being
// listed anywhere. `make crash` runs the whole and prints its table.
package crash
