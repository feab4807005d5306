package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/identity"
)

func clientCommand(a *app) *cobra.Command {
	return group(&cobra.Command{
		Use:   "client",
		Short: "Say who may send envelopes",
		Example: `  dals-host client add ci --key-out ci.key
  dals-host client list
  dals-host client revoke ci`,
	}, clientAddCommand(a), clientListCommand(a), clientRevokeCommand(a))
}

func clientAddCommand(a *app) *cobra.Command {
	var keyOut string
	cmd := &cobra.Command{
		Use:   "add NAME --key-out FILE",
		Short: "Make a key and enrol it: who holds it may send envelopes",
		Long: `Make a key and enrol it: who holds it may send envelopes. The private key is
written to FILE (PKCS#8, mode 0600, never over another file) and goes nowhere
else; the host learns the public one.`,
		Example: `  dals-host client add ci --key-out ci.key
  dals-host send nora template.info --key ci.key`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needs(cmd, "key-out"); err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *client.Client) error {
				return a.addClient(cmd.Context(), c, args[0], keyOut)
			})
		},
	}
	cmd.Flags().StringVar(&keyOut, "key-out", "", "`FILE` for the private key")
	return cmd
}

func (a *app) addClient(ctx context.Context, c *client.Client, name, keyOut string) error {
	public, err := writeNewKey(keyOut)
	if err != nil {
		return fmt.Errorf("write client key: %w", err)
	}
	added, err := c.AddClient(ctx, name, public)
	if err != nil {
		// A key that was refused is of no use; else the host may have enrolled it.
		if said, ok := errors.AsType[*client.Error](err); ok && refusedByHost(said.Code) {
			return errors.Join(err, os.Remove(keyOut))
		}
		return err
	}
	document := struct {
		client.Enrolment

		KeyFile string `json:"key_file"`
	}{added, keyOut}
	return a.show(document, func(t *table) { t.text("client %s (%s) may send with %s", added.Name, added.ID, keyOut) })
}

// refusedByHost says that an error leaves no doubt that nothing was done.
func refusedByHost(code string) bool {
	switch code {
	case client.CodeUnavailable, client.CodeInternal, client.CodeCanceled, client.CodeDeadline:
		return false
	}
	return true
}

// writeNewKey makes a key in a file of its own and gives the public half.
func writeNewKey(file string) (_ ed25519.PublicKey, err error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	pem, err := identity.MarshalKey(key)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, withHint(err, "keys are never overwritten: give another file")
	}
	if err != nil {
		return nil, err
	}
	_, err = f.Write(pem)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(file))
	}
	return public, nil
}

func clientListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List who may send envelopes, and who was revoked",
		Example: `  dals-host client list
  dals-host client list --json | jq -r '.[].id'`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return answer(cmd.Context(), a, func(c *client.Client) ([]client.Enrolment, error) {
				return c.Clients(cmd.Context())
			}, clientTable)
		},
	}
}

func clientTable(t *table, clients []client.Enrolment) {
	t.row("NAME", "ID", "SINCE", "REVOKED")
	for _, k := range clients {
		t.row(k.Name, k.ID, stamp(k.CreatedAt), stamp(k.RevokedAt))
	}
}

func clientRevokeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke NAME",
		Short:   "End a client's right to send, at once and for good",
		Example: `  dals-host client revoke ci`,
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return answer(cmd.Context(), a, func(c *client.Client) (client.Enrolment, error) {
				return c.RevokeClient(cmd.Context(), args[0])
			}, func(t *table, k client.Enrolment) { t.text("client %s (%s) may send no more", k.Name, k.ID) })
		},
	}
}
