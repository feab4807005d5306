// Command dals-worker-template is the worker type to copy: everything that a
// plugin author writes, and nothing else. README.md tells how to make it yours.
//
// Its tasks do little (echo, sleep, fail, info) and keep nothing; they show how
// input, output, errors, deadlines and configuration look.
package main

import "github.com/dals-host/dals-host/sdk"

func main() { sdk.Serve(newType()) }
