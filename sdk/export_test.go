package sdk

import "time"

// Tight gives workers of t less time and room than usual.
func Tight(t Type) Type {
	t.bounds = bounds{
		recheck:  100 * time.Millisecond,
		rest:     500 * time.Millisecond,
		askAfter: 500 * time.Millisecond, grace: time.Second,
		kept: 32, keptBytes: 4 << 20,
	}
	return t
}
