package sdk

import (
	"context"
	"fmt"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// Describe is what a host is told of t when it probes the binary. The same t
// always gives the same descriptor. A t that cannot be served is an error that
// says everything that is wrong with it.
func Describe(t Type) (*workerv1.TypeDescriptor, error) {
	c, err := t.check()
	if err != nil {
		return nil, fmt.Errorf("check type: %w", err)
	}
	return c.describe(), nil
}

func (c *checkedType) describe() *workerv1.TypeDescriptor {
	d := &workerv1.TypeDescriptor{
		Name:         c.Name,
		Version:      c.Version,
		Family:       c.Family,
		Summary:      c.Summary,
		ConfigSchema: c.config.text,
		Resources: &workerv1.Resources{
			MemoryBytes: c.Resources.MemoryBytes,
			CpuMillis:   c.Resources.CPUMillis,
			Pids:        c.Resources.PIDs,
		},
		Capabilities: c.Capabilities,
	}
	for _, t := range c.Tasks {
		schemas := t.schemas()
		d.Tasks = append(d.Tasks, &workerv1.TaskKind{
			Kind:         t.Kind,
			Summary:      t.Summary,
			InputSchema:  schemas.input.text,
			OutputSchema: schemas.output.text,
		})
	}
	return d
}

// describer answers a host's probe.
type describer struct {
	workerv1.UnimplementedPluginServiceServer
	descriptor *workerv1.TypeDescriptor
}

var _ workerv1.PluginServiceServer = (*describer)(nil)

// Describe gives the descriptor; it never fails.
func (d *describer) Describe(context.Context, *workerv1.DescribeRequest) (*workerv1.DescribeResponse, error) {
	return &workerv1.DescribeResponse{Descriptor_: d.descriptor}, nil
}
