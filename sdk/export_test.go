package sdk

import "time"

// Tight gives workers of t less time and room than usual.
func Tight(t Type) Type {
	t.bounds = bounds{
		recheck:  100 * time.Millisecond,
		rest:     500 * time.Millisecond,
		askAfter: 500 * time.Millisecond, grace: TightGrace,
		kept: 32, keptBytes: 4 << 20,
	}
	return t
}

// TightGrace is what is left to tasks that end when they are asked to, too.
const TightGrace = 3 * time.Second

// Patient gives tasks of t all the time that they take when the worker shall end.
func Patient(t Type) Type {
	t.bounds = usualBounds()
	t.bounds.askAfter, t.bounds.grace = time.Minute, time.Minute
	return t
}
