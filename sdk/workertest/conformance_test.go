package workertest

import (
	"context"
	"strings"
	"testing"

	"github.com/dals-host/dals-host/sdk"
)

// TestRefusalsOfLongNames: the longest name that a type may have conforms too.
func TestRefusalsOfLongNames(t *testing.T) {
	t.Parallel()
	name := strings.Repeat("n", 32)
	newType := func() sdk.Type {
		return sdk.Type{
			Name: name, Version: "1.0.0", Family: "NN", Summary: "Has a long name.",
			Tasks: []sdk.Task{sdk.Func(name+".do", "Do nothing.", func(context.Context, struct{}) (struct{}, error) { return struct{}{}, nil })},
		}
	}
	w := Start(t, newType)
	conformRefusals(t, w, newType().Tasks)
}
