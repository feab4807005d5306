package sdk

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	workerv1 "github.com/dals-host/dals-host/sdk/proto/worker/v1"
)

type empty struct{}

func noop(context.Context, empty) (empty, error) { return empty{}, nil }

func goodType() Type {
	return Type{
		Name: "good", Version: "1.0.0", Family: "GD", Summary: "Does nothing.",
		Tasks: []Task{Func("good.nothing", "Do nothing.", noop)},
	}
}

// TestCheckNamesEveryFault: each fault is told, with what to do about it.
func TestCheckNamesEveryFault(t *testing.T) {
	t.Parallel()
	if _, err := Describe(goodType()); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Type){
		`name "Good"`:                       func(t *Type) { t.Name = "Good" },
		`name ""`:                           func(t *Type) { t.Name = "" },
		`version "v1.0.0"`:                  func(t *Type) { t.Version = "v1.0.0" },
		`version "1.0"`:                     func(t *Type) { t.Version = "1.0" },
		`version "1.0.0 "`:                  func(t *Type) { t.Version = "1.0.0 " },
		`version "1.0.0+linux"`:             func(t *Type) { t.Version = "1.0.0+linux" },
		`version "1000000.0.0"`:             func(t *Type) { t.Version = "1000000.0.0" },
		`version "1.0.0-aa`:                 func(t *Type) { t.Version = "1.0.0-" + strings.Repeat("a", 59) },
		`family "G"`:                        func(t *Type) { t.Family = "G" },
		"summary: it is empty":              func(t *Type) { t.Summary = " " },
		"summary: it is not one line":       func(t *Type) { t.Summary = "two\nlines" },
		"summary: it has 201 bytes":         func(t *Type) { t.Summary = strings.Repeat("x", 201) },
		"config: it is a sdk.empty":         func(t *Type) { t.Config = empty{} },
		"config: it is a *int":              func(t *Type) { t.Config = new(int) },
		"config: it is a *sdk.empty":        func(t *Type) { t.Config = (*empty)(nil) },
		"config: ForType":                   func(t *Type) { t.Config = &struct{ C chan int }{} },
		"resources: -1 processes":           func(t *Type) { t.Resources.PIDs = -1 },
		"resources: 15 processes: from 16 ": func(t *Type) { t.Resources.PIDs = 15 },
		"resources: 9 thousandths":          func(t *Type) { t.Resources.CPUMillis = 9 },
		"resources: 16777215 bytes":         func(t *Type) { t.Resources.MemoryBytes = 16<<20 - 1 },
		"resources: 1048577 thousandths":    func(t *Type) { t.Resources.CPUMillis = 1<<20 + 1 },
		"resources: 4194305 processes":      func(t *Type) { t.Resources.PIDs = 1<<22 + 1 },
		"resources: 1099511627777 bytes":    func(t *Type) { t.Resources.MemoryBytes = 1<<40 + 1 },
		`capability "" is of no known kind`: func(t *Type) { t.Capabilities = []string{""} },
		`capability "net work" is of no`:    func(t *Type) { t.Capabilities = []string{"net work"} },
		`write it as mount:/mnt/NAME`:       func(t *Type) { t.Capabilities = []string{"mount:/mnt/a=/etc#1.1"} },
		`no task "good.ingress"`:            func(t *Type) { t.Capabilities = []string{"ingress:hooks"} },
		"capability of 257 bytes":           func(t *Type) { t.Capabilities = []string{"a:" + strings.Repeat("b", 255)} },
		"capabilities: 33, more than":       func(t *Type) { t.Capabilities = make([]string, 33) },
		"tasks: 65, more than 64":           func(t *Type) { t.Tasks = make([]Task, 65) },
		`:443": asked for twice`:            func(t *Type) { t.Capabilities = []string{"egress:a.org:443", "egress:a.org:443"} },
		"tasks: there are none":             func(t *Type) { t.Tasks = nil },
		`task "bad.nothing": a kind is`:     func(t *Type) { t.Tasks = []Task{Func("bad.nothing", "Do.", noop)} },
		`task "good.No": a kind is`:         func(t *Type) { t.Tasks = []Task{Func("good.No", "Do.", noop)} },
		`task "good.a.b": a kind is`:        func(t *Type) { t.Tasks = []Task{Func("good.a.b", "Do.", noop)} },
		`task "good.nothing": given`:        func(t *Type) { t.Tasks = append(t.Tasks, t.Tasks[0]) },
		`task "good.nothing": summary`:      func(t *Type) { t.Tasks = []Task{Func("good.nothing", "", noop)} },
		`task "good.raw": make tasks`:       func(t *Type) { t.Tasks = []Task{{Kind: "good.raw", Summary: "Do."}} },
		`task "good.bad": input schema`: func(t *Type) {
			t.Tasks = []Task{Func("good.bad", "Do.", func(context.Context, func()) (empty, error) { return empty{}, nil })}
		},
		`task "good.bad": output schema`: func(t *Type) {
			t.Tasks = []Task{Func("good.bad", "Do.", func(context.Context, empty) (map[int]chan int, error) { return nil, nil })}
		},
		`task "good.raw": output schema`: func(t *Type) {
			t.Tasks = Process(nil, Kind{Kind: "good.raw", Summary: "Do.", Output: json.RawMessage(`{"type":3}`)})
		},
		`task "good.far": input schema`: func(t *Type) {
			t.Tasks = Process(nil, Kind{Kind: "good.far", Summary: "Do.", Input: json.RawMessage(`{"$ref":"http://example.com/x"}`)})
		},
		`task "good.long": input schema: it has`: func(t *Type) {
			long := `{"description":"` + strings.Repeat("x", maxSchema) + `"}`
			t.Tasks = Process(nil, Kind{Kind: "good.long", Summary: "Do.", Input: json.RawMessage(long)})
		},
	} {
		typ := goodType()
		spoil(&typ)
		if _, err := Describe(typ); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}

