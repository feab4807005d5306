package sdk

import (
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/dals-host/dals-host/sdk/identity"
)

// The parts of a worker's folder, as the forge lays it out.
const (
	configFile = "config.json"
	certFile   = "certs/worker.pem"
	keyFile    = "certs/worker.key"
	caFile     = "certs/ca.pem"
	stateDir   = "state"
	resultsDir = "state/results"
)

// maxOwnFile bounds what is read of a worker's own folder, in bytes.
const maxOwnFile = 1 << 20

// folder is a worker's own folder and what of it every worker needs.
type folder struct {
	root     *os.Root
	identity *identity.Identity
	key      ed25519.PrivateKey
	tls      *tls.Config
}

// openFolder reads who the worker is. Without these parts it cannot even tell
// its host what is wrong, so any fault is an error.
func openFolder(dir string) (_ *folder, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open worker folder: %w", err)
	}
	defer func() {
		if err != nil {
			root.Close()
		}
	}()
	f := &folder{root: root}
	data, err := f.read(identity.File)
	if err != nil {
		return nil, err
	}
	if f.identity, err = identity.Decode(data); err != nil {
		return nil, err
	}
	return f, nil
}

// readKeys reads by what the worker proves who it is.
func (f *folder) readKeys() error {
	cert, certErr := f.read(certFile)
	key, keyErr := f.read(keyFile)
	ca, caErr := f.read(caFile)
	if err := errors.Join(certErr, keyErr, caErr); err != nil {
		return err
	}
	var err error
	if f.key, err = identity.ParseKey(key); err != nil {
		return fmt.Errorf("read %s: %w", keyFile, err)
	}
	if !f.identity.PublicKey.Equal(f.key.Public()) {
		return fmt.Errorf("read %s: it is not the key that %s names", keyFile, identity.File)
	}
	f.tls, err = identity.WorkerTLS(cert, key, ca, f.identity.HostID)
	return err
}

// read is the content of one of the worker's own files.
func (f *folder) read(name string) ([]byte, error) {
	file, err := f.root.Open(name)
	if err != nil {
		return nil, err // names the operation and the file itself
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxOwnFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxOwnFile {
		return nil, fmt.Errorf("read %s: more than %d bytes", name, maxOwnFile)
	}
	return data, nil
}
