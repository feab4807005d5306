package main

import (
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dals-host/dals-host/sdk/client"
)

func logsCommand(a *app) *cobra.Command {
	var (
		request client.LogsRequest
		since   string
	)
	cmd := &cobra.Command{
		Use:   "logs WORKER",
		Short: "Print what a worker logged",
		Example: `  dals-host logs nora --tail 20
  dals-host logs nora --since 10m
  dals-host logs nora --follow --json | jq .`,
		Args:              exactly(1),
		ValidArgsFunction: a.completeWorker,
		RunE: func(cmd *cobra.Command, args []string) error {
			if request.Tail < 0 {
				return usagef("--tail %d is negative", request.Tail)
			}
			if request.Tail > math.MaxInt32 {
				return usagef("--tail %d is more than %d; leave it out for all lines", request.Tail, math.MaxInt32)
			}
			at, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			request.Worker, request.Since = args[0], at
			return a.with(cmd.Context(), func(c *client.Client) error {
				return a.logs(c.Logs(cmd.Context(), request), request.Follow)
			})
		},
	}
	cmd.Flags().BoolVarP(&request.Follow, "follow", "f", false, "go on with what comes; --json gives a line for each")
	cmd.Flags().IntVar(&request.Tail, "tail", 0, "only the last `N` lines (default all)")
	cmd.Flags().StringVar(&since, "since", "", "only from `TIME` on: RFC 3339, or how long ago, as in 10m")
	return cmd
}

func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(s); err == nil {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, usagef("--since %q is neither a time as 2026-01-31T15:04:05Z nor a duration as 10m", s)
	}
	return at, nil
}

func (a *app) logs(lines iter.Seq2[string, error], follow bool) error {
	if a.json && !follow {
		return a.logDocument(lines)
	}
	for line, err := range lines {
		if err != nil {
			return err
		}
		text := logText(line)
		if a.json {
			text = string(logJSON(line))
		}
		if _, err := io.WriteString(a.stdout, text+"\n"); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
	return nil
}

func (a *app) logDocument(lines iter.Seq2[string, error]) error {
	all := []json.RawMessage{}
	for line, err := range lines {
		if err != nil {
			return err
		}
		all = append(all, logJSON(line))
	}
	return a.document(all)
}

// logJSON is a line as a JSON object: its own, or one with its text.
func logJSON(line string) json.RawMessage {
	var object map[string]json.RawMessage
	if json.Unmarshal([]byte(line), &object) == nil && object != nil {
		if compact, err := json.Marshal(json.RawMessage(line)); err == nil {
			return escaped(compact)
		}
	}
	text, _ := json.Marshal(map[string]string{"@message": line}) // strings always marshal
	return escaped(text)
}

// logText is a line for people. Lines of hclog's JSON are laid out as hclog lays
// out its text; others go as they are. Control characters never get through.
func logText(line string) string {
	var fields map[string]any
	if json.Unmarshal([]byte(line), &fields) != nil || fields["@message"] == nil {
		return printable(strings.ReplaceAll(line, "\t", "    "))
	}
	var text strings.Builder
	take := func(key, format string) {
		if v, ok := fields[key]; ok {
			fmt.Fprintf(&text, format, oneLine(fmt.Sprint(v)))
			delete(fields, key)
		}
	}
	take("@timestamp", "%s ")
	if level, ok := fields["@level"].(string); ok {
		fields["@level"] = "[" + strings.ToUpper(level) + "]"
	}
	take("@level", "%-7s ")
	take("@module", "%s: ")
	take("@message", "%s")
	delete(fields, "@caller")
	keys := make([]string, 0, len(fields))
	for k := range fields {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(&text, " %s=%s", oneLine(k), logValue(fields[k]))
	}
	return text.String()
}

func logValue(v any) string {
	s, ok := v.(string)
	if !ok {
		data, _ := json.Marshal(v) // it came from JSON
		s = string(data)
	} else if s == "" || strings.ContainsAny(s, " \"=\n\t") {
		data, _ := json.Marshal(s)
		s = string(data)
	}
	return oneLine(s)
}
