package capability

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
)

// Alias is where a worker's container takes connections to what an Egress names.
type Alias struct {
	Capability Capability
	Listen     netip.AddrPort
}

// Aliases are the places for all egress among granted, in its order, which has
// to be that of Set: host and worker work them out each for itself. Every name
// has an address of 127.0.1.0/24, the same for all of its ports. A literal
// address has a place only if it is a loopback one, that address itself: no
// other can be taken in a container, and is reached by the sdk's Dial alone.
func Aliases(granted []Capability) []Alias {
	var aliases []Alias
	at := addresses(granted)
	for _, c := range granted {
		if c.Kind != Egress {
			continue
		}
		addr, ok := c.Literal()
		if ok && !addr.IsLoopback() {
			continue
		}
		if !ok {
			addr = at[c.Host]
		}
		aliases = append(aliases, Alias{c, netip.AddrPortFrom(addr, c.Port)})
	}
	return aliases
}

// addresses gives each name an address that no literal grant names.
func addresses(granted []Capability) map[string]netip.Addr {
	taken := func(addr netip.Addr) bool {
		return slices.ContainsFunc(granted, func(c Capability) bool { return c.Host == addr.String() })
	}
	at := map[string]netip.Addr{}
	next := netip.AddrFrom4([4]byte{127, 0, 1, 0})
	for _, c := range granted {
		if _, literal := c.Literal(); literal || c.Kind != Egress || at[c.Host].IsValid() {
			continue
		}
		for next = next.Next(); taken(next); {
			next = next.Next()
		}
		at[c.Host] = next
	}
	return at
}

// Hosts is the /etc/hosts of a worker's container: the names of its own machine,
// and those of Aliases.
func Hosts(granted []Capability) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	seen := map[string]bool{}
	for _, a := range Aliases(granted) {
		if _, literal := a.Capability.Literal(); !literal && !seen[a.Capability.Host] {
			seen[a.Capability.Host] = true
			fmt.Fprintf(&b, "%s %s\n", a.Listen.Addr(), a.Capability.Host)
		}
	}
	return b.Bytes()
}

// NameService is the /etc/nsswitch.conf beside it: names are looked up in Hosts,
// and nowhere else.
const NameService = "hosts: files\n"
