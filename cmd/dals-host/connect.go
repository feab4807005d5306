package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/identity"
)

// answer asks the running host one thing and shows what it says.
func answer[T any](ctx context.Context, a *app, ask func(*client.Client) (T, error), text func(*table, T)) error {
	return a.with(ctx, func(c *client.Client) error {
		said, err := ask(c)
		if err != nil {
			return err
		}
		return a.show(said, func(t *table) { text(t, said) })
	})
}

// with gives use a connection to the running host, until it returns.
func (a *app) with(ctx context.Context, use func(*client.Client) error) error {
	return a.dial(ctx, nil, use)
}

// withKey is with, as the client whose key is given.
func (a *app) withKey(ctx context.Context, use func(*client.Client) error) error {
	key, missing := a.loadKey()
	return a.dial(ctx, key, func(c *client.Client) error {
		if missing != nil {
			return missing // without a host the key is the lesser trouble
		}
		return use(c)
	})
}

func (a *app) dial(ctx context.Context, key ed25519.PrivateKey, use func(*client.Client) error) error {
	socket, err := a.socket()
	if err != nil {
		return err
	}
	c, err := client.Dial(ctx, client.Config{Host: socket, Key: key})
	if err != nil {
		return err
	}
	defer c.Close()
	return use(c)
}

func (a *app) socket() (string, error) {
	if socket := firstOf(a.hostFlag, os.Getenv("DALS_HOST")); socket != "" {
		return strings.TrimPrefix(socket, "unix:"), nil
	}
	dir, err := a.dataDir()
	return filepath.Join(dir, "host.sock"), err
}

func (a *app) keyFile() (string, error) {
	if file := firstOf(a.keyFlag, os.Getenv("DALS_KEY")); file != "" {
		return file, nil
	}
	dir, err := a.dataDir()
	return filepath.Join(dir, "keys", "operator.key"), err
}

func (a *app) loadKey() (ed25519.PrivateKey, error) {
	file, err := a.keyFile()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, withHint(fmt.Errorf("read client key: %w", err),
			"make and enrol one: dals-host client add NAME --key-out FILE, then give it with --key FILE")
	case err != nil:
		return nil, fmt.Errorf("read client key: %w", err)
	}
	key, err := identity.ParseKey(data)
	if err != nil {
		return nil, fmt.Errorf("read client key %s: %w", file, err)
	}
	return key, nil
}
