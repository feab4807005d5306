package identity_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dals-host/dals-host/sdk/identity"
)

const (
	hostA  = "0123456789abcdef"
	hostB  = "fedcba9876543210"
	goat   = "DMN-GT-1-deadbeef-00001"
	ledger = "DMN-LG-1-deadbeef-00002"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testKey(b byte) (ed25519.PublicKey, ed25519.PrivateKey) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
	return key.Public().(ed25519.PublicKey), key
}

func newAuthority(t *testing.T, host string, seed byte) *identity.Authority {
	t.Helper()
	_, key := testKey(seed)
	a, err := identity.NewAuthority(host, key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// credentials are what the forge puts into a worker's certs folder.
type credentials struct{ cert, key, ca []byte }

func issue(t *testing.T, a *identity.Authority, serial string, seed byte, now time.Time) credentials {
	t.Helper()
	public, key := testKey(seed)
	cert, err := a.IssueWorker(serial, public, now)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := identity.MarshalKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return credentials{cert: cert, key: keyPEM, ca: a.CertPEM()}
}

func (c credentials) server(t *testing.T, host string) *tls.Config {
	t.Helper()
	config, err := identity.WorkerTLS(c.cert, c.key, c.ca, host)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// client is what the worker could dial with, if it tried to act as a host.
func (c credentials) client(t *testing.T) *tls.Config {
	t.Helper()
	pair, err := tls.X509KeyPair(c.cert, c.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
}

func hostTLS(t *testing.T, a *identity.Authority, serial string) *tls.Config {
	t.Helper()
	config, err := a.HostTLS(serial)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// talk makes one connection over a unix socket and has each end send a byte:
// over TLS 1.3 a client learns only by reading that the server turned it away.
func talk(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "worker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		served <- swap(tls.Server(conn, server))
	}()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	clientErr = swap(tls.Client(conn, client))
	return <-served, clientErr
}

func swap(conn *tls.Conn) error {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if err := conn.Handshake(); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{42}); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

func TestHostAndWorkerMeet(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, hostA, 1)
	worker := issue(t, a, goat, 2, time.Now())
	serverErr, clientErr := talk(t, worker.server(t, hostA), hostTLS(t, a, goat))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("worker: %v; host: %v", serverErr, clientErr)
	}
	// The next host on the same data folder has the same authority.
	next := newAuthority(t, hostA, 1)
	serverErr, clientErr = talk(t, worker.server(t, hostA), hostTLS(t, next, goat))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("worker: %v; the next host: %v", serverErr, clientErr)
	}
}

func TestStrangersAreTurnedAway(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, hostA, 1)
	impostor := newAuthority(t, hostA, 9) // the same id, another key
	neighbour := newAuthority(t, hostB, 3)
	now := time.Now()
	worker := issue(t, a, goat, 2, now)
	stolen := worker // another worker's certificate, but only its own key
	stolen.cert = issue(t, impostor, goat, 2, now).cert

	for name, c := range map[string]struct {
		server, client *tls.Config
		by             string // the end that must say no
		reason         string
	}{
		"another worker": {worker.server(t, hostA), hostTLS(t, a, ledger), "host", "unexpected ID"},
		"a worker of another CA": {
			issue(t, impostor, goat, 2, now).server(t, hostA), hostTLS(t, a, goat), "host", "unknown authority",
		},
		"a worker of another host": {
			issue(t, neighbour, goat, 2, now).server(t, hostB), hostTLS(t, a, goat), "host", "no X.509 bundle",
		},
		"a worker with a forged certificate": {stolen.server(t, hostA), hostTLS(t, a, goat), "host", "unknown authority"},
		"a host of another CA":               {worker.server(t, hostA), blind(hostTLS(t, impostor, goat)), "worker", "unknown authority"},
		"another host": {
			worker.server(t, hostA), blind(hostTLS(t, neighbour, goat)), "worker", "no X.509 bundle",
		},
		"a worker as a host":          {worker.server(t, hostA), issue(t, a, ledger, 4, now).client(t), "worker", "unexpected ID"},
		"the worker itself as a host": {worker.server(t, hostA), worker.client(t), "worker", "unexpected ID"},
		"no certificate": {
			worker.server(t, hostA), &tls.Config{InsecureSkipVerify: true}, "worker", "certificate",
		},
		"TLS 1.2": {worker.server(t, hostA), old(hostTLS(t, a, goat)), "worker", "unsupported versions"},
	} {
		serverErr, clientErr := talk(t, c.server, c.client)
		if serverErr == nil || clientErr == nil {
			t.Errorf("%s: let in; worker: %v; host: %v", name, serverErr, clientErr)
			continue
		}
		said := map[string]error{"worker": serverErr, "host": clientErr}[c.by]
		if !strings.Contains(said.Error(), c.reason) {
			t.Errorf("%s: %s says %v, want %q", name, c.by, said, c.reason)
		}
	}
}

// blind is an attacker: it takes any worker.
func blind(config *tls.Config) *tls.Config {
	config.VerifyPeerCertificate = nil
	return config
}

