// Command wanderer is a worker type that tries to get out: by what it was granted,
// and by every other way that it can think of. It exists for the tests of
// internal/e2e only, which say at its build what it asks for.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dals-host/dals-host/sdk"
)

// Set by the linker.
var (
	asks    string // capabilities, with a space between
	version = "1.0.0"
)

const patience = 3 * time.Second

type fetch struct {
	URL string `json:"url"`
	CA  string `json:"ca,omitempty"`  // PEM
	SDK bool   `json:"sdk,omitempty"` // by the sdk's dialer
}

type post struct {
	URL  string `json:"url"`
	Size int64  `json:"size"` // bytes
}

type text struct {
	Text string `json:"text"`
}

type file struct {
	Place string `json:"place"`
	Name  string `json:"name"`
	Text  string `json:"text,omitempty"`
}

type list struct {
	List []string `json:"list"`
}

type call struct {
	Kind  string         `json:"kind"`
	Input map[string]any `json:"input"`
}

func main() {
	sdk.Serve(sdk.Type{
		Name: "wanderer", Version: version, Family: "WD", Summary: "Tries to get out.",
		Capabilities: strings.Fields(asks),
		Tasks: []sdk.Task{
			sdk.Func("wanderer.fetch", "Fetches a URL.", get),
			sdk.Func("wanderer.exchange", "Posts bytes to a URL that answers with the same.", exchange),
			sdk.Func("wanderer.outlast", "Reads a connection to its end, and writes only then.", outlast),
			sdk.Func("wanderer.grants", "Says what it was granted.", grants),
			sdk.Func("wanderer.put", "Writes a file of a folder that it was granted.", put),
			sdk.Func("wanderer.take", "Reads a file of a folder that it was granted.", take),
			sdk.Func("wanderer.lookup", "Looks a name up.", lookup),
			sdk.Func("wanderer.dial", "Connects to an address and says how that went.", dial),
			sdk.Func("wanderer.relay", "Calls another worker and gives its output.", relay),
			sdk.Func("wanderer.loop", "Calls another wanderer, which does the same.", loop),
			sdk.Ingress("wanderer", "Answers what comes in.", answer),
			sdk.Func("wanderer.escape", "Says by which other ways it got out.", escape),
		},
	})
}

func get(ctx context.Context, in fetch) (text, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(in.CA))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	if in.SDK {
		transport.DialContext = sdk.FromContext(ctx).DialContext
	}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, in.URL, nil)
	if err != nil {
		return text{}, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(request)
	if errors.Is(err, sdk.ErrNotGranted) {
		return text{}, sdk.Errorf("not_granted", "%w", err)
	}
	if err != nil {
		return text{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return text{string(body)}, err
}

// exchange says whether what came back is what it has sent.
func exchange(ctx context.Context, in post) (text, error) {
	out, back := sha256.New(), sha256.New()
	body := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{}), in.Size), out)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, in.URL, body)
	if err != nil {
		return text{}, err
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return text{}, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(back, resp.Body)
	if !bytes.Equal(out.Sum(nil), back.Sum(nil)) {
		err = errors.Join(err, errors.New("other bytes came back"))
	}
	return text{fmt.Sprint(n)}, err
}

func outlast(ctx context.Context, in text) (text, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", in.Text)
	if err != nil {
		return text{}, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * patience)); err != nil {
		return text{}, err
	}
	said, err := io.ReadAll(c)
	if err == nil {
		_, err = io.WriteString(c, "the last word")
	}
	return text{string(said)}, err
}

func grants(ctx context.Context, _ struct{}) (list, error) {
	return list{sdk.FromContext(ctx).Grants()}, nil
}

func put(ctx context.Context, in file) (text, error) {
	dir, err := sdk.FromContext(ctx).Mount(in.Place)
	if err != nil {
		return text{}, sdk.Errorf("not_granted", "%w", err)
	}
	return text{dir}, os.WriteFile(filepath.Join(dir, in.Name), []byte(in.Text), 0o644)
}

