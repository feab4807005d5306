package sdk_test

import (
	"context"

	"github.com/dals-host/dals-host/sdk"
)

// The whole program of a worker type.
func Example() {
	type greetInput struct {
		Name string `json:"name"`
	}
	type greetOutput struct {
		Greeting string `json:"greeting"`
	}
	config := &struct {
		Word string `json:"word" jsonschema:"what to say before the name"`
	}{Word: "hello"}

	greet := func(_ context.Context, in greetInput) (greetOutput, error) {
		if in.Name == "" {
			return greetOutput{}, sdk.Errorf("nobody", "greet: the name is empty")
		}
		return greetOutput{Greeting: config.Word + " " + in.Name}, nil
	}
	sdk.Serve(sdk.Type{
		Name:    "greeter",
		Version: "1.0.0",
		Family:  "GR",
		Summary: "Greets.",
		Config:  config,
		Tasks:   []sdk.Task{sdk.Func("greeter.greet", "Greet somebody.", greet)},
	})
}
