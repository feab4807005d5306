package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/envelope"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

// maxInput bounds what is read of a payload or an envelope, in bytes: more than
// the gate lets through, so that its refusal can be seen.
const maxInput = 8 << 20

func sendCommand(a *app) *cobra.Command {
	var (
		timeout      time.Duration
		signOnly     string
		envelopeFile string
	)
	cmd := &cobra.Command{
		Use:   "send WORKER KIND [JSON|-|@FILE]",
		Short: "Send a signed envelope to a worker and print the result",
		Long: `Send a signed envelope to a worker and print the result, after its signature was
verified. WORKER is a name or a serial; the payload is given as it is,
from stdin (-) or from a file (@FILE), and is {} when left out.

--sign-only writes the signed envelope to a file and sends nothing; --envelope
sends such a file as it is, once, within 30 seconds of its signing.`,
		Example: `  dals-host send nora template.echo '{"message": "hello"}'
  echo '{"message": "hello"}' | dals-host send nora template.echo - --json
  dals-host send nora template.echo @hello.json --sign-only hello.env
  dals-host send --envelope hello.env`,
		ValidArgsFunction: a.completeSend,
		Args: func(cmd *cobra.Command, args []string) error {
			if envelopeFile == "" {
				return between(2, 3)(cmd, args)
			}
			if signOnly != "" {
				return usagef("--envelope and --sign-only exclude each other")
			}
			return exactly(0)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := notNegative("timeout", timeout); err != nil {
				return err
			}
			if envelopeFile != "" {
				return a.sendFile(cmd.Context(), envelopeFile, timeout)
			}
			r := client.SendRequest{Worker: args[0], Kind: args[1], Timeout: timeout}
			if len(args) == 3 {
				payload, err := a.readPayload(args[2])
				if err != nil {
					return fmt.Errorf("read payload: %w", err)
				}
				r.Input = payload
			}
			if signOnly != "" {
				return a.withKey(cmd.Context(), func(c *client.Client) error {
					return a.sign(cmd.Context(), c, r, signOnly)
				})
			}
			return a.withKey(cmd.Context(), func(c *client.Client) error {
				return a.showResult(c.Send(cmd.Context(), r))
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "bound on the task, from its admission")
	cmd.Flags().StringVar(&signOnly, "sign-only", "", "write the signed envelope to `FILE` and send nothing")
	cmd.Flags().StringVar(&envelopeFile, "envelope", "", "send the envelope in `FILE` as it is")
	return cmd
}

func (a *app) readPayload(arg string) ([]byte, error) {
	if arg == "-" {
		return a.readInput(arg, maxInput)
	}
	if file, ok := strings.CutPrefix(arg, "@"); ok {
		return a.readInput(file, maxInput)
	}
	return []byte(arg), nil
}

func (a *app) sendFile(ctx context.Context, file string, timeout time.Duration) error {
	data, err := a.readInput(file, maxInput)
	if err != nil {
		return fmt.Errorf("read envelope: %w", err)
	}
	env := &workerv1.Envelope{}
	if err := proto.Unmarshal(data, env); err != nil {
		return fmt.Errorf("read envelope %s: not an envelope: %w", file, err)
	}
	return a.with(ctx, func(c *client.Client) error {
		return a.showResult(c.SendEnvelope(ctx, env, timeout))
	})
}

// showResult prints a verified result. One of a task that failed is data too,
// and an error besides; so is what is known of an envelope without an end.
func (a *app) showResult(r client.Result, err error) error {
	_, ran := errors.AsType[*client.TaskError](err)
	switch {
	case r.Status == client.StatusUnknown:
		return a.showUnknown(r, err)
	case err != nil && !ran:
		return err
	case a.json:
		return errors.Join(a.document(r), err)
	case err != nil:
		return err
	}
	var text bytes.Buffer
	if json.Indent(&text, r.Result, "", "  ") != nil {
		text.WriteString("null") // the worker's output is not JSON
	}
	for line := range strings.Lines(text.String()) {
		if _, err := fmt.Fprintln(a.stdout, printable(strings.TrimRight(line, "\n"))); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
	a.message("%s by %s in %d ms, signature verified, log entry %d", r.Kind, r.WorkerSerial, r.DurationMS, r.LogIndex)
	return nil
}

// showUnknown tells of an envelope that was sent and whose end was not learnt: by
// its id one can ask later.
func (a *app) showUnknown(r client.Result, err error) error {
	if a.json {
		return errors.Join(a.document(struct {
			ID           string `json:"id"`
			WorkerSerial string `json:"worker_serial,omitempty"`
			Kind         string `json:"kind"`
			Status       string `json:"status"`
		}{r.ID, r.WorkerSerial, r.Kind, r.Status}), err)
	}
	if errors.Is(err, context.Canceled) { // which will be told as an interruption, and nothing else
		a.message("envelope %s may have been admitted: dals-host vault prove %s tells", r.ID, r.ID)
	}
	return err
}

// sign writes the envelope as it would travel: a protobuf message.
func (a *app) sign(ctx context.Context, c *client.Client, r client.SendRequest, file string) error {
	env, err := c.Sign(ctx, r)
	if err != nil {
		return err
	}
	header, err := envelope.Parse(env)
	if err != nil {
		return fmt.Errorf("read back envelope: %w", err)
	}
	data, err := proto.Marshal(env)
	if err != nil {
		return fmt.Errorf("marshal envelope: %w", err)
	}
	if err := renameio.WriteFile(file, data, 0o600); err != nil {
		return fmt.Errorf("write envelope: %w", err)
	}
	signed := struct {
		ID        string      `json:"id"`
		File      string      `json:"file"`
		Recipient string      `json:"recipient"`
		Kind      string      `json:"kind"`
		Expires   client.Time `json:"expires"`
	}{header.GetId(), file, header.GetRecipient(), header.GetKind(), client.Time{Time: time.UnixMilli(header.GetExpiresUnixMs())}}
	return a.show(signed, func(t *table) {
		t.text("envelope %s for %s in %s, to be sent before %s", signed.ID, signed.Recipient, file, stamp(signed.Expires))
	})
}
