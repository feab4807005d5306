// Package sdk is what the author of a worker type needs: describe the type with
// Type and Func, and give it to Serve, which is the whole main of the binary.
//
//	func main() {
//		sdk.Serve(sdk.Type{
//			Name: "greeter", Version: "1.0.0", Family: "GR", Summary: "Greets.",
//			Tasks: []sdk.Task{sdk.Func("greeter.greet", "Greet somebody.", greet)},
//		})
//	}
//
// Copy plugins/template to start, and test with sdk/workertest.
//
// In a worker the package keeps the worker's promises, so that a task need not:
// every envelope is checked again (the sender's proof, the host's stamp, that
// it is meant for this worker, in time and new), its payload fits the schema
// before a task sees it, a task has its deadline, a panic fails one task and
// nothing else, and every result is signed with the worker's own key and kept
// on disk until the host says that it has it. Losing the host loses no result, as
// long as there are no more than 512, or 64 MiB of them.
//
// What it does not do: confine a task (the host's launcher does), end one that
// ignores its context, or keep what a task should remember (use StateDir).
//
// The package writes JSON log lines to stderr; in a worker whatever else the
// process prints to stdout goes there too.
package sdk
