package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/dals-host/dals-host/host/worker"
	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

func TestDescriptorIsKept(t *testing.T) {
	t.Parallel()
	said := describing("goat", "1.2.3-rc.1", "GT")
	said.Summary = "eats\n\x1b[31m\u202e  everything"
	said.Capabilities = []string{"egress:example.org:443", "egress:10.0.0.1:5432", "mount:/mnt/photos"}
	said.Resources = &workerv1.Resources{MemoryBytes: 64 << 20}
	d, err := checkDescriptor(said)
	if err != nil {
		t.Fatal(err)
	}
	if d.Summary != "eats [31m everything" {
		t.Errorf("the summary is %q", d.Summary)
	}
	said.Summary = d.Summary
	said.Resources.CpuMillis = 0
	if !proto.Equal(d, said) {
		t.Errorf("kept %v of %v", d, said)
	}
}

// TestNoSchemaFitsAnything: what a plugin leaves out, nobody has to know of.
func TestNoSchemaFitsAnything(t *testing.T) {
	t.Parallel()
	said := &workerv1.TypeDescriptor{
		Name: "goat", Version: "1.0.0", Family: "GT", Tasks: []*workerv1.TaskKind{{Kind: "goat.eat"}},
	}
	d, err := checkDescriptor(said)
	if err != nil {
		t.Fatal(err)
	}
	for _, schema := range [][]byte{d.ConfigSchema, d.Tasks[0].InputSchema, d.Tasks[0].OutputSchema} {
		if string(schema) != "{}" {
			t.Errorf("schema %q", schema)
		}
	}
}

// TestLeastResources: what a worker of the forge's own choice may have, a type may
// ask for too.
func TestLeastResources(t *testing.T) {
	t.Parallel()
	for _, asked := range []*workerv1.Resources{
		{},
		{MemoryBytes: worker.MinMemoryBytes, CpuMillis: worker.MinCPUMillis, Pids: worker.MinPIDs},
		{MemoryBytes: worker.MaxMemoryBytes, CpuMillis: worker.MaxCPUMillis, Pids: worker.MaxPIDs},
	} {
		said := describing("goat", "1.0.0", "GT")
		said.Resources = asked
		if d, err := checkDescriptor(said); err != nil || !proto.Equal(d.Resources, asked) {
			t.Errorf("kept %v of %v, %v", d.GetResources(), asked, err)
		}
	}
}

