// Package workertest runs workers in tests, over the real thing: a worker's
// folder as the forge makes it, with keys, manifest and vault of a throw-away
// host; gRPC with mutual TLS on the worker's unix socket; and signed, stamped
// envelopes. The test plays the host.
//
//	func TestGreet(t *testing.T) {
//		w := workertest.Start(t, newType)
//		answer := w.Send(t.Context(), "greeter.greet", map[string]string{"name": "Nora"})
//		...
//	}
//
// Start runs the worker in the test's process, StartBinary a binary as a process
// of its own. Everything is cleaned up with the test. What cannot be set up ends
// the test; what the worker answers is for the test to judge.
//
// Conformance checks what every worker type promises; Golden keeps a type's
// descriptor from changing unseen.
package workertest
