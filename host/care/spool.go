package care

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// spool keeps the parts of a backup in one file until all of them are known: the
// header, which comes first, has their hashes.
type spool struct {
	file  *os.File
	parts []Part
	begin []int64
	end   int64
}

func newSpool(dir string) (*spool, error) {
	f, err := os.OpenFile(filepath.Join(dir, "parts"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make spool: %w", err)
	}
	return &spool{file: f}, nil
}

// add takes in a part.
func (s *spool) add(name string, r io.Reader) error {
	return s.put(name, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	})
}

// addPacked takes in a part, compressed.
func (s *spool) addPacked(name string, r io.Reader) error {
	return s.put(name, func(w io.Writer) error {
		z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			return err
		}
		_, err = io.Copy(z, r)
		return errors.Join(err, z.Close())
	})
}

// put takes in what write writes. After an error the spool is as it was.
func (s *spool) put(name string, write func(io.Writer) error) error {
	at, sum := s.end, sha256.New()
	w := io.NewOffsetWriter(s.file, at)
	if err := write(io.MultiWriter(w, sum)); err != nil {
		return err
	}
	size, err := w.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	s.parts = append(s.parts, Part{Name: name, Size: size, SHA256: hex.EncodeToString(sum.Sum(nil))})
	s.begin = append(s.begin, at)
	s.end = at + size
	return nil
}

// mark and rollback undo the parts that were added in between.
func (s *spool) mark() int { return len(s.parts) }

func (s *spool) rollback(to int) {
	if to < len(s.parts) {
		s.end = s.begin[to]
		s.parts, s.begin = s.parts[:to], s.begin[:to]
	}
}

// each hands out the parts in order.
func (s *spool) each(give func(p Part, r io.Reader) error) error {
	for i, p := range s.parts {
		if err := give(p, io.NewSectionReader(s.file, s.begin[i], p.Size)); err != nil {
			return err
		}
	}
	return nil
}
