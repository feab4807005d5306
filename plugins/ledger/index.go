package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/mod/sumdb/tlog"
)

// index is what can be computed from the records: the tree's stored hashes, and
// where each record is. It is two files of entries of one size, made anew at
// every start and so never forced to disk nor trusted across one. What has been
// flushed may be read while more is added.
type index struct {
	hashes *column
	places *column
	size   int64 // records
}

const (
	hashSize  = tlog.HashSize
	placeSize = 12 // 8 bytes where, 4 bytes how long
)

func newIndex(root *os.Root) (*index, error) {
	hashes, err := newColumn(root, "hashes", hashSize)
	if err != nil {
		return nil, err
	}
	places, err := newColumn(root, "places", placeSize)
	if err != nil {
		return nil, errors.Join(err, hashes.file.Close())
	}
	return &index{hashes: hashes, places: places}, nil
}

// add indexes the next record, which lies at a place of the records file.
func (x *index) add(at int64, record []byte) error {
	hashes, err := tlog.StoredHashes(x.size, record, tlog.HashReaderFunc(x.readHashes))
	if err != nil {
		return fmt.Errorf("hash record %d: %w", x.size, err)
	}
	for _, h := range hashes {
		if err := x.hashes.add(h[:]); err != nil {
			return err
		}
	}
	place := binary.BigEndian.AppendUint64(nil, uint64(at))
	place = binary.BigEndian.AppendUint32(place, uint32(len(record)))
	if err := x.places.add(place); err != nil {
		return err
	}
	x.size++
	return nil
}

func (x *index) flush() error { return errors.Join(x.hashes.flush(), x.places.flush()) }

func (x *index) close() error { return errors.Join(x.hashes.file.Close(), x.places.file.Close()) }

// readHashes is for who adds; it sees what is not yet flushed.
func (x *index) readHashes(indexes []int64) ([]tlog.Hash, error) {
	return gather(indexes, x.hashes.get)
}

// ReadHashes reads hashes that have been flushed.
func (x *index) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	return gather(indexes, x.hashes.read)
}

func gather(indexes []int64, get func(int64, []byte) error) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, n := range indexes {
		if err := get(n, hashes[i][:]); err != nil {
			return nil, err
		}
	}
	return hashes, nil
}

// place is where a record that has been flushed lies.
func (x *index) place(n int64) (at int64, length int, err error) {
	var entry [placeSize]byte
	if err := x.places.read(n, entry[:]); err != nil {
		return 0, 0, err
	}
	return int64(binary.BigEndian.Uint64(entry[:])), int(binary.BigEndian.Uint32(entry[8:])), nil
}

// column is a file of entries of one size, written from its start.
type column struct {
	file    *os.File
	width   int
	flushed int64  // entries
	waiting []byte // entries that are not yet written
}

// columnBuffer is how much a column gathers before it writes, in bytes.
const columnBuffer = 64 << 10

func newColumn(root *os.Root, name string, width int) (*column, error) {
	file, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make index: %w", err)
	}
	return &column{file: file, width: width}, nil
}

func (c *column) add(entry []byte) error {
	c.waiting = append(c.waiting, entry...)
	if len(c.waiting) < columnBuffer {
		return nil
	}
	return c.flush()
}

func (c *column) flush() error {
	if _, err := c.file.WriteAt(c.waiting, c.flushed*int64(c.width)); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	c.flushed += int64(len(c.waiting) / c.width)
	c.waiting = nil // an idle ledger keeps no buffers
	return nil
}

// get reads entry n, flushed or not.
func (c *column) get(n int64, entry []byte) error {
	if n >= c.flushed {
		from := int(n-c.flushed) * c.width
		if from+c.width > len(c.waiting) {
			return fmt.Errorf("read index: no entry %d", n)
		}
		copy(entry, c.waiting[from:])
		return nil
	}
	return c.read(n, entry)
}

// read reads entry n, which has been flushed.
func (c *column) read(n int64, entry []byte) error {
	if _, err := c.file.ReadAt(entry, n*int64(c.width)); err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	return nil
}
