package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"reflect"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
)

const (
	maxSchema = 64 << 10
	maxDepth  = 32
	// maxNodes bounds a schema with its references followed, and so how often a
	// payload is looked at: references can make 64 KiB stand for 2^1000 checks.
	maxNodes = 4096
)

const schemaFix = "write a self-contained JSON Schema (2020-12), or let the SDK infer it from a Go type"

// checkSchema says whether text, of what it is the schema, is none at all or a
// JSON Schema that may be used on a client's payload without harm. The error is
// a *Fault.
func checkSchema(what string, text []byte) error {
	if len(text) == 0 {
		return nil
	}
	if len(text) > maxSchema {
		return bad(schemaFix, "%s has a schema of %d bytes, more than %d", what, len(text), maxSchema)
	}
	if _, err := compile(text); err != nil {
		return bad(schemaFix, "%s has a bad schema: %v", what, err)
	}
	return nil
}

// orAnything makes no schema the one that anything fits, so that nobody else has
// to know of schemas that are not there.
func orAnything(text []byte) []byte {
	if len(text) == 0 {
		return []byte("{}")
	}
	return text
}

// compile reads a schema, with its defaults checked.
func compile(text []byte) (*jsonschema.Resolved, error) {
	if err := checkNesting(text); err != nil {
		return nil, err
	}
	var root jsonschema.Schema
	if err := json.Unmarshal(text, &root); err != nil {
		return nil, err
	}
	w := &walk{root: &root, byPointer: map[string]*jsonschema.Schema{}}
	if err := w.index("", &root); err != nil {
		return nil, err
	}
	if err := w.weigh(&root, 1); err != nil {
		return nil, err
	}
	// Only now: checking defaults applies the schema to them.
	return root.Resolve(&jsonschema.ResolveOptions{ValidateDefaults: true})
}

// checkNesting reads text as one JSON value of bounded depth, before anything
// recursive does.
func checkNesting(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	for depth := 0; ; {
		token, err := d.Token()
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
		if depth > maxDepth {
			return fmt.Errorf("nested deeper than %d", maxDepth)
		}
		if depth == 0 {
			return nil // Unmarshal refuses what follows
		}
	}
}

// walk follows the references of a schema.
type walk struct {
	root      *jsonschema.Schema
	byPointer map[string]*jsonschema.Schema
	nodes     int
}

// index finds every schema by its JSON pointer, and allows only references that
// can be followed by that.
func (w *walk) index(pointer string, s *jsonschema.Schema) error {
	if s == nil {
		return fmt.Errorf("null where a schema belongs, at #%s", pointer)
	}
	switch {
	case s.Ref != "" && !strings.HasPrefix(s.Ref, "#"):
		return fmt.Errorf("$ref %q leaves the document", s.Ref)
	case s.DynamicRef != "":
		return errors.New("$dynamicRef is not supported")
	case s.ID != "" && s != w.root:
		return errors.New("$id is supported at the top only")
	}
	w.byPointer[pointer] = s
	for at, child := range children(s) {
		if err := w.index(pointer+at, child); err != nil {
			return err
		}
	}
	return nil
}

// weigh counts the schemas below s, references followed. A reference that leads
// back to itself is infinitely deep.
func (w *walk) weigh(s *jsonschema.Schema, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested deeper than %d, references followed", maxDepth)
	}
	if w.nodes++; w.nodes > maxNodes {
		return fmt.Errorf("stands for more than %d schemas, references followed", maxNodes)
	}
	if s.Ref != "" {
		target, err := w.resolve(s.Ref)
		if err != nil {
			return err
		}
		if err := w.weigh(target, depth+1); err != nil {
			return err
		}
	}
	for _, child := range children(s) {
		if err := w.weigh(child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) resolve(ref string) (*jsonschema.Schema, error) {
	pointer, err := url.PathUnescape(strings.TrimPrefix(ref, "#"))
	if err != nil {
		return nil, err
	}
	target, ok := w.byPointer[pointer]
	if !ok {
		return nil, fmt.Errorf("$ref %q is not the JSON pointer of a schema here", ref)
	}
	return target, nil
}

// children are the schemas directly in s, by their JSON pointer from s. They are
// found by type, so that no keyword of the library is forgotten.
func children(s *jsonschema.Schema) iter.Seq2[string, *jsonschema.Schema] {
	return func(yield func(string, *jsonschema.Schema) bool) {
		v := reflect.ValueOf(s).Elem()
		for i := range v.NumField() {
			at := "/" + keyword(v.Type().Field(i))
			switch field := v.Field(i).Interface().(type) {
			case *jsonschema.Schema:
				if field != nil && !yield(at, field) {
					return
				}
			case []*jsonschema.Schema:
				for j, child := range field {
					if !yield(fmt.Sprintf("%s/%d", at, j), child) {
						return
					}
				}
			case map[string]*jsonschema.Schema:
				for name, child := range field {
					if !yield(at+"/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name), child) {
						return
					}
				}
			}
		}
	}
}

// keyword is the JSON name of a field that holds schemas; the library keeps two
// unions in fields without one.
func keyword(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	switch {
	case name != "-":
		return name
	case strings.HasPrefix(f.Name, "Items"):
		return "items"
	}
	return "dependencies"
}
