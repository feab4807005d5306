package gate

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/dals-host/dals-host/sdk/envelope"
)

// secret is in every payload below, in a value or a name.
const secret = "hunter2"

// TestReasonsHoldNoPayload refuses payloads by every rule that a schema can have.
// The reason names the rule and its place, and nothing of the payload; so does
// the entry.
func TestReasonsHoldNoPayload(t *testing.T) {
	tests := map[string]struct{ schema, payload, reason string }{
		"type":                 {`{"properties":{"a":{"type":"string"}}}`, `{"a":{"hunter2":"hunter2"}}`, `type: it is "object", want "string", at /properties/a of the schema`},
		"types":                {`{"type":["array","null"]}`, `"hunter2"`, `type: it is "string", want one of "array, null", at root of the schema`},
		"type in an item":      {`{"items":{"properties":{"b":{"type":"integer"}}}}`, `[{"b":1},{"b":"hunter2"}]`, `type: it is "string", want "integer", at /items/properties/b of the schema`},
		"a payload like words": {`{"type":"object"}`, `"has type \"hunter2\", want \"hunter2\""`, `type: it is "string", want "object", at root of the schema`},
		"enum":                 {`{"enum":["a","b"]}`, `"hunter2"`, `enum, at root of the schema`},
		"const":                {`{"const":"a"}`, `"hunter2"`, `const, at root of the schema`},
		"multipleOf":           {`{"properties":{"hunter":{"multipleOf":2}}}`, `{"hunter":77777}`, `multipleOf, at /properties/hunter of the schema`},
		"minimum":              {`{"minimum":1e9}`, `77777`, `minimum, at root of the schema`},
		"maximum":              {`{"maximum":1}`, `77777`, `maximum, at root of the schema`},
		"exclusiveMinimum":     {`{"exclusiveMinimum":1e9}`, `77777`, `exclusiveMinimum, at root of the schema`},
		"exclusiveMaximum":     {`{"exclusiveMaximum":1}`, `77777`, `exclusiveMaximum, at root of the schema`},
		"minLength":            {`{"minLength":100}`, `"hunter2"`, `minLength, at root of the schema`},
		"maxLength":            {`{"maxLength":1}`, `"hunter2"`, `maxLength, at root of the schema`},
		"pattern":              {`{"pattern":"^$"}`, `"hunter2"`, `pattern, at root of the schema`},
		"allOf":                {`{"allOf":[{},{"maxLength":1}]}`, `"hunter2"`, `maxLength, at /allOf/1 of the schema`},
		"anyOf":                {`{"anyOf":[{"const":"hunter2","type":"null"},{"type":"array"}]}`, `"hunter2"`, `anyOf, at root of the schema`},
		"oneOf":                {`{"oneOf":[{"type":"null"},{"type":"array"}]}`, `"hunter2"`, `oneOf, at root of the schema`},
		"not":                  {`{"not":{"type":"string"}}`, `"hunter2"`, `not, at root of the schema`},
		"if":                   {`{"if":true,"then":{"maxLength":1}}`, `"hunter2"`, `maxLength, at /then of the schema`},
		"$ref":                 {`{"$ref":"#/$defs/x","$defs":{"x":{"maxLength":1}}}`, `"hunter2"`, `maxLength, at /$defs/x of the schema`},
		"contains":             {`{"contains":{"type":"null"}}`, `["hunter2"]`, `contains, at root of the schema`},
		"minContains":          {`{"contains":{"type":"string"},"minContains":3}`, `["hunter2"]`, `minContains, at root of the schema`},
		"maxContains":          {`{"contains":{"type":"string"},"maxContains":1}`, `["hunter2","x"]`, `maxContains, at root of the schema`},
		"minItems":             {`{"minItems":3}`, `["hunter2"]`, `minItems, at root of the schema`},
		"maxItems":             {`{"maxItems":0}`, `["hunter2"]`, `maxItems, at root of the schema`},
		"uniqueItems":          {`{"uniqueItems":true}`, `["hunter2","hunter2"]`, `uniqueItems, at root of the schema`},
		"unevaluatedItems":     {`{"unevaluatedItems":false}`, `["hunter2"]`, `not, at /unevaluatedItems of the schema`},
		"minProperties":        {`{"minProperties":2}`, `{"hunter2":1}`, `minProperties, at root of the schema`},
		"maxProperties":        {`{"maxProperties":0}`, `{"hunter2":1}`, `maxProperties, at root of the schema`},
		"required":             {`{"required":["a","b"]}`, `{"hunter2":1,"b":2}`, `required: missing properties: ["a"], at root of the schema`},
		"dependentRequired":    {`{"dependentRequired":{"a":["b"]}}`, `{"a":"hunter2"}`, `dependentRequired, at root of the schema`},
		"no more properties":   {`{"additionalProperties":false}`, `{"hunter2":"hunter2"}`, `additionalProperties: it has properties that are not allowed, at root of the schema`},
		"other properties":     {`{"additionalProperties":{"type":"null"}}`, `{"hunter2":"hunter2"}`, `type: it is "string", want "null", at /additionalProperties of the schema`},
		"propertyNames":        {`{"propertyNames":{"maxLength":1}}`, `{"hunter2":1}`, `maxLength, at /propertyNames of the schema`},
		"patternProperties":    {`{"patternProperties":{"2$":{"maxLength":1}}}`, `{"hunter2":"hunter2"}`, `maxLength, at /patternProperties/2$ of the schema`},
		"false":                {`{"properties":{"a":false}}`, `{"a":"hunter2"}`, `not, at /properties/a of the schema`},
		"long place": {
			`{"properties":{"` + strings.Repeat("é", 1000) + `":{"type":"string"}}}`, `{"` + strings.Repeat("é", 1000) + `":["hunter2"]}`,
			`type: it is "array", want "string", at /properties/éé`,
		},
		"no JSON":          {`{}`, `hunter2`, "syntax error at byte 1"},
		"no JSON any more": {`{}`, `{"hunter2":hunter2}`, "syntax error at byte 12"},
		"half of it":       {`{}`, `{"hunter2":`, "syntax error at byte 11"},
		"number too large": {`{}`, `{"hunter2":77777e999}`, "a number out of range near byte 21"},
		"large":            {`{"type":"null"}`, `"hunter2` + strings.Repeat("<", envelope.MaxPayload-20) + `"`, `type: it is "string", want "null"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.schema = test.schema
			_, err := w.gate(t).Admit(t.Context(), "p", sign(t, w.enrol(t, "nora"), test.payload, nil))
			if code := codeOf(err); code != SchemaMismatch && code != PayloadNotJSON {
				t.Fatal(err)
			}
			if len(w.entries) != 1 || w.entries[0].Refusal.Code != codeOf(err) {
				t.Fatalf("entries %+v", w.entries)
			}
			told := w.entries[0].Refusal.Reason
			for _, text := range []string{err.Error(), told} {
				if !strings.Contains(text, test.reason) {
					t.Errorf("%s: want %s", text, test.reason)
				}
				if strings.Contains(text, secret) || strings.Contains(text, "77777") || utf8.RuneCountInString(told) > maxReason {
					t.Errorf("it tells too much: %s", text)
				}
			}
		})
	}
}

// TestAnySchemaIsAny is a plugin that says nothing of what its task takes.
func TestAnySchemaIsAny(t *testing.T) {
	w := newWorld()
	w.schema = ""
	if _, err := w.gate(t).Admit(t.Context(), "p", sign(t, w.enrol(t, "nora"), `[null]`, nil)); err != nil {
		t.Fatal(err)
	}
}

// FuzzMismatch looks for payloads of which a reason repeats a part. The mark
// stands for whatever a payload says, as a name and as a value.
func FuzzMismatch(f *testing.F) {
	schemas := []string{
		`{"type":"null"}`, `{"enum":[0]}`, `{"additionalProperties":{"maxLength":0}}`, `{"additionalProperties":false}`,
		`{"anyOf":[{"type":"null"},{"items":{"const":1}}]}`, `{"propertyNames":{"pattern":"^$"}}`, `{"required":["a"]}`,
	}
	for _, text := range []string{"", "x", `", want "`, "validating /properties/x: type: ", `has type "object", want "null"`, "\xff\x00"} {
		for i := range schemas {
			f.Add(uint8(i), text)
		}
	}
	const mark = "Zq9"
	f.Fuzz(func(t *testing.T, n uint8, text string) {
		marked := mark + text + mark
		for _, value := range []any{marked, []any{marked}, map[string]any{marked: 1}, map[string]any{"a": marked}} {
			payload, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld()
			w.schema = schemas[int(n)%len(schemas)]
			worker, err := w.Worker(t.Context(), liveSerial)
			if err != nil {
				t.Fatal(err)
			}
			err = newSchemas(w).check(t.Context(), worker, "template.echo", payload)
			if err != nil && (strings.Contains(err.Error(), mark) || !strings.Contains(err.Error(), " of the schema")) {
				t.Fatalf("%s with %s: %v", w.schema, payload, err)
			}
		}
	})
}
