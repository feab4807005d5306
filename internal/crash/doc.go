// Package crash holds the tests that kill a real host at every failpoint, start
// the next one on the same data folder, and look whether anything is left that
// is not whole. It has no code of its own.
//
// The points come from traced runs of a host that is built with the tag
// failpoint, and have to be those of testdata/points, so that one that is dropped
// shows; -update writes these lists. `make crash` runs the whole and prints its
// table.
package crash
