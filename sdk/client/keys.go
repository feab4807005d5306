package client

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"sync"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// keys are workers' public keys by serial. A serial keeps its key for ever,
// through restarts and upgrades, and is given once: so the first that the host
// says holds, and nothing that it says later can put another in its place.
type keys struct {
	mu       sync.Mutex
	bySerial map[string]ed25519.PublicKey
}

func (k *keys) of(serial string) (ed25519.PublicKey, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.bySerial[serial]
	return key, ok
}

func (k *keys) learn(serial string, key ed25519.PublicKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, known := k.bySerial[serial]; !known {
		k.bySerial[serial] = key
	}
}

// find asks the host for the serial of a worker, and learns its key. A host that
// hangs does not hang it.
func (c *Client) find(ctx context.Context, ref string) (string, error) {
	bounded, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	resp, err := c.host.GetWorker(bounded, &hostv1.GetWorkerRequest{Worker: ref})
	if err != nil {
		return "", fmt.Errorf("find worker: %w", c.fault(ctx, err))
	}
	serial := resp.GetWorker().GetWorkerSerial()
	key, err := base64.StdEncoding.DecodeString(resp.GetWorker().GetPublicKey())
	if err != nil {
		return "", fmt.Errorf("find worker: read its public key: %w", err)
	}
	if len(key) == ed25519.PublicKeySize { // one that is being forged may have none yet
		c.keys.learn(serial, key)
	}
	return serial, nil
}

// keyOf is the key under which a worker's results are verified. A worker that
// has none is an *Error with the code "not_found".
func (c *Client) keyOf(ctx context.Context, serial string) (ed25519.PublicKey, error) {
	if key, ok := c.keys.of(serial); ok {
		return key, nil
	}
	if _, err := c.find(ctx, serial); err != nil {
		return nil, err
	}
	if key, ok := c.keys.of(serial); ok {
		return key, nil
	}
	return nil, &Error{Code: CodeNotFound, Message: fmt.Sprintf("the host names no key of worker %s", serial)}
}
