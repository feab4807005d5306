package identity

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// WorkerTLS is the server's side of a worker: it presents the worker's own
// certificate and accepts the host hostID alone, under that host's CA.
// Every connection is a whole handshake; sessions are not resumed.
func WorkerTLS(certPEM, keyPEM, caPEM []byte, hostID string) (*tls.Config, error) {
	domain, err := trustDomain(hostID)
	if err != nil {
		return nil, fmt.Errorf("make worker tls: %w", err)
	}
	host, err := hostSPIFFE(domain)
	if err != nil {
		return nil, fmt.Errorf("make worker tls: %w", err)
	}
	bundle, err := x509bundle.Parse(domain, caPEM)
	if err != nil {
		return nil, fmt.Errorf("read ca: %w", err)
	}
	if bundle.Empty() {
		return nil, errors.New("read ca: no certificate")
	}
	svid, err := x509svid.Parse(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read worker certificate: %w", err)
	}
	if !svid.ID.MemberOf(domain) {
		return nil, fmt.Errorf("read worker certificate: %s does not belong to host %s", svid.ID, hostID)
	}
	config := tlsconfig.MTLSServerConfig(svid, bundle, tlsconfig.AuthorizeID(host))
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true // a resumed session would not be checked again
	return config, nil
}

// MarshalKey is a private key as PKCS#8 PEM, as in certs/worker.key.
func MarshalKey(key ed25519.PrivateKey) ([]byte, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("marshal key: not an Ed25519 private key")
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("marshal key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

// ParseKey reads what MarshalKey wrote, or any single Ed25519 key in PKCS#8
// PEM. Errors never quote the input.
func ParseKey(data []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != keyBlock {
		return nil, errors.New("parse key: no PEM block " + keyBlock)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse key: %w", err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("parse key: not an Ed25519 private key")
	}
	return key, nil
}

const keyBlock = "PRIVATE KEY"
