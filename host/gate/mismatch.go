package gate

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Reasons stand in the record, payloads do not (docs/SECURITY.md). What the JSON
// decoder and the validator say of a payload repeats parts of it, values and
// names, so nothing here passes on their words: only what is known to come from
// the schema, and positions.

// syntaxFault says where a payload stops being JSON that can be read.
func syntaxFault(err error) string {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("syntax error at byte %d", syntax.Offset)
	}
	if number, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Sprintf("a number out of range near byte %d", number.Offset)
	}
	return "it cannot be read"
}

var (
	// keyword begins the validator's word on what did not hold.
	keyword = regexp.MustCompile(`^(?:type|enum|const|multipleOf|minimum|maximum|exclusiveMinimum|exclusiveMaximum|` +
		`minLength|maxLength|pattern|anyOf|oneOf|not|contains|minContains|maxContains|minItems|maxItems|uniqueItems|` +
		`minProperties|maxProperties|required|dependentRequired)\b`)
	// types ends it where the type did not hold.
	types = regexp.MustCompile(`has type ("[a-z]+", want (?:one of )?"[a-z, ]+")$`)
)

// mismatch says where in its schema a payload does not fit, and why.
func mismatch(err error) string {
	where := "root"
	for inner := errors.Unwrap(err); inner != nil; err, inner = inner, errors.Unwrap(inner) {
		// Each level but the last is "validating <place in the schema>: <inner>".
		place := strings.TrimSuffix(err.Error(), ": "+inner.Error())
		where = strings.TrimPrefix(place, "validating ")
	}
	return fmt.Sprintf("%s, at %s of the schema", rule(err.Error()), where)
}

// rule is the keyword of the schema that did not hold, with what the schema asks
// for where the validator tells it apart from what the payload has.
func rule(text string) string {
	word := keyword.FindString(text)
	switch {
	case word == "type":
		if kinds := types.FindStringSubmatch(text); kinds != nil {
			return "type: it is " + kinds[1]
		}
	case word == "required":
		return text // it lists the schema's names
	case word == "" && strings.HasPrefix(text, "unexpected additional properties"):
		return "additionalProperties: it has properties that are not allowed"
	case word == "":
		return "it is not allowed"
	}
	return word
}
