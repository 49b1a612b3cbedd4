// A certificate for 127.0.0.1 and the authority that vouches for it, made anew by every run.
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// certify writes ca.pem, server.pem and server.key into a directory.
func certify(directory string) (tls.Certificate, error) {
	var none tls.Certificate
	caKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return none, err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return none, err
	}
	ca := template(1, "simulated authority")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	leaf := template(2, "127.0.0.1")
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	caDer, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return none, err
	}
	leafDer, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return none, err
	}
	keyDer, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return none, err
	}
	texts := map[string][]byte{
		"ca.pem":     text("CERTIFICATE", caDer),
		"server.pem": text("CERTIFICATE", leafDer),
		"server.key": text("PRIVATE KEY", keyDer),
	}
	for name, text := range texts {
		if err := os.WriteFile(filepath.Join(directory, name), text, 0o600); err != nil {
			return none, err
		}
	}
	return tls.X509KeyPair(texts["server.pem"], texts["server.key"])
}

func template(serial int64, name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
	}
}

func text(kind string, der []byte) []byte {
	var out bytes.Buffer
	_ = pem.Encode(&out, &pem.Block{Type: kind, Bytes: der})
	return out.Bytes()
}
