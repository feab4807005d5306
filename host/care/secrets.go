package care

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/dals-host/dals-host/host/keyring"
	"github.com/dals-host/dals-host/host/worker"
)

// secrets are the files that only a passphrase opens: path to content, where
// paths are keys/<file> and workers/<serial>/<file>.
type secrets map[string][]byte

const (
	keysFolder = "keys/"
	// maxSecret is more than any of these files has, maxSecrets than all have.
	maxSecret  = 64 << 10
	maxSecrets = 1 << 30
)

// isSecret says whether a name is one that secrets can have.
func isSecret(name string) bool {
	if file, ok := strings.CutPrefix(name, keysFolder); ok {
		return file == keyring.SeedFile || file == keyring.OperatorFile
	}
	_, _, ok := workerFile(name)
	return ok
}

// seal encrypts the files as one tar, by age with a passphrase. workFactor is
// scrypt's, 0 for age's own.
func (s secrets) seal(passphrase string, workFactor int) ([]byte, error) {
	recipient, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("use passphrase: %w: %w", worker.ErrInvalid, err)
	}
	if workFactor > 0 {
		recipient.SetWorkFactor(workFactor)
	}
	var sealed bytes.Buffer
	enc, err := age.Encrypt(&sealed, recipient)
	if err != nil {
		return nil, fmt.Errorf("encrypt keys: %w", err)
	}
	w := tar.NewWriter(enc)
	for _, name := range slices.Sorted(maps.Keys(s)) {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(s[name])), Format: tar.FormatUSTAR})
		if err == nil {
			_, err = w.Write(s[name])
		}
		if err != nil {
			return nil, fmt.Errorf("encrypt keys: %w", err)
		}
	}
	if err := errors.Join(w.Close(), enc.Close()); err != nil {
		return nil, fmt.Errorf("encrypt keys: %w", err)
	}
	return sealed.Bytes(), nil
}

// openSecrets decrypts what seal made. A wrong passphrase is a
// worker.ErrRefused.
func openSecrets(sealed io.Reader, passphrase string) (secrets, error) {
	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, fmt.Errorf("use passphrase: %w: %w", worker.ErrInvalid, err)
	}
	plain, err := age.Decrypt(sealed, identity)
	if _, wrong := errors.AsType[*age.NoIdentityMatchError](err); wrong {
		return nil, worker.Hint(fmt.Errorf("the passphrase does not open it: %w", worker.ErrRefused), "give the passphrase with which the backup was made")
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w: %w", worker.ErrCorrupt, err)
	}
	return readSecrets(plain)
}

// readSecrets reads the tar inside as hostile data.
func readSecrets(r io.Reader) (secrets, error) {
	s, t, total := secrets{}, tar.NewReader(r), int64(0)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", worker.ErrCorrupt, err)
		}
		_, twice := s[h.Name]
		total += h.Size
		if !isSecret(h.Name) || h.Typeflag != tar.TypeReg || twice || h.Size > maxSecret || total > maxSecrets {
			return nil, fmt.Errorf("%.80q (type %q, %d bytes) is no key: %w", h.Name, h.Typeflag, h.Size, worker.ErrCorrupt)
		}
		if s[h.Name], err = io.ReadAll(t); err != nil {
			return nil, fmt.Errorf("%w: %w", worker.ErrCorrupt, err)
		}
	}
}
