package catalog

import (
	"bufio"
	"io"
	"strconv"
	"strings"

	"github.com/hashicorp/go-plugin"

	"github.com/dals-host/dals-host/sdk/wire"
)

const (
	maxHandshake = 4 << 10
	maxShown     = 160 // runes of a stranger's line
	maxTail      = 64 << 10
)

// readHandshake reads the first line of a plugin's stdout. silent says that
// there was none.
func readHandshake(stdout io.Reader) (line string, silent bool, fault *Fault) {
	r := bufio.NewReaderSize(io.LimitReader(stdout, maxHandshake), maxHandshake)
	line, err := r.ReadString('\n')
	if line == "" && err != nil {
		return "", true, nil
	}
	return line, false, checkHandshake(line)
}

// checkHandshake lets through only what go-plugin's client reads without harm:
// a certificate where none was asked for, for one, makes it panic. What is
// written is CORE|PROTOCOL|NETWORK|ADDRESS|KIND|CERTIFICATE and more.
func checkHandshake(line string) *Fault {
	const rebuildSDK = "build it with the SDK of this host's version"
	parts := strings.Split(strings.TrimSpace(line), "|")
	if len(parts) < 4 || !isNumber(parts[0]) || !isNumber(parts[1]) {
		return bad("let main call sdk.Serve first, and print to stderr, in init functions too",
			"prints on stdout before the handshake: %q", oneLine(line, maxShown))
	}
	if want := strconv.Itoa(plugin.CoreProtocolVersion); parts[0] != want {
		return bad(rebuildSDK, "speaks version %s of go-plugin's core protocol, this host version %s", parts[0], want)
	}
	if want := strconv.Itoa(int(wire.Handshake().ProtocolVersion)); parts[1] != want {
		return bad(rebuildSDK, "speaks version %s of the plugin protocol, this host version %s", parts[1], want)
	}
	if len(parts) < 5 || parts[4] != string(plugin.ProtocolGRPC) {
		return bad(rebuildSDK, "speaks net/rpc, this host gRPC only")
	}
	if len(parts) > 5 && parts[5] != "" {
		return bad(rebuildSDK, "insists on TLS, which this host did not ask for")
	}
	return nil
}

func isNumber(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && strconv.Itoa(n) == s && n >= 0
}

// tail keeps the end of what is written to it.
type tail []byte

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	if len(*t) > 2*maxTail {
		*t = append((*t)[:0], (*t)[len(*t)-maxTail:]...)
	}
	return len(p), nil
}

// telling is the line that tells most: the last panic, else the last line that is not
// advice on the one before it.
func (t tail) telling() string {
	last, found := "", false
	for line := range strings.Lines(string(t)) {
		isPanic := strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")
		if text := oneLine(line, maxShown); text != "" && !strings.HasPrefix(text, "hint: ") && (isPanic || !found) {
			last, found = text, isPanic
		}
	}
	return last
}
