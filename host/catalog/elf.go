package catalog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"slices"
)

// The parts of ELF that are looked at, from elf(5). They are read by hand
// because debug/elf is not hardened against hostile input.
const (
	elfHeaderSize  = 64
	programSize    = 56
	sectionSize    = 64
	maxPrograms    = 128
	maxSections    = 4096
	elfExec        = 2
	elfDyn         = 3
	segmentLoad    = 1
	sectionNull    = 0
	sectionNoBits  = 8
	machineX8664   = 62
	machineAArch64 = 183
)

const rebuild = "build it for this machine: CGO_ENABLED=0 GOOS=linux GOARCH=" + runtime.GOARCH + " go build"

// checkELF says whether r, of size bytes, is a whole executable for this
// machine, as far as its headers tell. Nothing is executed. Errors of r itself
// are no faults.
func checkELF(r io.ReaderAt, size int64) error {
	if size == 0 {
		return &Fault{"is empty", "copy the file again"}
	}
	header := make([]byte, min(size, elfHeaderSize))
	if _, err := r.ReadAt(header, 0); err != nil && err != io.EOF {
		return fmt.Errorf("read header: %w", err)
	}
	if err := checkKind(header); err != nil {
		return err
	}
	if len(header) < elfHeaderSize {
		return truncated("ends inside its header")
	}
	if err := checkMachine(header); err != nil {
		return err
	}
	if err := checkSegments(r, header, size); err != nil {
		return err
	}
	return checkSections(r, header, size)
}

// checkKind recognises by the first bytes what people drop by mistake.
func checkKind(header []byte) error {
	begins := func(magic string) bool { return bytes.HasPrefix(header, []byte(magic)) }
	switch {
	case begins("\x7fELF"):
		return nil
	case begins("#!"):
		return &Fault{"is a script, not a binary", "a plugin is a compiled binary: see plugins/template"}
	case begins("MZ"):
		return &Fault{"is a Windows binary", rebuild}
	case begins("\xcf\xfa\xed\xfe"), begins("\xca\xfe\xba\xbe"):
		return &Fault{"is a macOS binary", rebuild}
	}
	return &Fault{"is not an ELF binary", rebuild}
}

func checkMachine(header []byte) error {
	if class := header[4]; class != 2 {
		return &Fault{"is not a 64-bit binary", rebuild}
	}
	if order := header[5]; order != 1 {
		return &Fault{"is not a little-endian binary", rebuild}
	}
	machines := map[uint16]string{machineX8664: "amd64", machineAArch64: "arm64", 3: "386", 40: "arm", 243: "riscv64", 258: "loong64"}
	machine := binary.LittleEndian.Uint16(header[18:])
	if arch := machines[machine]; arch != runtime.GOARCH {
		if arch == "" {
			arch = fmt.Sprintf("ELF machine %d", machine)
		}
		return &Fault{fmt.Sprintf("is built for %s, this machine is %s", arch, runtime.GOARCH), rebuild}
	}
	if kind := binary.LittleEndian.Uint16(header[16:]); kind != elfExec && kind != elfDyn {
		return &Fault{"is an ELF file, but not an executable", "link it: go build of a package main"}
	}
	return nil
}

// checkSegments makes sure that everything to be loaded is in the file.
func checkSegments(r io.ReaderAt, header []byte, size int64) error {
	table, err := readTable(r, size, binary.LittleEndian.Uint64(header[32:]),
		binary.LittleEndian.Uint16(header[54:]), binary.LittleEndian.Uint16(header[56:]), programSize, maxPrograms)
	if err != nil {
		return err
	}
	loads := 0
	for p := range slices.Chunk(table, programSize) {
		if binary.LittleEndian.Uint32(p) != segmentLoad {
			continue
		}
		loads++
		if !within(binary.LittleEndian.Uint64(p[8:]), binary.LittleEndian.Uint64(p[32:]), size) {
			return truncated("a segment lies beyond its end")
		}
	}
	if loads == 0 {
		return &Fault{"is an ELF file with nothing to load", rebuild}
	}
	return nil
}

// checkSections notices a cut in what is not loaded, debug information most of
// all: half-copied files are cut there.
func checkSections(r io.ReaderAt, header []byte, size int64) error {
	offset, count := binary.LittleEndian.Uint64(header[40:]), binary.LittleEndian.Uint16(header[60:])
	if offset == 0 || count == 0 {
		return nil
	}
	table, err := readTable(r, size, offset, binary.LittleEndian.Uint16(header[58:]), count, sectionSize, maxSections)
	if err != nil {
		return err
	}
	for s := range slices.Chunk(table, sectionSize) {
		kind := binary.LittleEndian.Uint32(s[4:])
		if kind != sectionNull && kind != sectionNoBits && !within(binary.LittleEndian.Uint64(s[24:]), binary.LittleEndian.Uint64(s[32:]), size) {
			return truncated("a section lies beyond its end")
		}
	}
	return nil
}

func readTable(r io.ReaderAt, size int64, offset uint64, entry, count uint16, wantEntry, maxCount int) ([]byte, error) {
	if int(entry) != wantEntry || count == 0 || int(count) > maxCount {
		return nil, &Fault{"has a damaged ELF header", rebuild}
	}
	length := int(entry) * int(count)
	if !within(offset, uint64(length), size) {
		return nil, truncated("a header table lies beyond its end")
	}
	table := make([]byte, length)
	if _, err := r.ReadAt(table, int64(offset)); err == io.EOF {
		return nil, truncated("it became shorter while it was read")
	} else if err != nil {
		return nil, fmt.Errorf("read header table: %w", err)
	}
	return table, nil
}

// within says whether length bytes from offset lie within size, without
// overflow.
func within(offset, length uint64, size int64) bool {
	return offset <= uint64(size) && length <= uint64(size)-offset
}

func truncated(how string) error {
	return &Fault{"is cut off: " + how, "copy the file again, and move it into the folder when it is complete"}
}