func TestGoodVersions(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"0.0.1", "1.2.3-rc.1", "999999.20.30-a.0", "1.0.0-" + strings.Repeat("a", 58)} {
		typ := goodType()
		typ.Version, typ.Capabilities = version, []string{"egress:example.org:443"}
		typ.Resources = Resources{MemoryBytes: 16 << 20, CPUMillis: 10, PIDs: 16}
		if _, err := Describe(typ); err != nil {
			t.Error(err)
		}
	}
}

// TestConfigSchema: what has a default may be left out, what is zero must be
// given, unless it is marked.
func TestConfigSchema(t *testing.T) {
	t.Parallel()
	type nested struct {
		Depth int    `json:"depth"`
		Must  string `json:"must"`
	}
	type config struct {
		Color  string   `json:"color" jsonschema:"the color"`
		Must   string   `json:"must"`
		May    int      `json:"may,omitempty"`
		Debug  bool     `json:"debug,omitzero"`
		Tags   []string `json:"tags"`
		Nested nested   `json:"nested"`
	}
	typ := goodType()
	typ.Config = &config{Color: "red", Tags: []string{"a"}, Nested: nested{Depth: 3}}
	d, err := Describe(typ)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"type":"object","properties":{` +
		`"color":{"type":"string","description":"the color","default":"red"},` +
		`"must":{"type":"string"},"may":{"type":"integer"},"debug":{"type":"boolean"},` +
		`"tags":{"default":["a"],"items":{"type":"string"},"type":["null","array"]},` +
		`"nested":{"type":"object","properties":{"depth":{"type":"integer","default":3},"must":{"type":"string"}},"required":["must"],"additionalProperties":false}},` +
		`"required":["must","nested"],"additionalProperties":false}`
	if !sameJSON(t, d.GetConfigSchema(), []byte(want)) {
		t.Errorf("schema %s\nwant   %s", d.GetConfigSchema(), want)
	}
	c, err := typ.check()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.configure([]byte(`{"must":"m","nested":{"must":"n"}}`)); err != nil {
		t.Error(err)
	}
	if got := typ.Config.(*config); got.Color != "red" || got.Must != "m" || got.Nested != (nested{3, "n"}) {
		t.Errorf("configured %+v", got)
	}
}

func TestNoConfig(t *testing.T) {
	t.Parallel()
	c, err := goodType().check()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.configure([]byte(`{}`)); err != nil {
		t.Error(err)
	}
	if err := c.configure([]byte(`{"a":1}`)); err == nil {
		t.Error("a type without configuration took some")
	}
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	if err := json.Unmarshal(a, &x); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &y); err != nil {
		t.Fatal(err)
	}
	xs, xErr := json.Marshal(x)
	ys, yErr := json.Marshal(y)
	if xErr != nil || yErr != nil {
		t.Fatal(xErr, yErr)
	}
	return string(xs) == string(ys)
}

// TestSchemasAreMadeLate: a worker does without those of tasks that nobody sends;
// a probe looks at all of them.
func TestSchemasAreMadeLate(t *testing.T) {
	t.Parallel()
	typ := goodType()
	bad := Func(typ.Name+".bad", "Cannot be described.", func(context.Context, chan int) (struct{}, error) { return struct{}{}, nil })
	typ.Tasks = append(typ.Tasks, bad)
	if _, err := typ.check(); err == nil || !strings.Contains(err.Error(), "input schema") {
		t.Errorf("checked: %v", err)
	}
	if _, err := typ.checkProbed(); err != nil {
		t.Errorf("checked by a worker: %v", err)
	}
	if got := perform(t.Context(), &job{task: bad, payload: []byte("{}")}); got.status != workerv1.ResultStatus_RESULT_STATUS_FAILED {
		t.Errorf("sent it: %+v", got)
	}
	typ.Family = "x"
	if _, err := typ.checkProbed(); err == nil || !strings.Contains(err.Error(), "family") {
		t.Errorf("checked by a worker: %v", err)
	}
}
