// Package repotest holds the tests of the repository's shape: which package may
// import which, that every package says what it is for, that the README's
// commands exist, which licences are linked. It has no code of its own; what
// it finds is in the failure, with the reason for the rule.
package repotest
