package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"
)

// Task is one kind of task that workers of a type answer. Make tasks with Func
// or Process.
type Task struct {
	// Kind is <type>.<verb>.
	Kind string
	// Summary is one line for people.
	Summary string

	// schemas are made when they are first needed: by a probe all of them, by a worker
	// those of the kinds that it is sent.
	schemas func() taskSchemas
	// prepare reads a payload that fits the input schema; its error means that
	// the payload does not fit after all.
	prepare func(payload []byte) (call, error)
}

type taskSchemas struct {
	input, output schema
	err           error // what is wrong with them, told by Type.check
}

// makeSchemas makes a task's schemas, once.
func makeSchemas(input, output func() (schema, error)) func() taskSchemas {
	return sync.OnceValue(func() taskSchemas {
		var s taskSchemas
		var inErr, outErr error
		if s.input, inErr = input(); inErr != nil {
			inErr = fmt.Errorf("input schema: %w", inErr)
		}
		if s.output, outErr = output(); outErr != nil {
			outErr = fmt.Errorf("output schema: %w", outErr)
		}
		s.err = errors.Join(inErr, outErr)
		return s
	})
}

// call runs a prepared task. Its output is JSON.
type call func(ctx context.Context) ([]byte, error)

// Func makes a task of a function. The schemas are those of In and Out as
// encoding/json writes them: fields without omitempty or omitzero are required,
// unknown ones refused. f sees only input that fits. It may run many times at
// once: a worker does 64 tasks, of whatever kind, and the others wait in the
// order in which they came. ctx ends at the task's deadline, waiting included,
// when the task is cancelled, and when the worker ends. FromContext and Call tell
// whose worker runs it, and for whom.
//
// An error fails the task: its text goes to the sender, so it must not hold
// secrets. Errorf gives it a code of its own. A panic fails the task too; its
// stack goes to the worker's log alone.
func Func[In, Out any](kind, summary string, f func(context.Context, In) (Out, error)) Task {
	t := Task{Kind: kind, Summary: summary}
	t.schemas = makeSchemas(
		func() (schema, error) { return inferSchema(reflect.TypeFor[In]()) },
		func() (schema, error) { return inferSchema(reflect.TypeFor[Out]()) },
	)
	t.prepare = func(payload []byte) (call, error) {
		var in In
		if err := json.Unmarshal(payload, &in); err != nil {
			return nil, err
		}
		return func(ctx context.Context) ([]byte, error) {
			out, err := f(ctx, in)
			if err != nil {
				return nil, err
			}
			return json.Marshal(out)
		}, nil
	}
	return t
}

// Processor does tasks of several kinds: for types whose kinds are data rather
// than Go functions. ProcessTask may be called many times at once; payload is
// JSON that fits the kind's input schema, and so must the output be. What Func
// says of ctx, errors and panics holds here.
type Processor interface {
	ProcessTask(ctx context.Context, kind string, payload []byte) ([]byte, error)
}

// Kind describes one task of a Processor. Input and Output are JSON Schemas;
// nil stands for any JSON.
type Kind struct {
	Kind    string
	Summary string
	Input   json.RawMessage
	Output  json.RawMessage
}

// Process makes one task of each kind, all done by p.
func Process(p Processor, kinds ...Kind) []Task {
	tasks := make([]Task, len(kinds))
	for i, k := range kinds {
		tasks[i] = processTask(p, k)
	}
	return tasks
}

func processTask(p Processor, k Kind) Task {
	t := Task{Kind: k.Kind, Summary: k.Summary}
	t.schemas = makeSchemas(
		func() (schema, error) { return parseSchema(k.Input) },
		func() (schema, error) { return parseSchema(k.Output) },
	)
	t.prepare = func(payload []byte) (call, error) {
		return func(ctx context.Context) ([]byte, error) {
			out, err := p.ProcessTask(ctx, k.Kind, payload)
			if err != nil {
				return nil, err
			}
			if err := t.schemas().output.check(out); err != nil {
				return nil, fmt.Errorf("check output: %w", err)
			}
			return out, nil
		}, nil
	}
	return t
}
