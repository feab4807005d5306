package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/dals-host/dals-host/sdk/client"
)

func TestPrintable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain":                         "plain",
		"\x1b[2J\x1b]0;title\x07gone":   "[2J]0;titlegone",
		"a\x00b\x7fc\u009bd\u202ee\r":   "abcde",
		"Ärger 漢字 🐐 \uFFFD":             "Ärger 漢字 🐐 \uFFFD",
		"two\nlines\tand a tab\r\n\n\n": "two; lines and a tab",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzLogText(f *testing.F) {
	f.Add(`{"@timestamp":"2026-01-01T00:00:00Z","@level":"info","@message":"m","n":1}`)
	f.Add("\x1b[31mraw\t\xff")
	f.Add(`{"@message":"a\u001b[0m\n","k\n":{"x":["\u0007"]}}`)
	f.Fuzz(func(t *testing.T, line string) {
		text := logText(line)
		for _, r := range text {
			if r < ' ' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q gives %q with %U", line, text, r)
			}
		}
		if object := logJSON(line); !json.Valid(object) || object[0] != '{' || bytes.ContainsAny(object, "\n") ||
			bytes.ContainsFunc(object, func(r rune) bool { return r != unicode.ReplacementChar && !unicode.IsPrint(r) }) {
			t.Fatalf("%q gives %s", line, object)
		}
	})
}

// FuzzDocument: what is printed as JSON means the same, and a terminal obeys none of it.
func FuzzDocument(f *testing.F) {
	for _, seed := range []string{`{}`, "[\"\u009b31m\", \"\u202e\U000e0001\"]", "{\n  \"\\u001b\": \"\x7f\"\n}", "\"\xff\""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var before, after any
		var out bytes.Buffer
		if json.Unmarshal([]byte(text), &before) != nil {
			return
		}
		err := (&app{stdout: &out}).document(json.RawMessage(text))
		got := out.Bytes()
		if err := errors.Join(err, json.Unmarshal(got, &after)); err != nil || !reflect.DeepEqual(before, after) {
			t.Fatalf("%q gives %q: %v", text, got, err)
		}
		if bytes.ContainsFunc(got, func(r rune) bool { return r != unicode.ReplacementChar && r != '\n' && !unicode.IsPrint(r) }) {
			t.Fatalf("%q gives %q", text, got)
		}
	})
}

func TestLogText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"@timestamp":"2026-01-01T00:00:00.000000Z","@level":"info","@module":"w","@message":"task done","b":"x y","a":1.5,"c":[1],"@caller":"f.go:1"}`: `2026-01-01T00:00:00.000000Z [INFO]  w: task done a=1.5 b="x y" c=[1]`,
		`{"@message":"bare"}`:             "bare",
		`{"message":"somebody else's"}`:   `{"message":"somebody else's"}`,
		"panic: \x1b[31mno\n":             "panic: [31mno",
		"\tgoroutine 1":                   "    goroutine 1",
		`{"@message":"m","k":"\u001b[m"}`: "m k=[m",
	} {
		if got := logText(in); got != want {
			t.Errorf("logText(%s)\n %q, want\n %q", in, got, want)
		}
	}
	// Nothing is lost: an escaped character is the same JSON.
	if got := string(logJSON("{\"a\":\"\u009b1m\u202eé\U000e0001\"}")); got != `{"a":"\u009b1m\u202eé\udb40\udc01"}` {
		t.Errorf("logJSON: %s", got)
	}
	if got := string(logJSON("raw")); got != `{"@message":"raw"}` {
		t.Errorf("logJSON: %s", got)
	}
}

func TestParseSince(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"":                     {},
		"10m":                  now.Add(-10 * time.Minute),
		"2026-01-01T00:00:00Z": time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := parseSince(in, now); err != nil || !got.Equal(want) {
			t.Errorf("parseSince(%q) = %s, %v", in, got, err)
		}
	}
	if _, err := parseSince("yesterday", now); err == nil {
		t.Error("yesterday is a time")
	}
}

func TestReadConfig(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "c.json")
	if err := os.WriteFile(file, []byte(`{"a": 1, "big": 12345678901234567890, "b": {"x": true}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{stdin: strings.NewReader(`{"from":"stdin"}`)}
	for _, test := range []struct {
		file string
		set  []string
		want string
	}{
		{"", nil, ""},
		{file, nil, `{"a":1,"b":{"x":true},"big":12345678901234567890}`},
		{file, []string{"a=2", "b=text", "c=a=b", `d="3"`, "e="}, `{"a":2,"b":"text","big":12345678901234567890,"c":"a=b","d":"3","e":""}`},
		{"-", nil, `{"from":"stdin"}`},
	} {
		if got, err := a.readConfig(test.file, test.set); err != nil || string(got) != test.want {
			t.Errorf("readConfig(%s, %v) = %s, %v", test.file, test.set, got, err)
		}
	}
	for _, bad := range []string{"[]", "null", "{", `{} {}`, ""} {
		a.stdin = strings.NewReader(bad)
		if got, err := a.readConfig("-", nil); err == nil {
			t.Errorf("config %q is taken for %s", bad, got)
		}
	}
	a.stdin = strings.NewReader(strings.Repeat(" ", maxConfig+1))
	if _, err := a.readConfig("-", nil); err == nil {
		t.Error("a config has no bound")
	}
	for _, set := range []string{"a", "=1"} {
		if _, err := a.readConfig("", []string{set}); err == nil {
			t.Errorf("--set %q is taken", set)
		}
	}
}

