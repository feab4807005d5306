package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/client"
)

// The exit codes of the contract.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitPartly = 3
)

// partlyError says that a command did its work, and not all of it.
type partlyError struct{ error }

func (e *partlyError) Unwrap() error { return e.error }

// usageError is a command line that cannot be run.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

func withHint(err error, hint string) error { return worker.Hint(err, hint) }

// hintOf is the advice that came with an error, from here or from the host.
func hintOf(err error) string {
	if said, ok := errors.AsType[*client.Error](err); ok && said.Hint != "" {
		return said.Hint
	}
	return worker.HintOf(err)
}

// report tells how a command ended, on stderr, and gives the exit code.
func (a *app) report(ctx context.Context, ran *cobra.Command, err error) int {
	if err == nil {
		return exitDone
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintf(a.stderr, "%s interrupted\n", a.paint(red, "error:"))
		return exitFailed
	}
	hint, code := hintOf(err), exitFailed
	if _, ok := errors.AsType[*usageError](err); ok {
		code = exitUsage
		if hint == "" {
			hint = fmt.Sprintf("run %s --help", ran.CommandPath())
		}
	}
	if _, ok := errors.AsType[*partlyError](err); ok {
		code = exitPartly
	}
	fmt.Fprintf(a.stderr, "%s %s\n", a.paint(red, "error:"), oneLine(err.Error()))
	if hint != "" {
		fmt.Fprintf(a.stderr, "%s %s\n", a.paint(yellow, "hint:"), oneLine(hint))
	}
	return code
}

// message tells people something beside the data.
func (a *app) message(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.stderr, "%s\n", oneLine(fmt.Sprintf(format, args...)))
	}
}

// show prints a command's data: the document as JSON, or text for people.
func (a *app) show(document any, text func(t *table)) error {
	if a.json {
		return a.document(document)
	}
	t := &table{w: tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)}
	text(t)
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// document writes JSON that means v. What is in it may be a stranger's.
func (a *app) document(v any) error {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	if err == nil {
		_, err = a.stdout.Write(escaped(text.Bytes()))
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// escaped is the same JSON without characters that a terminal would obey, such as
// the control characters beyond ASCII, which JSON allows in strings.
func escaped(data []byte) json.RawMessage {
	var b []byte
	for _, r := range string(data) {
		switch {
		case r == unicode.ReplacementChar || unicode.IsPrint(r), r == '\n': // one between values
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			b = fmt.Appendf(b, `\u%04x\u%04x`, high, low)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return b
}

// table aligns the cells of its rows. It takes whatever workers and plugins say:
// nothing but printable characters gets through.
type table struct{ w *tabwriter.Writer }

func (t *table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = oneLine(c)
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

// block is a row whose value has several lines.
func (t *table) block(label, value string) {
	for line := range strings.Lines(value) {
		t.row(label, line)
		label = ""
	}
}

// text is a line of its own: the rows before and after it align apart.
func (t *table) text(format string, args ...any) {
	fmt.Fprintln(t.w, oneLine(fmt.Sprintf(format, args...)))
}

// oneLine keeps what can be printed: no escape sequences, no control
// characters, no marks that reverse the writing. Line ends become semicolons.
func oneLine(s string) string {
	s = strings.ReplaceAll(strings.TrimRight(s, "\r\n"), "\n", "; ")
	return printable(strings.ReplaceAll(s, "\t", " "))
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
}

// count is n of something, in words.
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// The colours of messages.
const (
	red    = "31"
	yellow = "33"
)

// paint colours s for people at a terminal who have not said NO_COLOR.
func (a *app) paint(colour, s string) string {
	if !colourful(a.stderr) {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

func colourful(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(file.Fd()))
}