func take(ctx context.Context, in file) (text, error) {
	dir, err := sdk.FromContext(ctx).Mount(in.Place)
	if err != nil {
		return text{}, sdk.Errorf("not_granted", "%w", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, in.Name))
	return text{string(data)}, err
}

func lookup(ctx context.Context, in text) (list, error) {
	found, err := net.DefaultResolver.LookupHost(ctx, in.Text)
	return list{found}, err
}

// dial says "refused", "reset" or what else there was: a connection that breaks
// before it says anything was taken by somebody.
func dial(ctx context.Context, in text) (text, error) {
	c, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", in.Text)
	if err != nil {
		return text{err.Error()}, nil
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * patience)); err != nil {
		return text{}, err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return text{err.Error()}, nil
	}
	return text{"it speaks"}, nil
}

func relay(ctx context.Context, in call) (text, error) {
	out, err := sdk.FromContext(ctx).Call(ctx, in.Kind, in.Input)
	return text{string(out)}, err
}

func loop(ctx context.Context, in struct{}) (text, error) {
	out, err := sdk.FromContext(ctx).Call(ctx, "wanderer.loop", in)
	return text{string(out)}, err
}

// answer says what it was asked, and on request what nobody should be served.
func answer(_ context.Context, r sdk.IngressRequest) (sdk.IngressResponse, error) {
	switch r.Path {
	case "hooks/page":
		return sdk.IngressResponse{Body: []byte("<script>alert(1)</script>")}, nil
	case "hooks/elsewhere":
		return sdk.IngressResponse{Status: http.StatusFound}, nil
	case "hooks/nonsense":
		return sdk.IngressResponse{JSON: true, Body: []byte("{")}, nil
	case "hooks/fail":
		return sdk.IngressResponse{}, errors.New("a secret")
	}
	body := fmt.Sprintf("%q", strings.Join([]string{r.Method, r.Path, r.Query, strings.Join(r.Header["X-Some"], ","), strings.ToUpper(string(r.Body))}, " "))
	return sdk.IngressResponse{Status: http.StatusAccepted, JSON: true, Body: []byte(body)}, nil
}

// escape tries what a grant is not needed for, if there is any such way.
func escape(ctx context.Context, in list) (list, error) {
	out := list{List: []string{}}
	for _, address := range in.List {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address)
		if err == nil {
			out.List = append(out.List, "tcp to "+address)
			_ = c.Close()
		}
		if c, err := net.Dial("udp", address); err == nil {
			if _, err := c.Write([]byte("x")); err == nil && !isLoopback(address) {
				out.List = append(out.List, "udp to "+address)
			}
			_ = c.Close()
		}
	}
	out.List = append(out.List, interfaces()...)
	out.List = append(out.List, rawSockets()...)
	out.List = append(out.List, sockets("/")...)
	return out, nil
}

func isLoopback(address string) bool {
	to, err := netip.ParseAddrPort(address)
	return err == nil && to.Addr().IsLoopback()
}

func interfaces() (out []string) {
	all, _ := net.Interfaces()
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			out = append(out, "interface "+i.Name)
		}
	}
	return out
}

func rawSockets() (out []string) {
	for name, s := range map[string][3]int{
		"raw":    {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		"packet": {unix.AF_PACKET, unix.SOCK_RAW, 0},
		"vsock":  {unix.AF_VSOCK, unix.SOCK_STREAM, 0},
	} {
		fd, err := unix.Socket(s[0], s[1], s[2])
		if err == nil {
			out = append(out, name+" socket")
			_ = unix.Close(fd)
		}
	}
	return out
}

// sockets are those below a folder that can be connected to, but for its own.
func sockets(dir string) (out []string) {
	_ = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == "/proc" || path == "/sys" {
			return filepath.SkipDir
		}
		if e.Type()&os.ModeSocket == 0 || strings.HasPrefix(path, "/worker/") {
			return nil
		}
		if c, err := net.Dial("unix", path); err == nil {
			out = append(out, fmt.Sprintf("socket %s", path))
			_ = c.Close()
		}
		return nil
	})
	return out
}
