// Command containerd-shim-dals-v1 is a containerd shim for workers. containerd runs
// it; see package shim.
package main

import (
	"fmt"
	"os"

	"github.com/dals-host/dals-host/host/launch/containerd/shim"
)

func main() {
	if err := shim.Main(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, shim.Binary+":", err)
		os.Exit(1)
	}
}
