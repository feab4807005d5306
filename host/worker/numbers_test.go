package worker

import (
	"errors"
	"strings"
	"testing"
)

func TestClassCode(t *testing.T) {
	for _, good := range []string{"A1", "Z999", "X10", "300.100.000", "000.000.001"} {
		if c, err := ParseClassCode(good); err != nil || string(c) != good {
			t.Errorf("ParseClassCode(%q) = %q, %v", good, c, err)
		}
	}
	for _, bad := range []string{"", "A", "a1", "A0", "A01", "A1000", "AA1", "300.100", "1e9", "300.100.0000", "300,100,000", " A1", "A1\n", "٣00.100.000"} {
		if _, err := ParseClassCode(bad); !errors.Is(err, ErrInvalid) || HintOf(err) == "" {
			t.Errorf("ParseClassCode(%q): %v, hint %q", bad, err, HintOf(err))
		}
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"Nora", "my-goat-worker", "N.1_x", strings.Repeat("a", 63)} {
		if err := CheckName(good); err != nil {
			t.Errorf("CheckName(%q): %v", good, err)
		}
	}
	for _, bad := range []string{"", "../x", ".", "-x", "a/b", "🐐", "a b", "a\x00b", "é", strings.Repeat("a", 64), strings.Repeat("a", 300)} {
		err := CheckName(bad)
		if !errors.Is(err, ErrInvalid) || HintOf(err) == "" {
			t.Errorf("CheckName(%q): %v", bad, err)
		}
		if err != nil && len(err.Error()) > 120 {
			t.Errorf("CheckName(%q) floods its message: %d bytes", bad, len(err.Error()))
		}
		of := CheckClientName(bad)
		if !errors.Is(of, ErrInvalid) || !strings.HasPrefix(of.Error(), "client name ") || HintOf(of) == "" {
			t.Errorf("CheckClientName(%q): %v", bad, of)
		}
	}
}

func TestSerial(t *testing.T) {
	m := NewModelNumber("TP", 1)
	s := NewSerial(m, 0xdeadbeef, SerialsPerShard-1)
	if s != "DMN-TP-1-deadbeef-fffff" || s.Model() != m {
		t.Fatalf("serial %s, model %s", s, s.Model())
	}
	if got, err := ParseSerial(string(s)); err != nil || got != s {
		t.Fatalf("ParseSerial(%s) = %s, %v", s, got, err)
	}
	for _, bad := range []string{"", "DMN-TP-1", "DMN-tp-1-deadbeef-00000", "DMN-TP-01-deadbeef-00000", "DMN-TP-1-DEADBEEF-00000", "DMN-TP-1-deadbeef-00000/x"} {
		if _, err := ParseSerial(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseSerial(%q): %v", bad, err)
		}
	}
}

func FuzzLedgerCode(f *testing.F) {
	for _, s := range []string{"A1-000001", "300.100.000-1234567", "A1-0000001", "A1-", "-000001", "A1-00000x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, n, err := ParseLedgerCode(s)
		if err == nil && string(NewLedgerCode(c, n)) != s {
			t.Fatalf("%q reads as %s, %d but prints %s", s, c, n, NewLedgerCode(c, n))
		}
	})
}

func TestHint(t *testing.T) {
	err := Hint(Refuse("replayed", "envelope %s was seen", "x"), "sign a new one")
	var r *Refusal
	if !errors.Is(err, ErrRefused) || !errors.As(err, &r) || r.Code != "replayed" || HintOf(err) != "sign a new one" {
		t.Fatal(err)
	}
	if Hint(nil, "x") != nil {
		t.Fatal("a nil error got a hint")
	}
}
