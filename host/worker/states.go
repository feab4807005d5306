package worker

import (
	"fmt"
	"slices"
	"strings"
)

// StateNames lists the states, in the order of a life.
func StateNames() []string {
	return []string{
		string(StateForging), string(StateLive), string(StateRestarting), string(StateFailed),
		string(StateStopped), string(StateUpgrading), string(StateRetiring), string(StateRetired),
	}
}

// ParseState reads the name of a state.
func ParseState(s string) (State, error) {
	if !slices.Contains(StateNames(), s) {
		return "", Hint(fmt.Errorf("worker state %s: %w", quote(s), ErrInvalid), "use one of "+strings.Join(StateNames(), ", "))
	}
	return State(s), nil
}