// TestShowResult: what is printed of an envelope is a document when there is
// something to know of it, and an error unless its task was done.
func TestShowResult(t *testing.T) {
	t.Parallel()
	known := client.Result{ID: "i", Kind: "t.k", Status: client.StatusFailed, Result: json.RawMessage(`{"code":"c"}`), SignedBy: "k", LogIndex: 7}
	unknown := client.Result{ID: "i", Kind: "t.k", Status: client.StatusUnknown}
	for name, test := range map[string]struct {
		result client.Result
		err    error
		want   string
	}{
		"failed": {known, &client.TaskError{Code: "c"}, `{"id":"i","worker_serial":"","kind":"t.k","status":"failed","result":{"code":"c"},"duration_ms":0,"signed_by":"k","log_index":7}`},
		"hostile": {
			client.Result{ID: "i", Status: client.StatusOK, Result: json.RawMessage("{\"a\":\"\u009b1m\u202e\"}")},
			nil,
			`{"id":"i","worker_serial":"","kind":"","status":"ok","result":{"a":"\u009b1m\u202e"},"duration_ms":0,"signed_by":"","log_index":0}`,
		},
		"deadline": {unknown, &client.Error{Code: client.CodeDeadline}, `{"id":"i","kind":"t.k","status":"unknown"}`},
		"gone":     {unknown, &client.Error{Code: client.CodeUnavailable}, `{"id":"i","kind":"t.k","status":"unknown"}`},
		"refused":  {client.Result{ID: "i"}, &client.Error{Code: "replayed"}, ""},
	} {
		var out, compact bytes.Buffer
		a := &app{stdout: &out, json: true}
		if err := a.showResult(test.result, test.err); !errors.Is(err, test.err) {
			t.Errorf("%s: error %v", name, err)
		}
		if err := json.Compact(&compact, out.Bytes()); out.Len() > 0 && err != nil || compact.String() != test.want {
			t.Errorf("%s: %v\n%s, want\n%s", name, err, compact.String(), test.want)
		}
	}
}

func TestWorkerText(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := &app{stdout: &out}
	w := client.Worker{
		WorkerName: "nora", State: "failed", StateReason: "exit 1\x1b[31m", VaultFault: "identity.json: missing", Glyph: "+--+\n|\x1b.|\n+--+", Launcher: "process",
		Limits: &client.Limits{MemoryBytes: 64 << 20, CPUMillis: 500, PIDs: 64}, Usage: &client.Usage{MemoryBytes: 3 << 19, CPUTimeMs: 1250, PIDs: 7},
	}
	if err := a.show(w, func(t *table) { workerText(t, w) }); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"state         failed: exit 1[31m\n", "vault_integrity=false: identity.json: missing\n", "glyph         +--+\n              |.|\n",
		"uses          1.5 MiB, 1.25s of CPU time, 7 processes and threads\n", "limits        64.0 MiB, 0.5 cores, 64 processes and threads; not enforced: it is a plain process\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// TestWorkersOwnWord: what a worker says of its memory cannot be taken for what the
// kernel counts.
func TestWorkersOwnWord(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := &app{stdout: &out}
	w := client.WorkerDetail{
		Worker:  client.Worker{WorkerName: "nora", Usage: &client.Usage{MemoryBytes: 3 << 19}},
		Metrics: &client.Metrics{StartedAt: client.Time{Time: time.Unix(0, 0)}, RSSBytes: 5 << 19},
	}
	if err := a.show(w, func(t *table) { detailText(t, w) }); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"uses          1.5 MiB, ", "process       started 1970-01-01T00:00:00Z; 2.5 MiB of memory, by its own word\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
