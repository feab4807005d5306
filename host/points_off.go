//go:build !failpoint

package host

import "github.com/dals-host/dals-host/host/launch"

// withPoints is the launcher itself in a release build.
func withPoints(l launch.Launcher) launch.Launcher { return l }

// withoutPoints is the launcher itself.
func withoutPoints(l launch.Launcher) launch.Launcher { return l }