func TestDescriptorIsRefused(t *testing.T) {
	t.Parallel()
	type change = func(*workerv1.TypeDescriptor)
	for reason, changes := range map[string][]change{
		"worker type name": {
			func(d *workerv1.TypeDescriptor) { d.Name = "" },
			func(d *workerv1.TypeDescriptor) { d.Name = "Goat" },
			func(d *workerv1.TypeDescriptor) { d.Name = "../goat" },
			func(d *workerv1.TypeDescriptor) { d.Name = strings.Repeat("g", 33) },
		},
		"family": {
			func(d *workerv1.TypeDescriptor) { d.Family = "gt" },
			func(d *workerv1.TypeDescriptor) { d.Family = "GTT" },
		},
		"no semantic version": {
			func(d *workerv1.TypeDescriptor) { d.Version = "" },
			func(d *workerv1.TypeDescriptor) { d.Version = "1.0" },
			func(d *workerv1.TypeDescriptor) { d.Version = "v1.0.0" },
			func(d *workerv1.TypeDescriptor) { d.Version = "1.0.0+build" },
			func(d *workerv1.TypeDescriptor) { d.Version = "01.0.0" },
			func(d *workerv1.TypeDescriptor) { d.Version = "1000000.0.0" },
			func(d *workerv1.TypeDescriptor) { d.Version = "1.0." + strings.Repeat("9", 80) },
		},
		"has a task of the kind": {
			func(d *workerv1.TypeDescriptor) { d.Tasks[0].Kind = "hen.echo" },
			func(d *workerv1.TypeDescriptor) { d.Tasks[0].Kind = "goat" },
			func(d *workerv1.TypeDescriptor) { d.Tasks[0].Kind = "goat.Echo" },
			func(d *workerv1.TypeDescriptor) { d.Tasks[0] = nil },
		},
		"twice": {func(d *workerv1.TypeDescriptor) { d.Tasks = append(d.Tasks, d.Tasks[0]) }},
		"65 kinds of task": {func(d *workerv1.TypeDescriptor) {
			d.Tasks = nil
			for i := range 65 {
				d.Tasks = append(d.Tasks, &workerv1.TaskKind{Kind: fmt.Sprintf("goat.t%d", i)})
			}
		}},
		"asks for memory_bytes": {
			func(d *workerv1.TypeDescriptor) { d.Resources = &workerv1.Resources{MemoryBytes: -1} },
			func(d *workerv1.TypeDescriptor) { d.Resources = &workerv1.Resources{MemoryBytes: 1} },
			func(d *workerv1.TypeDescriptor) {
				d.Resources = &workerv1.Resources{MemoryBytes: worker.MinMemoryBytes - 1}
			},
			func(d *workerv1.TypeDescriptor) {
				d.Resources = &workerv1.Resources{MemoryBytes: worker.MaxMemoryBytes + 1}
			},
		},
		"asks for cpu_millis": {
			func(d *workerv1.TypeDescriptor) { d.Resources = &workerv1.Resources{CpuMillis: 1} },
			func(d *workerv1.TypeDescriptor) {
				d.Resources = &workerv1.Resources{CpuMillis: worker.MaxCPUMillis + 1}
			},
		},
		"asks for pids": {
			func(d *workerv1.TypeDescriptor) { d.Resources = &workerv1.Resources{Pids: 1} },
			func(d *workerv1.TypeDescriptor) { d.Resources = &workerv1.Resources{Pids: worker.MinPIDs - 1} },
			func(d *workerv1.TypeDescriptor) { d.Resources = &workerv1.Resources{Pids: 1 << 40} },
		},
		"asks for what there is not: capability": {
			func(d *workerv1.TypeDescriptor) { d.Capabilities = []string{"gpu"} },
			func(d *workerv1.TypeDescriptor) { d.Capabilities = []string{"egress: x"} },
			func(d *workerv1.TypeDescriptor) { d.Capabilities = []string{"mount:/etc"} },
			func(d *workerv1.TypeDescriptor) { d.Capabilities = []string{"mount:/mnt/a=/etc#1.1"} },
			func(d *workerv1.TypeDescriptor) { d.Capabilities = []string{"\x1b"} },
		},
		"has no task goat.ingress": {func(d *workerv1.TypeDescriptor) { d.Capabilities = []string{"ingress:hooks"} }},
		"33 capabilities":          {func(d *workerv1.TypeDescriptor) { d.Capabilities = make([]string, 33) }},
		"its config has a bad":     {func(d *workerv1.TypeDescriptor) { d.ConfigSchema = []byte("{") }},
		"the output of goat.ec":    {func(d *workerv1.TypeDescriptor) { d.Tasks[0].OutputSchema = []byte("[]") }},
	} {
		for i, c := range changes {
			d := describing("goat", "1.0.0", "GT")
			c(d)
			_, err := checkDescriptor(d)
			if fault, ok := errors.AsType[*Fault](err); !ok || !strings.Contains(fault.Reason, reason) || fault.Fix == "" {
				t.Errorf("%s %d: %v", reason, i, err)
			}
		}
	}
	if _, err := checkDescriptor(nil); err == nil {
		t.Error("nothing was taken for a descriptor")
	}
}

