package worker

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"
)

// The properties of the forms of names and numbers: what is made is read as what it was
// made of, and nothing else is read. What counts as "nothing else" is
// docs/formats/numbers.md, written here a second time and without regular
// expressions.

// digits are n characters of an alphabet.
func digits(alphabet string, n int) *rapid.Generator[string] {
	return rapid.StringOfN(rapid.RuneFrom([]rune(alphabet)), n, n, -1)
}

const (
	decimal  = "0123456789"
	hex      = decimal + "abcdef"
	capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

func family() *rapid.Generator[string] { return digits(capitals, 2) }

func classCode() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprintf("%s%d", digits(capitals, 1).Draw(t, "letter"), rapid.IntRange(1, 999).Draw(t, "number"))
		}),
		rapid.Custom(func(t *rapid.T) string {
			group := digits(decimal, 3)
			return group.Draw(t, "first") + "." + group.Draw(t, "second") + "." + group.Draw(t, "third")
		}),
	)
}

func TestSerialsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		model := NewModelNumber(family().Draw(t, "family"), rapid.IntRange(0, 999_999).Draw(t, "generation"))
		shard, counter := rapid.Uint32().Draw(t, "shard"), rapid.IntRange(0, SerialsPerShard-1).Draw(t, "counter")
		serial := NewSerial(model, shard, counter)
		read, err := ParseSerial(string(serial))
		if err != nil || read != serial || read.Model() != model {
			t.Fatalf("%s is read as %s of model %s (%v)", serial, read, read.Model(), err)
		}
		if want := fmt.Sprintf("%s-%08x-%05x", model, shard, counter); string(read) != want {
			t.Fatalf("%s, want %s", read, want)
		}
		other := NewSerial(model, shard, (counter+1)%SerialsPerShard)
		if other == serial {
			t.Fatalf("two counters, one serial %s", serial)
		}
	})
}

func TestLedgerCodesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		class, err := ParseClassCode(classCode().Draw(t, "class"))
		if err != nil {
			t.Fatal(err)
		}
		sequence := rapid.Int64Range(0, 1<<62).Draw(t, "sequence")
		code := NewLedgerCode(class, sequence)
		gotClass, gotSequence, err := ParseLedgerCode(string(code))
		if err != nil || gotClass != class || gotSequence != sequence {
			t.Fatalf("%s is read as %s and %d (%v)", code, gotClass, gotSequence, err)
		}
		if padded := NewLedgerCode(class, sequence)[len(class)+1:]; len(padded) < 6 || len(padded) > 6 && padded[0] == '0' {
			t.Fatalf("%s: %d digits", code, len(padded))
		}
	})
}

