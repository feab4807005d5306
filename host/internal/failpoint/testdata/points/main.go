// Command points hits the points that its arguments name and says each.
package main

import (
	"fmt"
	"os"

	"github.com/dals-host/dals-host/host/internal/failpoint"
)

func main() {
	for _, name := range os.Args[1:] {
		failpoint.Hit(name, "x")
		fmt.Println(name)
	}
}
