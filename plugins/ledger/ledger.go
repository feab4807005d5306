package main

import (
	"context"
	"fmt"

	"github.com/dals-host/dals-host/sdk"
)

// maxMany bounds how many records one task appends.
const maxMany = 1024

// config is what may be set when a ledger is forged.
type config struct {
	MaxRecordBytes int `json:"max_record_bytes" jsonschema:"the longest record, in bytes of UTF-8"`
}

// ledger answers the tasks of one worker.
type ledger struct {
	config *config
	log    *merkleLog
	notary *notary
}

func newType() sdk.Type {
	l := &ledger{config: &config{MaxRecordBytes: 64 << 10}}
	return sdk.Type{
		Name:    "ledger",
		Version: "1.0.0",
		Family:  "LG",
		Summary: "Keeps an append-only Merkle log of records, with proofs and signed checkpoints.",
		Config:  l.config,
		Tasks: []sdk.Task{
			sdk.Func("ledger.append", "Append one record.", l.append),
			sdk.Func("ledger.append_many", "Append records, all or none, in order.", l.appendMany),
			sdk.Func("ledger.get", "Read a record.", l.get),
			sdk.Func("ledger.prove", "Prove that a record is in the log.", l.prove),
			sdk.Func("ledger.checkpoint", "Sign what the log is now, and prove that it extends an earlier one.", l.checkpoint),
			sdk.Func("ledger.verify", "Compute the log anew from its records and compare.", l.verify),
		},
		Open:  l.open,
		Close: l.close,
	}
}

func (l *ledger) open(_ context.Context, w *sdk.Worker) error {
	if l.config.MaxRecordBytes < 1 || l.config.MaxRecordBytes > maxRecord {
		return fmt.Errorf("check config: max_record_bytes %d: not from 1 to %d", l.config.MaxRecordBytes, maxRecord)
	}
	var err error
	if l.notary, err = newNotary(w); err != nil {
		return err
	}
	l.log, err = openLog(w.StateDir(), w.Logger())
	return err
}

func (l *ledger) close() error { return l.log.close() }

// tree is a state of the log: what a checkpoint is about.
type tree struct {
	Size int64  `json:"size"`
	Root string `json:"root" jsonschema:"base64 of the Merkle tree hash (RFC 6962)"`
}

type appendInput struct {
	Record string `json:"record"`
}

type appendOutput struct {
	Index int64 `json:"index"`
	tree
}

func (l *ledger) append(_ context.Context, in appendInput) (appendOutput, error) {
	first, now, err := l.add([]string{in.Record})
	return appendOutput{Index: first, tree: now}, err
}

type appendManyInput struct {
	Records []string `json:"records"`
}

type appendManyOutput struct {
	FirstIndex int64 `json:"first_index"`
	Count      int   `json:"count"`
	tree
}

func (l *ledger) appendMany(_ context.Context, in appendManyInput) (appendManyOutput, error) {
	first, now, err := l.add(in.Records)
	return appendManyOutput{FirstIndex: first, Count: len(in.Records), tree: now}, err
}

func (l *ledger) add(records []string) (first int64, now tree, err error) {
	if len(records) == 0 || len(records) > maxMany {
		return 0, tree{}, sdk.Errorf("bad_count", "append %d records: not from 1 to %d", len(records), maxMany)
	}
	for i, record := range records {
		if len(record) > l.config.MaxRecordBytes {
			return 0, tree{}, sdk.Errorf("record_too_large", "append record %d: %d bytes, more than %d", i, len(record), l.config.MaxRecordBytes)
		}
	}
	first, size, root, err := l.log.append(records)
	return first, tree{Size: size, Root: root.String()}, err
}

type indexInput struct {
	Index int64 `json:"index" jsonschema:"from 0"`
}

type getOutput struct {
	Index  int64  `json:"index"`
	Record string `json:"record"`
}

func (l *ledger) get(_ context.Context, in indexInput) (getOutput, error) {
	record, err := l.log.record(in.Index)
	return getOutput{Index: in.Index, Record: string(record)}, err
}

type proveOutput struct {
	Index    int64    `json:"index"`
	Record   string   `json:"record"`
	LeafHash string   `json:"leaf_hash" jsonschema:"base64 of SHA-256 of a zero byte and the record"`
	Proof    []string `json:"proof" jsonschema:"base64 hashes of the audit path (RFC 6962)"`
	signed
}

func (l *ledger) prove(_ context.Context, in indexInput) (proveOutput, error) {
	p, err := l.log.prove(in.Index)
	if err != nil {
		return proveOutput{}, err
	}
	now, err := l.notary.sign(p.size, p.root)
	return proveOutput{
		Index:    in.Index,
		Record:   string(p.record),
		LeafHash: p.leaf.String(),
		Proof:    hashTexts(p.path),
		signed:   now,
	}, err
}

type checkpointInput struct {
	Since int64 `json:"since,omitzero" jsonschema:"the size of an earlier checkpoint, to prove that this one extends it"`
}

type checkpointOutput struct {
	Since int64    `json:"since"`
	Proof []string `json:"proof" jsonschema:"base64 hashes of the consistency proof (RFC 6962) from since; empty from 0"`
	signed
}

func (l *ledger) checkpoint(_ context.Context, in checkpointInput) (checkpointOutput, error) {
	p, err := l.log.extend(in.Since)
	if err != nil {
		return checkpointOutput{}, err
	}
	now, err := l.notary.sign(p.size, p.root)
	return checkpointOutput{Since: in.Since, Proof: hashTexts(p.path), signed: now}, err
}

type verifyInput struct{}

func (l *ledger) verify(ctx context.Context, _ verifyInput) (tree, error) {
	size, root, err := l.log.verify(ctx)
	return tree{Size: size, Root: root.String()}, err
}
