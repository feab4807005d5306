//go:build !failpoint

package containerd

import "google.golang.org/grpc"

// pointOptions is nothing in a release build.
func pointOptions() []grpc.DialOption { return nil }
