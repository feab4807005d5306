// Package failpoint marks the places between which the host may die: Hit stands
// before and after every step and every durable write. In a release build Hit
// is an empty function that the compiler removes, arguments and all.
//
// Built with the tag failpoint, a host obeys its environment:
//
//   - DALS_FAILPOINT=NAME[#N][@FIRST] kills the process, by SIGKILL, at the N-th
//     hit of the point NAME (the first, if not said). With @FIRST the counting
//     begins when the point FIRST is hit.
//   - DALS_FAILPOINT_PAUSE=FIFO makes it pause at that point instead: it writes
//     the point's name to the FIFO and goes on once something was written back.
//   - DALS_FAILPOINT_TRACE=FILE appends the name of every hit to FILE, a line
//     each: a run lists its own points.
//
// A point's name is what Hit was given, joined by slashes:
// "<area>/<what>/before" and "<area>/<what>/after". The tests of internal/crash
// generate what they do from such a list.
package failpoint
