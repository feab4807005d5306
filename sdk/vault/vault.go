// Package vault makes and checks the vault block of a worker: the accountability
// file, which ties the worker to its host's record by the checkpoint of the
// moment of forging, and the reflection file, which says how much the worker
// may remember. The forge seeds both; host and worker check them. Whether
// today's record still extends the checkpoint is for whoever has the record.
// The package keeps no state, reads no files, and is safe for concurrent use.
package vault

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
)

// The files of a vault block, in a worker's folder.
const (
	AccountabilityFile = "vault/accountability.json"
	ReflectionFile     = "vault/reflection.json"
)

// Format is the number of the formats that this package makes and reads.
const Format = 1

// ReflectionQuota is how many bytes a new worker may remember.
const ReflectionQuota = 64 << 10

// maxSize bounds each file, in bytes.
const maxSize = 64 << 10

// Accountability is what accountability.json says.
type Accountability struct {
	Format       int       `json:"format"`
	HostID       string    `json:"host_id"`
	WorkerSerial string    `json:"worker_serial"`
	Checkpoint   string    `json:"checkpoint"` // a signed note: the record at the moment of forging
	CreatedAt    time.Time `json:"created_at"`
}

// Reflection is what reflection.json says.
type Reflection struct {
	Format       int    `json:"format"`
	WorkerSerial string `json:"worker_serial"`
	QuotaBytes   int64  `json:"quota_bytes"`
}

// Seed makes the two files of a new worker's vault. The checkpoint is the
// signed note that the host's record published last.
func Seed(hostID, serial string, checkpoint []byte, now time.Time) (accountability, reflection []byte, err error) {
	if hostID == "" || serial == "" {
		return nil, nil, errors.New("seed vault: no host id or no serial")
	}
	accountability, err = encode(&Accountability{
		Format: Format, HostID: hostID, WorkerSerial: serial, Checkpoint: string(checkpoint), CreatedAt: now.UTC(),
	})
	if err != nil {
		return nil, nil, fmt.Errorf("seed accountability: %w", err)
	}
	reflection, err = encode(&Reflection{Format: Format, WorkerSerial: serial, QuotaBytes: ReflectionQuota})
	if err != nil {
		return nil, nil, fmt.Errorf("seed reflection: %w", err)
	}
	return accountability, reflection, nil
}

// CheckAccountability says whether data is the accountability file of the
// worker serial on the host hostID, with a checkpoint signed by verifierKey.
// It returns what the checkpoint says of the record then: its size (0 for an
// empty one) and its 32-byte root.
func CheckAccountability(data []byte, serial, hostID, verifierKey string) (size uint64, root []byte, err error) {
	var a Accountability
	if err := decode(data, &a); err != nil {
		return 0, nil, fmt.Errorf("read accountability: %w", err)
	}
	if err := checkOwner(a.Format, a.WorkerSerial, serial); err != nil {
		return 0, nil, fmt.Errorf("check accountability: %w", err)
	}
	if a.HostID != hostID {
		return 0, nil, fmt.Errorf("check accountability: host_id is %q, not %q", a.HostID, hostID)
	}
	c, err := openCheckpoint([]byte(a.Checkpoint), hostID, verifierKey)
	if err != nil {
		return 0, nil, fmt.Errorf("check accountability: checkpoint: %w", err)
	}
	return c.Size, c.Hash, nil
}

// CheckReflection says whether data is the reflection file of the worker
// serial, and how many bytes it grants.
func CheckReflection(data []byte, serial string) (quota int64, err error) {
	var r Reflection
	if err := decode(data, &r); err != nil {
		return 0, fmt.Errorf("read reflection: %w", err)
	}
	if err := checkOwner(r.Format, r.WorkerSerial, serial); err != nil {
		return 0, fmt.Errorf("check reflection: %w", err)
	}
	if r.QuotaBytes < 0 {
		return 0, fmt.Errorf("check reflection: quota_bytes is %d", r.QuotaBytes)
	}
	return r.QuotaBytes, nil
}

func checkOwner(format int, got, want string) error {
	if format != Format {
		return fmt.Errorf("format %d is not %d", format, Format)
	}
	if got != want {
		return fmt.Errorf("worker_serial is %q, not %q", got, want)
	}
	return nil
}

// openCheckpoint verifies a checkpoint of the host's record and reads it.
func openCheckpoint(signed []byte, hostID, verifierKey string) (*log.Checkpoint, error) {
	verifier, err := note.NewVerifier(verifierKey)
	if err != nil {
		return nil, fmt.Errorf("read verifier key: %w", err)
	}
	c, _, _, err := log.ParseCheckpoint(signed, Origin(hostID), verifier)
	if err != nil {
		return nil, err
	}
	if len(c.Hash) != sha256.Size {
		return nil, fmt.Errorf("root has %d bytes, not %d", len(c.Hash), sha256.Size)
	}
	if empty := sha256.Sum256(nil); c.Size == 0 && !bytes.Equal(c.Hash, empty[:]) {
		return nil, errors.New("root is not that of an empty record")
	}
	return c, nil
}

func encode(v any) ([]byte, error) {
	encoded, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(encoded, '\n'), nil
}

// decode is strict: another set of keys is another format number.
func decode(data []byte, v any) error {
	if len(data) > maxSize {
		return fmt.Errorf("%d bytes, more than %d", len(data), maxSize)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text after the end")
	}
	return nil
}
