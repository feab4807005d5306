package sdk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/google/jsonschema-go/jsonschema"
)

// schema is a JSON Schema as it is published and as it is applied.
type schema struct {
	text     []byte
	resolved *jsonschema.Resolved
}

// inferSchema is the schema of t's JSON.
func inferSchema(t reflect.Type) (schema, error) {
	s, err := jsonschema.ForType(t, nil)
	if err != nil {
		return schema{}, err
	}
	return newSchema(s)
}

// parseSchema reads a schema that an author wrote; none means any JSON.
func parseSchema(text []byte) (schema, error) {
	if len(text) == 0 {
		text = []byte("{}")
	}
	s := &jsonschema.Schema{}
	if err := json.Unmarshal(text, s); err != nil {
		return schema{}, err
	}
	made, err := newSchema(s)
	made.text = text
	return made, err
}

func newSchema(s *jsonschema.Schema) (schema, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return schema{}, err
	}
	if len(text) > maxSchema {
		return schema{}, fmt.Errorf("it has %d bytes, more than %d", len(text), maxSchema)
	}
	resolved, err := s.Resolve(&jsonschema.ResolveOptions{ValidateDefaults: true})
	if err != nil {
		return schema{}, err
	}
	return schema{text: text, resolved: resolved}, nil
}

// check says whether document is JSON that fits.
func (s schema) check(document []byte) error {
	var value any
	if err := json.Unmarshal(document, &value); err != nil {
		return fmt.Errorf("it is not JSON: %w", err)
	}
	return s.resolved.Validate(value)
}

// configSchema is the schema of what config points to, with the values that are
// there as defaults.
func configSchema(config any) (schema, error) {
	t, err := configStruct(config)
	if err != nil {
		return schema{}, err
	}
	s, err := jsonschema.ForType(t, nil)
	if err != nil {
		return schema{}, err
	}
	if config != nil {
		defaults, err := json.Marshal(config)
		if err != nil {
			return schema{}, err
		}
		if err := setDefaults(s, defaults); err != nil {
			return schema{}, err
		}
	}
	return newSchema(s)
}

// setDefaults puts every value of the object that is not zero into its
// property's "default", and takes the property from those that must be given:
// JSON Schema ignores the default of a required property.
func setDefaults(s *jsonschema.Schema, object json.RawMessage) error {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(object, &values); err != nil {
		return err
	}
	for name, value := range values {
		property := s.Properties[name]
		optional := !isZeroJSON(value)
		switch {
		case property == nil:
			return errors.New("its JSON is not that of its fields")
		case property.Properties != nil && optional:
			if err := setDefaults(property, value); err != nil {
				return err
			}
			optional = len(property.Required) == 0
		case optional:
			property.Default = value
		}
		if optional {
			s.Required = slices.DeleteFunc(s.Required, func(r string) bool { return r == name })
		}
	}
	return nil
}

func isZeroJSON(value []byte) bool {
	switch string(value) {
	case `null`, `false`, `0`, `""`, `[]`, `{}`:
		return true
	}
	return false
}

// configure decodes a config.json over the defaults that Config holds.
func (c *checkedType) configure(document []byte) error {
	if err := c.config.check(document); err != nil {
		return err
	}
	if c.Config == nil {
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.DisallowUnknownFields()
	return decoder.Decode(c.Config)
}
