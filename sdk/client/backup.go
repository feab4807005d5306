package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// Backup writes a backup of the running host to w: one file, from which
// dals-host restore makes the host again. The passphrase encrypts the keys of
// the host and its workers; without one they are left out. After an error what
// was written is of no use.
func (c *Client) Backup(ctx context.Context, passphrase string, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream when w fails
	stream, err := c.host.Backup(ctx, &hostv1.BackupRequest{Passphrase: passphrase})
	if err != nil {
		return c.fault(ctx, err)
	}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.fault(ctx, err)
		}
		if _, err := w.Write(part.GetData()); err != nil {
			return fmt.Errorf("write backup: %w", err)
		}
	}
}
