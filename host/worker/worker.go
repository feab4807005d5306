// Package worker holds the words of the domain: what a worker is, how its
// numbers are written, which states it passes through, and the errors that
// every layer speaks. It is a leaf: it imports nothing of the project and does
// no I/O. All values are plain data; nothing here is safe to mutate
// concurrently.
package worker

import "time"

// ForgeVersion is the version of the forge's file formats (version.txt in the
// seed), written into every manifest.
const ForgeVersion = "2.0"

// State is where a worker stands in its life.
type State string

// The states of a worker. A worker exists from live on: forging is the time
// before the forge's commit point, and a forge that fails leaves no worker.
// While a worker is upgrading its row still says what it was before.
const (
	StateForging    State = "forging"
	StateLive       State = "live"
	StateRestarting State = "restarting"
	StateFailed     State = "failed"  // it could not be healthy, and does not run
	StateStopped    State = "stopped" // somebody wants it not to run
	StateUpgrading  State = "upgrading"
	StateRetiring   State = "retiring"
	StateRetired    State = "retired"
)

// Worker is one forged thing, as the registry knows it.
type Worker struct {
	Serial         Serial
	Name           string
	Type           string
	TypeVersion    string
	PluginDigest   string // hex SHA-256 of the plugin binary
	ClassCode      ClassCode
	Model          ModelNumber
	LedgerCode     LedgerCode
	Port           int
	UID            int
	State          State
	StateReason    string
	Launcher       string
	PublicKey      []byte // 32 bytes, Ed25519
	Glyph          string
	ManifestSHA256 string // hex; what sha256sum prints for worker_manifest.json
	ImageDigest    string
	Config         []byte   // config.json as forged
	Grants         []string // what it may do beyond its own folder, as sdk/capability writes it, sorted
	Limits         Limits   // as asked for at its forging
	RequestSHA256  string   // hex; identifies the request that made it
	Restarts       int
	RestartTries   int // restarts tried since it was last healthy, by any host
	CreatedAt      time.Time
	RetiredAt      time.Time
}
