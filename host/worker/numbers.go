package worker

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Numbers are written as docs/formats/numbers.md says: the seed's formats, with
// the family from the type's descriptor and the generation from the major of
// its version at forging.

// ModelNumber is DMN-<family>-<generation>.
type ModelNumber string

// Serial is DMN-<family>-<generation>-<8 hex shard>-<5 hex counter>.
type Serial string

// ClassCode is A1…Z999 or NNN.NNN.NNN.
type ClassCode string

// LedgerCode is a class code and a per-class sequence number, never reused.
type LedgerCode string

// SerialsPerShard is how many serials one shard holds (5 hex digits).
const SerialsPerShard = 1 << 20

var (
	nameForm      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	typeForm      = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)
	familyForm    = regexp.MustCompile(`^[A-Z]{2}$`)
	classForm     = regexp.MustCompile(`^(?:[A-Z][1-9][0-9]{0,2}|[0-9]{3}\.[0-9]{3}\.[0-9]{3})$`)
	serialForm    = regexp.MustCompile(`^DMN-[A-Z]{2}-(?:0|[1-9][0-9]{0,5})-[0-9a-f]{8}-[0-9a-f]{5}$`)
	ledgerSeqForm = regexp.MustCompile(`^[0-9]{6,}$`)
)

// CheckName says whether name can name a worker.
func CheckName(name string) error { return checkName("worker", name) }

// CheckClientName says whether name can name a client.
func CheckClientName(name string) error { return checkName("client", name) }

func checkName(of, name string) error {
	if !nameForm.MatchString(name) {
		return Hint(fmt.Errorf("%s name %s: %w", of, quote(name), ErrInvalid),
			"use 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit")
	}
	return nil
}

// CheckTypeName says whether name can name a worker type.
func CheckTypeName(name string) error {
	if !typeForm.MatchString(name) {
		return Hint(fmt.Errorf("worker type name %s: %w", quote(name), ErrInvalid),
			"use 1 to 32 lower-case letters, digits or '_', starting with a letter")
	}
	return nil
}

// CheckFamily says whether family is two capital letters.
func CheckFamily(family string) error {
	if !familyForm.MatchString(family) {
		return Hint(fmt.Errorf("family %s: %w", quote(family), ErrInvalid), "use two capital letters, as in TP")
	}
	return nil
}

// ParseClassCode reads A1…Z999 or NNN.NNN.NNN.
func ParseClassCode(s string) (ClassCode, error) {
	if !classForm.MatchString(s) {
		return "", Hint(fmt.Errorf("class code %s: %w", quote(s), ErrInvalid),
			"use A1 to Z999, or three groups of three digits as in 300.100.000")
	}
	return ClassCode(s), nil
}

// NewModelNumber joins a family and a generation.
func NewModelNumber(family string, generation int) ModelNumber {
	return ModelNumber(fmt.Sprintf("DMN-%s-%d", family, generation))
}

// NewSerial numbers a worker of model m: shard is the host's, counter counts
// within it and stays below SerialsPerShard.
func NewSerial(m ModelNumber, shard uint32, counter int) Serial {
	return Serial(fmt.Sprintf("%s-%08x-%05x", m, shard, counter))
}

// ParseSerial checks the form of a serial.
func ParseSerial(s string) (Serial, error) {
	if !serialForm.MatchString(s) {
		return "", fmt.Errorf("serial %s: %w", quote(s), ErrInvalid)
	}
	return Serial(s), nil
}

// Model is the model number that the serial begins with.
func (s Serial) Model() ModelNumber {
	parts := strings.SplitN(string(s), "-", 4)
	return ModelNumber(strings.Join(parts[:3], "-"))
}

// NewLedgerCode joins a class code and its sequence number.
func NewLedgerCode(c ClassCode, sequence int64) LedgerCode {
	return LedgerCode(fmt.Sprintf("%s-%06d", c, sequence))
}

// ParseLedgerCode splits a ledger code into its class code and sequence number.
func ParseLedgerCode(s string) (ClassCode, int64, error) {
	class, seq, ok := strings.Cut(s, "-")
	if !ok || !classForm.MatchString(class) || !ledgerSeqForm.MatchString(seq) {
		return "", 0, fmt.Errorf("ledger code %s: %w", quote(s), ErrInvalid)
	}
	n, err := strconv.ParseInt(seq, 10, 64)
	if err != nil || NewLedgerCode(ClassCode(class), n) != LedgerCode(s) {
		return "", 0, fmt.Errorf("ledger code %s: %w", quote(s), ErrInvalid)
	}
	return ClassCode(class), n, nil
}

// quote shows bad input without letting it flood or disguise the message.
func quote(s string) string {
	const limit = 40
	if r := []rune(s); len(r) > limit {
		return strconv.QuoteToASCII(string(r[:limit])) + fmt.Sprintf("… (%d bytes)", len(s))
	}
	return strconv.QuoteToASCII(s)
}
