package identity

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// hostTLSInfo is the HKDF info of the key that the host presents to workers.
const hostTLSInfo = "dals host tls v1"

// Workers live long and hosts have wrong clocks: a certificate is valid from a
// day back, and nothing renews it.
const (
	backdate      = 24 * time.Hour
	lifetimeYears = 50
)

// Authority is a host's certificate authority and the host's own end of the
// worker plane. It is immutable.
type Authority struct {
	domain spiffeid.TrustDomain
	key    ed25519.PrivateKey
	cert   *x509.Certificate
	bundle *x509bundle.Bundle
	host   *x509svid.SVID
}

// NewAuthority makes the authority of the host hostID, whose id is the SPIFFE
// trust domain, from its CA key. The same id and key always give the same
// certificate.
func NewAuthority(hostID string, key ed25519.PrivateKey) (*Authority, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("make authority: not an Ed25519 private key")
	}
	domain, err := trustDomain(hostID)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	a := &Authority{domain: domain, key: key}
	template := caTemplate(domain, publicOf(key))
	if a.cert, err = signCertificate(template, template, publicOf(key), key); err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	a.bundle = x509bundle.FromX509Authorities(domain, []*x509.Certificate{a.cert})
	if a.host, err = a.hostSVID(); err != nil {
		return nil, fmt.Errorf("make host certificate: %w", err)
	}
	return a, nil
}

// CertPEM is the authority's certificate, as in certs/ca.pem.
func (a *Authority) CertPEM() []byte { return encodeCertificate(a.cert) }

// IssueWorker certifies that public belongs to the worker serial. The
// certificate is valid from a day before now.
func (a *Authority) IssueWorker(serial string, public ed25519.PublicKey, now time.Time) ([]byte, error) {
	if len(public) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("certify worker %s: not an Ed25519 public key", serial)
	}
	id, err := workerSPIFFE(a.domain, serial)
	if err != nil {
		return nil, fmt.Errorf("certify worker: %w", err)
	}
	cert, err := signCertificate(&x509.Certificate{
		Subject:     pkix.Name{CommonName: serial},
		URIs:        []*url.URL{id.URL()},
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.AddDate(lifetimeYears, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("certify worker %s: %w", serial, err)
	}
	return encodeCertificate(cert), nil
}

// HostTLS is the client's side of a connection to the worker serial and to no
// other. The caller may set NextProtos; each call makes a config of its own.
func (a *Authority) HostTLS(serial string) (*tls.Config, error) {
	id, err := workerSPIFFE(a.domain, serial)
	if err != nil {
		return nil, fmt.Errorf("make host tls: %w", err)
	}
	config := tlsconfig.MTLSClientConfig(a.host, a.bundle, tlsconfig.AuthorizeID(id))
	config.MinVersion = tls.VersionTLS13
	return config, nil
}

// hostSVID is what the host presents: a key of its own, derived from the CA's,
// and a certificate that needs no clock, as it never leaves the process.
func (a *Authority) hostSVID() (*x509svid.SVID, error) {
	seed, err := hkdf.Key(sha256.New, a.key.Seed(), nil, hostTLSInfo, ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	id, err := hostSPIFFE(a.domain)
	if err != nil {
		return nil, err
	}
	cert, err := signCertificate(&x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "dals host " + a.domain.Name()},
		URIs:         []*url.URL{id.URL()},
		NotBefore:    a.cert.NotBefore,
		NotAfter:     a.cert.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.cert, publicOf(key), a.key)
	if err != nil {
		return nil, err
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}, nil
}

// caTemplate has nothing that changes from one start to the next: any clock is
// within its time, and the key's id does not depend on the library's choice.
func caTemplate(domain spiffeid.TrustDomain, public ed25519.PublicKey) *x509.Certificate {
	keyID := sha256.Sum256(public)
	return &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "dals ca " + domain.Name()},
		SubjectKeyId:          keyID[:20],
		URIs:                  []*url.URL{domain.ID().URL()},
		NotBefore:             time.Unix(0, 0).UTC(),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280: no expiry
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
}

func signCertificate(template, parent *x509.Certificate, public ed25519.PublicKey, key ed25519.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

func encodeCertificate(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func publicOf(key ed25519.PrivateKey) ed25519.PublicKey {
	return key.Public().(ed25519.PublicKey)
}

// trustDomain takes a bare host id only, where the library also takes whole IDs.
func trustDomain(hostID string) (spiffeid.TrustDomain, error) {
	domain, err := spiffeid.TrustDomainFromString(hostID)
	if err == nil && domain.Name() != hostID {
		err = errors.New("not a trust domain")
	}
	if err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("host id %q: %w", hostID, err)
	}
	return domain, nil
}

func hostSPIFFE(domain spiffeid.TrustDomain) (spiffeid.ID, error) {
	return spiffeid.FromSegments(domain, "host")
}

func workerSPIFFE(domain spiffeid.TrustDomain, serial string) (spiffeid.ID, error) {
	id, err := spiffeid.FromSegments(domain, "worker", serial)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("serial %q: %w", serial, err)
	}
	return id, nil
}
