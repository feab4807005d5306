package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// maxPassphrase is more than anybody's passphrase has, in bytes.
const maxPassphrase = 4 << 10

// passphrase is what the file says on its one line, or what a person types;
// without a file and a terminal it is empty. It never comes by the command line
// or the environment, which others can read.
func (a *app) passphrase(file, prompt string, twice bool) (string, error) {
	if file != "" {
		return readPassphrase(file)
	}
	terminal, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(terminal.Fd())) {
		return "", nil
	}
	typed, err := a.askSecret(terminal, prompt)
	if err != nil || typed == "" || !twice {
		return typed, err
	}
	again, err := a.askSecret(terminal, "Again: ")
	if err != nil {
		return "", err
	}
	if again != typed {
		return "", errors.New("the two passphrases differ")
	}
	return typed, nil
}

func (a *app) askSecret(terminal *os.File, prompt string) (string, error) {
	fmt.Fprint(a.stderr, prompt)
	typed, err := term.ReadPassword(int(terminal.Fd()))
	fmt.Fprintln(a.stderr)
	if err != nil {
		return "", fmt.Errorf("read passphrase: %w", err)
	}
	return string(typed), nil
}

func readPassphrase(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("read passphrase: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPassphrase+1))
	if err != nil {
		return "", fmt.Errorf("read passphrase: %w", err)
	}
	line := strings.TrimRight(string(data), "\r\n")
	if line == "" || len(data) > maxPassphrase || strings.ContainsAny(line, "\r\n") {
		return "", withHint(fmt.Errorf("read passphrase: %s is not one line of 1 to %d bytes", file, maxPassphrase), "write the passphrase on the first line, and nothing else")
	}
	return line, nil
}
