package envelope

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"strings"
)

const clientPrefix = "key:"

// ClientID is how a client is named in an envelope: "key:" and its public key
// in unpadded base64url.
func ClientID(public ed25519.PublicKey) string {
	return clientPrefix + base64.RawURLEncoding.EncodeToString(public)
}

// ParseClientID is the key that a client id names. Each key has one id only.
func ParseClientID(id string) (ed25519.PublicKey, error) {
	encoded, ok := strings.CutPrefix(id, clientPrefix)
	public, err := base64.RawURLEncoding.DecodeString(encoded)
	// The decoder overlooks line breaks and stray bits, hence the way back.
	if !ok || err != nil || len(public) != ed25519.PublicKeySize || ClientID(public) != id {
		return nil, errors.New("client id is not key:<base64url of 32 bytes>")
	}
	return public, nil
}

// IsSerial says whether id has the form of a worker's serial.
func IsSerial(id string) bool { return serialForm().MatchString(id) }

// isParty says whether id names one worker or one client.
func isParty(id string) bool {
	if IsSerial(id) {
		return true
	}
	_, err := ParseClientID(id)
	return err == nil
}
