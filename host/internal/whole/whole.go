// Package whole replaces files as a whole: who reads one finds all of what it was or all
// of what it shall be, and keeps it over a power cut, whenever its writer dies.
package whole

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// unfinished is the folder, in that of the files, in which they are written.
const unfinished = ".unfinished"

// Clear prepares a folder for WriteFile, and removes what writers that died left there.
// It is for who opens the folder, before anybody writes to it.
func Clear(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, unfinished)); err != nil {
		return fmt.Errorf("clear unfinished files: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, unfinished), 0o700); err != nil {
		return fmt.Errorf("make folder of unfinished files: %w", err)
	}
	return nil
}

// WriteFile makes or replaces a file, readable and writable by its owner alone, in a
// folder that Clear has prepared. It may be called at the same time for any files.
func WriteFile(path string, data []byte) error {
	return renameio.WriteFile(path, data, 0o600, renameio.WithTempDir(filepath.Join(filepath.Dir(path), unfinished)))
}
