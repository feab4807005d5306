// Command dals-worker-ledger is the worker type that keeps a ledger: an
// append-only Merkle log of records in the worker's own state folder. Every
// record is on disk before it is answered for, can be proved to be in the log,
// and the log can be proved to only ever have grown: by anybody, with the
// worker's public key and golang.org/x/mod/sumdb.
//
// README.md describes its tasks and what can go wrong.
package main

import "github.com/dals-host/dals-host/sdk"

func main() { sdk.Serve(newType()) }