func old(config *tls.Config) *tls.Config {
	config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	return config
}

func TestSessionsAreNotResumed(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, hostA, 1)
	server := issue(t, a, goat, 2, time.Now()).server(t, hostA)
	client := hostTLS(t, a, goat)
	client.ClientSessionCache, client.ServerName = tls.NewLRUClientSessionCache(4), "worker"
	for range 2 {
		seen := 0
		verify := client.VerifyPeerCertificate
		counted := client.Clone()
		counted.VerifyPeerCertificate = func(raw [][]byte, chains [][]*x509.Certificate) error {
			seen++
			return verify(raw, chains)
		}
		if serverErr, clientErr := talk(t, server, counted); serverErr != nil || clientErr != nil || seen != 1 {
			t.Fatalf("worker: %v; host: %v; checked %d times", serverErr, clientErr, seen)
		}
	}
}

func TestClockSkew(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, hostA, 1)
	for name, c := range map[string]struct {
		forgedAt time.Time
		meets    bool
	}{
		"forged by a clock 23 hours ahead": {time.Now().Add(23 * time.Hour), true},
		"forged by a clock 25 hours ahead": {time.Now().Add(25 * time.Hour), false},
		"forged 49 years ago":              {time.Now().AddDate(-49, 0, 0), true},
	} {
		serverErr, clientErr := talk(t, issue(t, a, goat, 2, c.forgedAt).server(t, hostA), hostTLS(t, a, goat))
		if meets := serverErr == nil && clientErr == nil; meets != c.meets {
			t.Errorf("%s: worker: %v; host: %v", name, serverErr, clientErr)
		}
	}
}

func TestCertificates(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, hostA, 1)
	ca := parse(t, a.CertPEM())
	if !bytes.Equal(ca.Raw, parse(t, newAuthority(t, hostA, 1).CertPEM()).Raw) {
		t.Error("the same key makes two CA certificates")
	}
	if !ca.IsCA || !ca.MaxPathLenZero || ca.URIs[0].String() != "spiffe://"+hostA {
		t.Errorf("CA certificate: CA %v, path %v, %v", ca.IsCA, ca.MaxPathLenZero, ca.URIs)
	}
	now := time.Now()
	leaf := parse(t, issue(t, a, goat, 2, now).cert)
	public, _ := testKey(2)
	if leaf.IsCA || len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://"+hostA+"/worker/"+goat {
		t.Errorf("worker certificate: CA %v, %v", leaf.IsCA, leaf.URIs)
	}
	if !public.Equal(leaf.PublicKey) || leaf.CheckSignatureFrom(ca) != nil {
		t.Error("the worker certificate is not for the worker's key by the CA")
	}
	if d := now.Sub(leaf.NotBefore); d < 24*time.Hour || d > 24*time.Hour+time.Second {
		t.Errorf("valid from %s before now", d)
	}
	if leaf.NotAfter.Before(now.AddDate(49, 11, 0)) {
		t.Errorf("valid until %s", leaf.NotAfter)
	}
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(certPEM)
	if block == nil || len(rest) > 0 {
		t.Fatal("not one PEM block")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestRefusedInput(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, hostA, 1)
	public, key := testKey(2)
	for _, host := range []string{"", "A", "a b", "a/b", "spiffe://" + hostA, "spiffe://" + hostA + "/host"} {
		if _, err := identity.NewAuthority(host, key); err == nil {
			t.Errorf("host id %q has an authority", host)
		}
	}
	if _, err := identity.NewAuthority(hostA, nil); err == nil {
		t.Error("no key has an authority")
	}
	for _, serial := range []string{"", "..", "a/b", "a b", "é"} {
		if _, err := a.IssueWorker(serial, public, time.Now()); err == nil {
			t.Errorf("serial %q has a certificate", serial)
		}
		if _, err := a.HostTLS(serial); err == nil {
			t.Errorf("serial %q can be dialled", serial)
		}
	}
	if _, err := a.IssueWorker(goat, public[:31], time.Now()); err == nil {
		t.Error("a short key has a certificate")
	}
	good := issue(t, a, goat, 2, time.Now())
	other := issue(t, a, goat, 3, time.Now())
	for name, c := range map[string]struct {
		credentials
		host string
	}{
		"another's key":   {credentials{good.cert, other.key, good.ca}, hostA},
		"no certificate":  {credentials{nil, good.key, good.ca}, hostA},
		"no key":          {credentials{good.cert, nil, good.ca}, hostA},
		"no CA":           {credentials{good.cert, good.key, nil}, hostA},
		"noise as a CA":   {credentials{good.cert, good.key, []byte("noise")}, hostA},
		"the CA as its":   {credentials{good.ca, good.key, good.ca}, hostA},
		"another host id": {good, hostB},
		"no host id":      {good, ""},
	} {
		if _, err := identity.WorkerTLS(c.cert, c.key, c.ca, c.host); err == nil {
			t.Errorf("%s: WorkerTLS made a config", name)
		}
	}
}
