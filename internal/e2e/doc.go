// Package e2e holds the tests of the whole: a real dals-host process, real
// plugin binaries, real containers and processes, killed at real moments. It
// has no code of its own.
package e2e
