package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/dals-host/dals-host/sdk"
)

// The records file is a sequence of batches, one for each task that appended:
//
//	4 bytes  length of the body
//	4 bytes  number of records
//	4 bytes  CRC-32C of the body
//	4 bytes  CRC-32C of the 12 bytes before
//	body     for each record: 4 bytes length, the record
//
// Numbers are big-endian. A batch is written at once, after the one before is
// on disk, so a crash can spoil the last one only: that is how what was torn is
// told from what was tampered with.
const (
	batchHeader  = 16
	recordHeader = 4
	maxRecord    = 1 << 20 // bytes
	maxBody      = maxMany*recordHeader + 4<<20
)

// errTorn is a batch that was never wholly written.
var errTorn = errors.New("the last batch is torn")

func crc(data []byte) uint32 { return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) }

// encodeBatch is records as they are written.
func encodeBatch(records []string) ([]byte, error) {
	batch := make([]byte, batchHeader)
	for _, record := range records {
		batch = binary.BigEndian.AppendUint32(batch, uint32(len(record)))
		batch = append(batch, record...)
	}
	body := batch[batchHeader:]
	if len(body) > maxBody {
		return nil, sdk.Errorf("record_too_large", "append %d bytes at once: more than %d", len(body), maxBody)
	}
	binary.BigEndian.PutUint32(batch[0:], uint32(len(body)))
	binary.BigEndian.PutUint32(batch[4:], uint32(len(records)))
	binary.BigEndian.PutUint32(batch[8:], crc(body))
	binary.BigEndian.PutUint32(batch[12:], crc(batch[:12]))
	return batch, nil
}

// batchReader reads the batches of a file of a known size.
type batchReader struct {
	r    *bufio.Reader
	at   int64 // where the next batch begins
	size int64
}

func newBatchReader(r io.ReaderAt, size int64) *batchReader {
	return &batchReader{r: bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 64<<10), size: size}
}

// next gives each record of the next batch, with its place in the file, to each.
// At the end of the file it returns io.EOF; a batch that was being written when
// the process died is errTorn, and then at is where to cut the file.
func (b *batchReader) next(each func(at int64, record []byte) error) error {
	left := b.size - b.at
	if left == 0 {
		return io.EOF
	}
	if left < batchHeader {
		return errTorn
	}
	header := make([]byte, batchHeader)
	if _, err := io.ReadFull(b.r, header); err != nil {
		return fmt.Errorf("read batch at %d: %w", b.at, err)
	}
	length, count := binary.BigEndian.Uint32(header[0:]), binary.BigEndian.Uint32(header[4:])
	switch {
	case binary.BigEndian.Uint32(header[12:]) != crc(header[:12]):
		return b.tornOrCorrupt(header)
	case length > maxBody || count == 0 || count > maxMany:
		return b.corrupt("its header is out of bounds")
	case int64(length) > left-batchHeader:
		return errTorn
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(b.r, body); err != nil {
		return fmt.Errorf("read batch at %d: %w", b.at, err)
	}
	if binary.BigEndian.Uint32(header[8:]) != crc(body) {
		if left == batchHeader+int64(length) {
			return errTorn
		}
		return b.corrupt("its checksum does not match")
	}
	if err := b.split(body, count, each); err != nil {
		return err
	}
	b.at += batchHeader + int64(length)
	return nil
}

func (b *batchReader) split(body []byte, count uint32, each func(int64, []byte) error) error {
	at := b.at + batchHeader
	for range count {
		if len(body) < recordHeader || uint64(len(body)-recordHeader) < uint64(binary.BigEndian.Uint32(body)) {
			return b.corrupt("its records do not fit")
		}
		length := int(binary.BigEndian.Uint32(body))
		at += recordHeader
		if err := each(at, body[recordHeader:recordHeader+length]); err != nil {
			return err
		}
		at += int64(length)
		body = body[recordHeader+length:]
	}
	if len(body) != 0 {
		return b.corrupt("its records do not fill it")
	}
	return nil
}

// tornOrCorrupt judges a header that is none. A file system may have made the
// file longer without its data: then the rest is zeros.
func (b *batchReader) tornOrCorrupt(header []byte) error {
	zeros := make([]byte, batchHeader)
	for rest := header; ; {
		if !bytes.Equal(rest, zeros[:len(rest)]) {
			return b.corrupt("its header is damaged")
		}
		n, err := io.ReadFull(b.r, header)
		if n == 0 && errors.Is(err, io.EOF) {
			return errTorn
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("read batch at %d: %w", b.at, err)
		}
		rest = header[:n]
	}
}

func (b *batchReader) corrupt(why string) error {
	return fmt.Errorf("batch at byte %d is corrupt: %s", b.at, why)
}