// forms are all forms, each with a generator of good ones, how it is read, and
// the same form in other words.
var forms = map[string]struct {
	good *rapid.Generator[string]
	read func(string) error
	is   func(string) bool
}{
	"class code": {classCode(), func(s string) error { _, err := ParseClassCode(s); return err }, isClassCode},
	"serial": {rapid.Custom(func(t *rapid.T) string {
		generation := rapid.IntRange(0, 999_999).Draw(t, "generation")
		return string(NewSerial(NewModelNumber(family().Draw(t, "family"), generation), rapid.Uint32().Draw(t, "shard"), rapid.IntRange(0, SerialsPerShard-1).Draw(t, "counter")))
	}), func(s string) error { _, err := ParseSerial(s); return err }, isSerial},
	"ledger code": {rapid.Custom(func(t *rapid.T) string {
		return string(NewLedgerCode(ClassCode(classCode().Draw(t, "class")), rapid.Int64Range(0, 1<<40).Draw(t, "sequence")))
	}), func(s string) error { _, _, err := ParseLedgerCode(s); return err }, isLedgerCode},
	"family":      {family(), CheckFamily, func(s string) bool { return len(s) == 2 && only(s, capitals) }},
	"worker name": {rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,62}`), CheckName, isName},
	"worker type": {rapid.StringMatching(`[a-z][a-z0-9_]{0,31}`), CheckTypeName, isTypeName},
}

// TestOnlyTheForms: every good text is read; a good text with a small change,
// and any text at all, is read exactly when it has the form.
func TestOnlyTheForms(t *testing.T) {
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				good := form.good.Draw(t, "good")
				if err := form.read(good); err != nil || !form.is(good) {
					t.Fatalf("%q: %v", good, err)
				}
				for _, s := range []string{damaged(t, good), rapid.String().Draw(t, "any")} {
					err := form.read(s)
					if (err == nil) != form.is(s) {
						t.Fatalf("%q: %v, has the form: %t", s, err, form.is(s))
					}
					if err != nil && !errors.Is(err, ErrInvalid) {
						t.Fatalf("%q: %v is not ErrInvalid", s, err)
					}
					if err != nil && strings.ContainsFunc(err.Error(), unicode.IsControl) {
						t.Fatalf("%q is in its message as it is: %q", s, err)
					}
				}
			})
		})
	}
}

// damaged is a text with one small change.
func damaged(t *rapid.T, s string) string {
	at := rapid.IntRange(0, len(s)).Draw(t, "at")
	with := rapid.OneOf(
		rapid.SampledFrom([]string{"0", "1", "9", "a", "f", "g", "A", "Z", "-", ".", "_", " ", "\n", "\x00", "/", "٣", "é"}),
		rapid.StringN(1, 1, -1),
	).Draw(t, "with")
	switch rapid.IntRange(0, 3).Draw(t, "damage") {
	case 0: // put in
		return s[:at] + with + s[at:]
	case 1: // put over
		return s[:at] + with + s[min(at+1, len(s)):]
	case 2: // taken out
		return s[:at] + s[min(at+1, len(s)):]
	default: // cut or doubled
		return s[:at] + s[:rapid.IntRange(0, len(s)).Draw(t, "again")]
	}
}

func only(s, alphabet string) bool { return strings.Trim(s, alphabet) == "" }

func isClassCode(s string) bool {
	if groups := strings.Split(s, "."); len(groups) == 3 {
		for _, g := range groups {
			if len(g) != 3 || !only(g, decimal) {
				return false
			}
		}
		return true
	}
	return len(s) >= 2 && len(s) <= 4 && only(s[:1], capitals) && only(s[1:], decimal) && s[1] != '0'
}

func isSerial(s string) bool {
	p := strings.Split(s, "-")
	return len(p) == 5 && p[0] == "DMN" && len(p[1]) == 2 && only(p[1], capitals) &&
		len(p[2]) >= 1 && len(p[2]) <= 6 && only(p[2], decimal) && (p[2] == "0" || p[2][0] != '0') &&
		len(p[3]) == 8 && only(p[3], hex) && len(p[4]) == 5 && only(p[4], hex)
}

func isLedgerCode(s string) bool {
	class, n, ok := strings.Cut(s, "-")
	if !ok || !isClassCode(class) || len(n) < 6 || !only(n, decimal) || len(n) > 6 && n[0] == '0' {
		return false
	}
	const most = "9223372036854775807" // what 63 bits hold
	return len(n) < len(most) || len(n) == len(most) && n <= most
}

func isName(s string) bool {
	const first = capitals + "abcdefghijklmnopqrstuvwxyz" + decimal
	return len(s) >= 1 && len(s) <= 63 && only(s[:1], first) && only(s, first+"._-")
}

func isTypeName(s string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	return len(s) >= 1 && len(s) <= 32 && only(s[:1], letters) && only(s, letters+decimal+"_")
}

// TestModelNumbers: there is no reader of model numbers alone; what a serial
// begins with has the documented form.
func TestModelNumbers(t *testing.T) {
	documented := regexp.MustCompile(`^DMN-[A-Z]{2}-(0|[1-9][0-9]{0,5})$`)
	rapid.Check(t, func(t *rapid.T) {
		serial, err := ParseSerial(forms["serial"].good.Draw(t, "serial"))
		if err != nil || !documented.MatchString(string(serial.Model())) {
			t.Fatalf("%s is of model %s (%v)", serial, serial.Model(), err)
		}
	})
}
