// Package capability holds the words with which a worker type asks for what lies
// beyond a worker's own folder, and in which a host grants it at forging:
//
//	egress:HOST:PORT   TCP connections to that name or address, through the host
//	call:TYPE          tasks of workers of that type, through the host
//	ingress:PATH       HTTP requests under /in/PATH on the worker's port
//	mount:/mnt/NAME    a folder of the host's machine, at that place in its container
//
// What is granted is what was asked for, word for word, but a mount: there the
// grant adds which folder it is (Mount).
//
// Every capability has one spelling, which Parse reads and String writes; what it
// does not know it refuses. The package is data and pure functions, safe for
// concurrent use.
package capability

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Kind is the first word of a capability.
type Kind string

// The kinds that there are.
const (
	Egress Kind = "egress" // to connect to one host and port
	Call   Kind = "call"   // to ask workers of one type for their tasks

	Ingress Kind = "ingress" // to be asked by HTTP
	Mount   Kind = "mount"   // to be shown a folder of the host's machine
)

// The bounds of what one worker may ask for or be granted.
const (
	Max     = 32  // capabilities
	MaxText = 256 // bytes of one
)

// Capability is one thing that a worker may do.
type Capability struct {
	Kind Kind
	// Host and Port are those of Egress. Host is a DNS name in lower case without
	// a dot at its end, or an IP address as netip.Addr writes it.
	Host string
	Port uint16
	// Name is the type that Call may ask, the path of Ingress: names of lower-case
	// letters, digits, '_', '-' and '.' with a slash between them; or the place of
	// Mount, which is PlaceDir and one such name.
	Name string
	// Folder is what a Mount that is granted shows; zero in one that is asked for.
	Folder Folder
}

// ParseAsked is Parse for what a type asks for: it does not say which folder of
// a host a Mount shows.
func ParseAsked(text string) (Capability, error) {
	c, err := Parse(text)
	if err == nil && c != c.Asked() {
		err = fmt.Errorf("capability %.80q: %w", text, errMountForm)
	}
	if err != nil {
		return Capability{}, err
	}
	return c, nil
}

// Parse reads a capability in its one spelling, as it is asked for or as it is
// granted.
func Parse(text string) (Capability, error) {
	if len(text) > MaxText {
		return Capability{}, fmt.Errorf("capability of %d bytes, more than %d", len(text), MaxText)
	}
	kind, rest, _ := strings.Cut(text, ":")
	c, err := Capability{}, error(nil)
	switch Kind(kind) {
	case Egress:
		c, err = parseEgress(rest)
	case Call:
		c = Capability{Kind: Call, Name: rest}
		if !typeForm().MatchString(rest) {
			err = errors.New("write it as call:TYPE")
		}
	case Mount:
		c, err = parseMount(rest)
	case Ingress:
		c = Capability{Kind: Ingress, Name: rest}
		if len(rest) > maxPath || !pathForm().MatchString(rest) {
			err = errors.New("write it as ingress:PATH, as in ingress:hooks/incoming")
		}
	default:
		return Capability{}, fmt.Errorf("capability %q is of no known kind: use egress:HOST:PORT, call:TYPE, ingress:PATH or mount:/mnt/NAME", text)
	}
	if err != nil {
		return Capability{}, fmt.Errorf("capability %q: %w", text, err)
	}
	if c.String() != text {
		return Capability{}, fmt.Errorf("capability %q: write it as %s", text, c)
	}
	return c, nil
}

// String is the capability in its one spelling.
func (c Capability) String() string {
	if c.Kind != Egress {
		return string(c.Kind) + ":" + c.Name + c.Folder.suffix()
	}
	return string(c.Kind) + ":" + c.HostPort()
}

// HostPort is the host and port of an Egress, as net.JoinHostPort writes them.
func (c Capability) HostPort() string {
	port := strconv.Itoa(int(c.Port))
	if strings.Contains(c.Host, ":") {
		return "[" + c.Host + "]:" + port
	}
	return c.Host + ":" + port
}

// Literal is the address that an Egress names, if it names one and not a name.
func (c Capability) Literal() (netip.Addr, bool) {
	if c.Kind != Egress {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(c.Host)
	return addr, err == nil
}

// form is compiled when it is first needed: most workers have no capabilities.
func form(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

var (
	pathForm  = form(`^[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*)*$`)
	typeForm  = form(`^[a-z][a-z0-9_]{0,31}$`)
	labelForm = form(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)
	// numberForm is a last label that some would read as a part of an address.
	numberForm = form(`^([0-9]+|0x[0-9a-f]*)$`)
)

const (
	maxName = 253
	maxPath = 128
)

func parseEgress(rest string) (Capability, error) {
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return Capability{}, errors.New("write it as egress:HOST:PORT")
	}
	host := rest[:i]
	port, err := strconv.ParseUint(rest[i+1:], 10, 16)
	if err != nil || port == 0 {
		return Capability{}, errors.New("the port is not from 1 to 65535")
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok || !strings.Contains(host, ":") {
			return Capability{}, errors.New("an IPv6 address is written as in [2001:db8::1]")
		}
	} else if strings.Contains(host, ":") {
		return Capability{}, errors.New("an IPv6 address is written as in [2001:db8::1]")
	}
	c := Capability{Kind: Egress, Host: host, Port: uint16(port)}
	if addr, ok := c.Literal(); ok {
		c.Host = addr.String()
		return c, checkAddress(addr)
	}
	return c, checkName(host)
}

// checkAddress refuses what is no address of one machine. An IPv4 address in an
// IPv6 coat would be a second spelling of the same.
func checkAddress(addr netip.Addr) error {
	switch {
	case addr.Zone() != "":
		return errors.New("an address with a zone is not the same everywhere")
	case addr.Is4In6():
		return fmt.Errorf("write the address as %s", addr.Unmap())
	case addr.IsUnspecified(), addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errors.New("it is no address of one machine")
	}
	return nil
}

func checkName(name string) error {
	labels := strings.Split(name, ".")
	if len(name) > maxName || !all(labels, labelForm().MatchString) {
		return errors.New("the host is neither an address nor a DNS name in lower case")
	}
	if labels[len(labels)-1] == "localhost" {
		return errors.New("a worker has a localhost of its own: for that of the host's machine write 127.0.0.1")
	}
	if numberForm().MatchString(labels[len(labels)-1]) {
		return errors.New("the host is neither an address nor a name: some would read it as an address")
	}
	return nil
}

func all(list []string, good func(string) bool) bool {
	return !slices.ContainsFunc(list, func(s string) bool { return !good(s) })
}

// Set reads many capabilities: sorted, each once. It refuses more than Max.
func Set(texts []string) ([]Capability, error) {
	set, err := sortedSet(texts)
	if err != nil || len(set) == 0 {
		return nil, err
	}
	caps := make([]Capability, len(set))
	for i, text := range set {
		if caps[i], err = Parse(text); err != nil {
			return nil, err
		}
		if i > 0 && caps[i].Kind == Mount && caps[i].Asked() == caps[i-1].Asked() {
			return nil, fmt.Errorf("two folders at %s", caps[i].Name)
		}
	}
	return caps, nil
}

func sortedSet(texts []string) ([]string, error) {
	set := slices.Compact(slices.Sorted(slices.Values(texts)))
	if len(set) > Max {
		return nil, fmt.Errorf("%d capabilities, more than %d", len(set), Max)
	}
	return set, nil
}

// Normal is Set, as texts.
func Normal(texts []string) ([]string, error) {
	if _, err := Set(texts); err != nil {
		return nil, err
	}
	return sortedSet(texts)
}
