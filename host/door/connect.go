package door

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/dals-host/dals-host/host/worker"
	"github.com/dals-host/dals-host/sdk/capability"
)

const (
	maxAddresses = 8 // of a name that are tried
	eachAddress  = 4 * time.Second
)

// connect connects to what was granted and tells which address that is.
func (o *door) connect(ctx context.Context, granted capability.Capability) (net.Conn, netip.AddrPort, error) {
	addrs, err := o.addresses(ctx, granted)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	var failed error
	for _, addr := range addrs {
		// What is dialled is an address, not the name: nobody is asked again.
		to := netip.AddrPortFrom(addr, granted.Port)
		one, cancel := context.WithTimeout(ctx, eachAddress)
		c, err := o.dial(one, "tcp", to.String())
		cancel()
		if err == nil {
			return c, to, nil
		}
		failed = errors.Join(failed, err)
	}
	return nil, netip.AddrPort{}, worker.Refuse(EgressUnreachable, "%s: %s", granted.HostPort(), plain(failed))
}

// addresses are those that may be dialled for what was granted.
func (d *Doors) addresses(ctx context.Context, granted capability.Capability) ([]netip.Addr, error) {
	if addr, ok := granted.Literal(); ok {
		return []netip.Addr{addr}, nil
	}
	// With a dot at its end no search domain of the host's machine is tried.
	found, err := d.Resolver.LookupNetIP(ctx, "ip", granted.Host+".")
	if err != nil {
		return nil, worker.Refuse(EgressUnresolved, "%s: %s", granted.Host, plain(err))
	}
	var may []netip.Addr
	for i := range found {
		found[i] = found[i].Unmap() // an IPv4 address in an IPv6 coat is that address
		if isPublic(found[i]) && !slices.Contains(may, found[i]) {
			may = append(may, found[i])
		}
	}
	if len(may) == 0 {
		return nil, worker.Refuse(EgressAddressRefused, "%s is at %s, which is not a public address: who wants that grants the address itself",
			granted.Host, addressWords(found))
	}
	return may[:min(len(may), maxAddresses)], nil
}

// plain is an error on one line.
func plain(err error) string { return strings.ReplaceAll(fmt.Sprint(err), "\n", "; ") }

func addressWords(addrs []netip.Addr) string {
	words := make([]string, 0, len(addrs))
	for _, addr := range addrs[:min(len(addrs), maxAddresses)] {
		words = append(words, addr.String())
	}
	return strings.Join(words, ", ")
}

// isPublic says whether an address is one of the internet: what the registries of
// IANA keep for private networks, the machine itself, links, groups, documents,
// tests, or for wrapping one address into another is not.
func isPublic(addr netip.Addr) bool {
	if addr.Zone() != "" || !addr.IsValid() {
		return false
	}
	if addr.Is4() {
		return !within(addr, special4)
	}
	return global6.Contains(addr) && !within(addr, special6)
}

func within(addr netip.Addr, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

var special4 = prefixes(
	"0.0.0.0/8",       // this network: the kernel takes it for the machine itself
	"10.0.0.0/8",      // private
	"100.64.0.0/10",   // behind a carrier's translation
	"127.0.0.0/8",     // loopback
	"169.254.0.0/16",  // link-local, where clouds keep their metadata
	"172.16.0.0/12",   // private
	"192.0.0.0/24",    // protocol assignments
	"192.0.2.0/24",    // documents
	"192.31.196.0/24", // AS112
	"192.52.193.0/24", // AMT
	"192.88.99.0/24",  // 6to4 relays
	"192.168.0.0/16",  // private
	"192.175.48.0/24", // AS112
	"198.18.0.0/15",   // benchmarks
	"198.51.100.0/24", // documents
	"203.0.113.0/24",  // documents
	"224.0.0.0/4",     // groups
	"240.0.0.0/4",     // reserved, and broadcast
)

// global6 is all that is given out of IPv6: not ::1, IPv4 addresses in a coat,
// 64:ff9b::/96 and 64:ff9b:1::/48 (NAT64), 100::/64, fc00::/7, fe80::/10, fec0::/10
// and ff00::/8.
var global6 = netip.MustParsePrefix("2000::/3")

var special6 = prefixes(
	"2001::/23",         // protocol assignments: Teredo, ORCHID, benchmarks
	"2001:db8::/32",     // documents
	"2002::/16",         // 6to4: any IPv4 address
	"2620:4f:8000::/48", // AS112
	"3fff::/20",         // documents
)

func prefixes(texts ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		all[i] = netip.MustParsePrefix(text)
	}
	return all
}
