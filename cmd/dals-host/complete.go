package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

// completionTime is how long a shell waits for the host; what does not come is
// not completed.
const completionTime = time.Second

const noFiles = cobra.ShellCompDirectiveNoFileComp

func completeFlag(cmd *cobra.Command, flag string, names func(context.Context) []string) {
	// The only error is a flag that the line above did not declare.
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return names(cmd.Context()), noFiles
	})
}

// completeWorker completes the first argument.
func (a *app) completeWorker(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	return a.workerNames(cmd.Context()), noFiles
}

// completeSend completes a worker, then a kind of task that it answers.
func (a *app) completeSend(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeWorker(cmd, args, typed)
	case 1:
		return a.kinds(cmd.Context(), args[0]), noFiles
	}
	return nil, cobra.ShellCompDirectiveDefault
}

func (a *app) typeNames(ctx context.Context) []string {
	var names []string
	a.ask(ctx, func(ctx context.Context, c *client.Client) {
		types, _ := c.Types(ctx)
		for _, t := range types {
			names = append(names, t.Name)
		}
	})
	return slices.Compact(names)
}

func (a *app) workerNames(ctx context.Context) []string {
	var names []string
	a.ask(ctx, func(ctx context.Context, c *client.Client) {
		workers, _ := c.Workers(ctx, client.WorkerFilter{})
		for _, w := range workers {
			names = append(names, w.WorkerName)
		}
	})
	return names
}

func (a *app) kinds(ctx context.Context, ref string) []string {
	var kinds []string
	a.ask(ctx, func(ctx context.Context, c *client.Client) {
		w, err := c.Worker(ctx, ref)
		if err != nil {
			return
		}
		types, _ := c.Types(ctx)
		for _, t := range types {
			if t.Name == w.WorkerType && t.Version == w.TypeVersion {
				for _, k := range t.Tasks {
					kinds = append(kinds, k.Kind)
				}
			}
		}
	})
	return kinds
}

func (a *app) ask(ctx context.Context, question func(context.Context, *client.Client)) {
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	// Nobody is at a shell's completion to be told of an error.
	_ = a.with(ctx, func(c *client.Client) error {
		question(ctx, c)
		return nil
	})
}
