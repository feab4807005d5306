package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/dals-host/dals-host/host"
	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/envelope"
)

// newKey is how one gets a key that the host takes. It asks for none.
const newKey = "dals-host client add NAME --key-out FILE while the host runs, then --key FILE or DALS_KEY=FILE"

// checkKey looks at the key that commands sign with.
func (a *app) checkKey(ctx context.Context) finding {
	file, err := a.keyFile()
	if err != nil {
		return fail("", "%v", err)
	}
	if _, err := os.Stat(filepath.Dir(file)); errors.Is(err, os.ErrNotExist) {
		return ok("%s is not there yet: serve makes it with the data folder", file)
	}
	info, err := os.Stat(file)
	if err != nil {
		return fail(newKey, "%v", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fail("chmod 600 "+file, "%s has mode %04o: others can sign with it", file, info.Mode().Perm())
	}
	key, err := a.loadKey()
	if err != nil {
		return fail(newKey, "%v", err)
	}
	k, err := a.enrolment(ctx, envelope.ClientID(key.Public().(ed25519.PublicKey)))
	switch {
	case errors.Is(err, worker.ErrNotFound):
		return fail(newKey, "%s is not enrolled", file)
	case err != nil:
		return warn(hintOf(err), "%s: whether it is enrolled is not known: %v", file, err)
	case !k.RevokedAt.IsZero():
		return fail(newKey, "%s is of client %s, revoked %s", file, k.Name, stamp(k.RevokedAt))
	}
	return ok("%s, of client %s", file, k.Name)
}

// enrolment finds a client by its id: as the host says that runs, and where none
// does as its data folder says. Unknown is worker.ErrNotFound.
func (a *app) enrolment(ctx context.Context, id string) (found client.Enrolment, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = a.with(ctx, func(c *client.Client) error {
		clients, err := c.Clients(ctx)
		for _, k := range clients {
			if k.ID == id {
				found = k
			}
		}
		if err == nil && found.ID == "" {
			return fmt.Errorf("client %s: %w", id, worker.ErrNotFound)
		}
		return err
	})
	if said, ok := errors.AsType[*client.Error](err); !ok || said.Code != client.CodeUnavailable {
		return found, err
	}
	socket, _ := a.socket() // it was found before
	dir, failed := a.dataDir()
	if failed != nil || socket != filepath.Join(dir, "host.sock") {
		return found, err
	}
	name, revoked, err := host.Sender(ctx, dir, id)
	return client.Enrolment{ID: id, Name: name, RevokedAt: client.Time{Time: revoked}}, err
}