func TestSchema(t *testing.T) {
	t.Parallel()
	for _, good := range []string{
		`true`, `{}`, `{"type":"object","properties":{"a":{"type":"integer","default":3}},"additionalProperties":false}`,
		`{"$ref":"#/$defs/a~1b","$defs":{"a/b":{"type":"string"}}}`,
		`{"properties":{"$ref":{"type":"string"}},"default":{"$ref":"https://example.org"},"enum":[{"$ref":"https://example.org"}]}`,
		`{"$schema":"https://json-schema.org/draft/2020-12/schema","$id":"https://example.org/s","items":{"$ref":"#/$defs/x"},"$defs":{"x":{}}}`,
		`{"items":[{"type":"string"}],"definitions":{"d":{}},"allOf":[{"$ref":"#/definitions/d"},{"$ref":"#/items/0"}],"$schema":"http://json-schema.org/draft-07/schema#"}`,
	} {
		if err := checkSchema("it", []byte(good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, reason := range map[string]string{
		``:                                      "", // none at all
		`nonsense`:                              "invalid character",
		`{"type":"object"`:                      "unexpected EOF",
		`{} {}`:                                 "after top-level value",
		`{"type":7}`:                            "invalid",
		`{"pattern":"("}`:                       "regexp",
		`{"properties":{"a":null}}`:             "null where a schema belongs",
		`{"$ref":"https://example.org/schema"}`: "leaves the document",
		`{"items":{"$ref":"file:///etc/passwd"}}`:                      "leaves the document",
		`{"$ref":"#/nowhere"}`:                                         "is not the JSON pointer",
		`{"$ref":"#"}`:                                                 "nested deeper than 32, references followed",
		`{"$defs":{"a":{"$ref":"#/$defs/a","default":1}}}`:             "nested deeper than 32, references followed",
		`{"properties":{"a":{"$dynamicRef":"#x"}}}`:                    "$dynamicRef is not supported",
		`{"properties":{"a":{"$id":"x"}}}`:                             "$id is supported at the top only",
		`{"type":"integer","default":"three"}`:                         "type",
		strings.Repeat(`[`, 100000):                                    "more than",
		strings.Repeat(`{"not":`, 40) + `{}` + strings.Repeat(`}`, 40): "nested deeper than 32",
		bomb(14): "stands for more than 4096 schemas",
	} {
		err := checkSchema("it", []byte(bad))
		if (err == nil) != (reason == "") || err != nil && !strings.Contains(err.Error(), reason) {
			t.Errorf("%.80s: %v, want %q", bad, err, reason)
		}
	}
}

// bomb stands for 2^n checks of one payload.
func bomb(n int) string {
	defs := map[string]any{fmt.Sprint("d", n): map[string]any{"type": "string"}}
	for i := range n {
		next := map[string]any{"$ref": fmt.Sprint("#/$defs/d", i+1)}
		defs[fmt.Sprint("d", i)] = map[string]any{"allOf": []any{next, next}}
	}
	text, err := json.Marshal(map[string]any{"$ref": "#/$defs/d0", "$defs": defs})
	if err != nil {
		panic(err)
	}
	return string(text)
}

func FuzzCheckDescriptor(f *testing.F) {
	for _, d := range []*workerv1.TypeDescriptor{
		describing("goat", "1.0.0", "GT"),
		{Name: "goat", Version: "1.0.0", Family: "GT", ConfigSchema: []byte(bomb(20))},
		{Name: "goat", Version: "1.0.0", Family: "GT", Capabilities: []string{"mount"}, Resources: &workerv1.Resources{Pids: 77}},
		{Name: "goat", Version: "1.0.0", Family: "GT", ConfigSchema: []byte(`{"default":null,"items":[{"$ref":"#/x"}],"if":{"const":null}}`)},
	} {
		data, err := proto.Marshal(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		said := &workerv1.TypeDescriptor{}
		if proto.Unmarshal(data, said) != nil {
			return
		}
		d, err := checkDescriptor(said)
		if err != nil {
			fault, ok := errors.AsType[*Fault](err)
			if !ok {
				t.Fatalf("no fault: %v", err)
			}
			checkShown(t, fault.Reason, fault.Fix)
			return
		}
		checkShown(t, d.Name, d.Version, d.Family, d.Summary)
		for _, task := range d.Tasks {
			checkShown(t, task.Kind, task.Summary)
		}
		checkShown(t, d.Capabilities...)
		again, err := checkDescriptor(d)
		if err != nil || !proto.Equal(again, d) {
			t.Fatalf("what was good is now %v, %v", again, err)
		}
	})
}

func checkShown(t *testing.T, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if len(s) > 8*maxReason || strings.ContainsFunc(s, unicode.IsControl) {
			t.Fatalf("unsafe to show: %q", s)
		}
	}
}

func FuzzSchema(f *testing.F) {
	for _, s := range []string{`{}`, `true`, `{"$ref":"#"}`, bomb(3), `{"properties":{"a":{"default":[1],"uniqueItems":true}}}`, `{"dependencies":{"a":["b"],"c":{}}}`, `{"$ref":"#/%24defs/a","$defs":{"a":{}}}`} {
		f.Add([]byte(s), []byte(`{"a":[1,2,{"a":"b"}]}`))
	}
	f.Fuzz(func(t *testing.T, schema, instance []byte) {
		// A schema that is let through can be used without harm.
		if checkSchema("it", schema) != nil || len(schema) == 0 {
			return
		}
		resolved, err := compile(schema)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if json.Unmarshal(instance, &v) == nil {
			_ = resolved.Validate(v)
		}
	})
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	for line, reason := range map[string]string{
		"1|1|unix|/x/s|grpc\n":                "",
		"1|1|unix|/x/s|grpc|\r\n":             "",
		"1|1|unix|/x/s|grpc||true\n":          "",
		"\n":                                  "prints on stdout",
		"hello\n":                             "prints on stdout before the handshake: \"hello\"",
		"a|b|c|d|e\n":                         "prints on stdout",
		"1|1\n":                               "prints on stdout",
		"-1|1|unix|/x/s|grpc\n":               "prints on stdout",
		strings.Repeat("x", 30000) + "|1|1\n": "prints on stdout",
		"2|1|unix|/x/s|grpc\n":                "version 2 of go-plugin's core protocol, this host version 1",
		"1|2|unix|/x/s|grpc\n":                "version 2 of the plugin protocol, this host version 1",
		"1|1|unix|/x/s\n":                     "speaks net/rpc",
		"1|1|unix|/x/s|netrpc\n":              "speaks net/rpc",
		"1|1|unix|/x/s|grpc|MIIB\n":           "insists on TLS",
	} {
		_, silent, fault := readHandshake(strings.NewReader(line))
		if silent || (fault == nil) != (reason == "") || fault != nil && !strings.Contains(fault.Reason, reason) {
			t.Errorf("%.40q: %v, %v, want %q", line, silent, fault, reason)
		}
	}
	if _, silent, fault := readHandshake(strings.NewReader("")); !silent || fault != nil {
		t.Errorf("nothing: %v, %v", silent, fault)
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte("1|1|unix|/proc/self/fd/3/plugin1|grpc|\n"))
	f.Add([]byte("1|1|unix|/x|grpc|" + strings.Repeat("A", 60)))
	f.Add([]byte("\x1b[2J|||||"))
	f.Fuzz(func(t *testing.T, data []byte) {
		line, silent, fault := readHandshake(bytes.NewReader(data))
		if silent != (len(data) == 0) || len(line) > maxHandshake {
			t.Fatalf("silent %v, %d bytes", silent, len(line))
		}
		if fault != nil {
			checkShown(t, fault.Reason, fault.Fix)
		}
	})
}

func TestTelling(t *testing.T) {
	t.Parallel()
	for log, want := range map[string]string{
		"":           "",
		"one\n\n":    "one",
		"one\ntwo\n": "two",
		"one\npanic: x\n\ngoroutine 1 [running]:\nmain.main()\n":    "panic: x",
		"panic: x\npanic: y\nmain.go\n":                             "panic: y",
		"evil \x1b[2J\n":                                            "evil [2J",
		"error: it cannot be served:\n  - no name\nhint: mend it\n": "- no name",
	} {
		var kept tail
		_, _ = kept.Write([]byte(log))
		if got := kept.telling(); got != want {
			t.Errorf("%q tells %q, want %q", log, got, want)
		}
	}
	var kept tail
	for range 100 {
		_, _ = kept.Write(bytes.Repeat([]byte("x"), 10000))
	}
	if len(kept) > 2*maxTail {
		t.Errorf("%d bytes are kept", len(kept))
	}
}
