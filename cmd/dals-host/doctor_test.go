package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func expect(t *testing.T, name string, got finding, status, detail string) {
	t.Helper()
	if got.Status != status || !strings.Contains(got.Detail, detail) {
		t.Errorf("%s: %+v, want %s with %q", name, got, status, detail)
	}
	if status == statusFail && got.Fix == "" {
		t.Errorf("%s: nothing to do about %q", name, got.Detail)
	}
}

func TestCheckFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	got := checkFolder(dir)
	expect(t, "open", got, statusFail, "mode 0755")
	if got.Fix != "chmod 700 "+dir {
		t.Errorf("fix %q", got.Fix)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	expect(t, "closed", checkFolder(dir), statusOK, dir)
	expect(t, "missing", checkFolder(dir+"/later"), statusOK, "serve makes it")
	expect(t, "file", checkFolder(write(t, dir+"/file", "")), statusFail, "no folder")
	expect(t, "file system", checkFileSystem(dir+"/not/there/yet"), statusOK, "MiB free")
	expect(t, "read-only", checkFileSystem("/proc/sys"), statusFail, "")
}

func TestCheckKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := &app{dataDirFlag: dir}
	expect(t, "no folder", a.checkKey(t.Context()), statusOK, "not there yet")
	file := write(t, dir+"/keys/operator.key", "no key")
	expect(t, "open to all", a.checkKey(t.Context()), statusFail, "mode 0644")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, "no key", a.checkKey(t.Context()), statusFail, "operator.key")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	got := a.checkKey(t.Context())
	expect(t, "missing", got, statusFail, "no such file")
	if !strings.Contains(got.Fix, "client add") {
		t.Errorf("fix %q", got.Fix)
	}
	if _, err := writeNewKey(file); err != nil {
		t.Fatal(err)
	}
	expect(t, "new key", a.checkKey(t.Context()), statusWarn, "whether it is enrolled is not known")
	if _, err := writeNewKey(file); err == nil {
		t.Error("a key was overwritten")
	}
}
