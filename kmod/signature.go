package kmod

import (
	"bytes"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"
)

// A Signature is what is appended to a signed module: in front of a mark that
// ends the file, a descriptor of 12 bytes; before it the signature, in PKCS#7
// since Linux 4.3. Whether it is right, only who has the key can say.
type Signature struct {
	IDType string // "PKCS#7"; of kernels before 4.3 "X509" or "PGP"
	// Signer is the common name of who issued the signer's certificate. It is
	// empty if the signature names a key instead; modinfo shows nothing of such
	// a signature.
	Signer string
	// KeyID is the serial number of the certificate, or the identifier of the
	// key.
	KeyID []byte
	// HashAlgorithm is as OpenSSL calls it, "sha256"; an object identifier in
	// digits if it is none of those that kernels use.
	HashAlgorithm string
	// Data is the signature proper, without what stands around it.
	Data []byte
}

// Fields returns the signature as modinfo prints it behind the Info.
func (s *Signature) Fields() []Field {
	return []Field{
		{"sig_id", s.IDType},
		{"signer", s.Signer},
		{"sig_key", colons(s.KeyID)},
		{"sig_hashalgo", s.HashAlgorithm},
		{"signature", colons(s.Data)},
	}
}

// colons writes bytes as modinfo does: in upper-case hex digits with colons, 20
// on a line.
func colons(b []byte) string {
	var s strings.Builder
	for i, c := range b {
		if i > 0 {
			s.WriteByte(':')
			if i%20 == 0 {
				s.WriteString("\n\t\t")
			}
		}
		fmt.Fprintf(&s, "%02X", c)
	}
	return s.String()
}

const (
	signatureMark = "~Module signature appended~\n"
	descriptorLen = 12
)

// The values of the descriptor's fields, from module_signature.h of Linux 3.7.
var (
	signatureIDTypes = [...]string{"PGP", "X509", "PKCS#7"}
	signatureHashes  = [...]string{"md4", "md5", "sha1", "rmd160", "sha256", "sha384", "sha512", "sha224", "sm3"}
)

// readSignature reads the signature, if there is one. One that cannot be read
// is a warning: the module is whole without it.
func (e *elf) readSignature(m *Module) error {
	n := min(e.size, int64(descriptorLen+len(signatureMark)))
	tail, err := e.at(e.size-n, n)
	if err != nil {
		return err
	}
	descriptor, ok := bytes.CutSuffix(tail, []byte(signatureMark))
	if !ok {
		return nil
	}
	if len(descriptor) < descriptorLen {
		m.Warnings = append(m.Warnings, "its signature is damaged: there is no descriptor")
		return nil
	}
	// Fields: algorithm, hash, type, lengths of the signer's name and of the
	// key's, three bytes of padding, length of the signature.
	length := int64(binary.BigEndian.Uint32(descriptor[8:]))
	signer, key := int64(descriptor[3]), int64(descriptor[4])
	whole := signer + key + length
	if length == 0 || length > math.MaxInt32 || whole > e.size-n {
		m.Warnings = append(m.Warnings, fmt.Sprintf("its signature is damaged: it would have %d bytes", whole))
		return nil
	}
	b, err := e.at(e.size-n-whole, whole)
	if err != nil {
		return err
	}
	m.Signature, err = parseSignature(descriptor, b[:signer], b[signer:][:key], b[signer+key:])
	if err != nil {
		m.Warnings = append(m.Warnings, fmt.Sprintf("its signature is damaged: %v", err))
	}
	return nil
}

func parseSignature(descriptor, signer, key, data []byte) (*Signature, error) {
	hash, kind := int(descriptor[1]), int(descriptor[2])
	if hash >= len(signatureHashes) || kind >= len(signatureIDTypes) {
		return nil, fmt.Errorf("unknown hash %d or type %d", hash, kind)
	}
	if s := signatureIDTypes[kind]; s != "PKCS#7" {
		return &Signature{s, string(signer), bytes.Clone(key), signatureHashes[hash], bytes.Clone(data)}, nil
	}
	return parsePKCS7(data)
}

var errPKCS7 = errors.New("it is not PKCS#7 in DER")

// parsePKCS7 reads the first signer's information from a SignedData, RFC 5652,
// section 5:
//
//	ContentInfo: OID, [0] SignedData: version, {algorithms}, content,
//	  [0] certificates?, [1] revocations?, {SignerInfo: version,
//	    issuer and serial number | [0] key, hash, [0] attributes?, algorithm, signature}
func parsePKCS7(data []byte) (*Signature, error) {
	in := cryptobyte.String(data)
	var info, outer, signed, signers, si cryptobyte.String
	ok := in.ReadASN1(&info, der.SEQUENCE) &&
		info.SkipASN1(der.OBJECT_IDENTIFIER) &&
		info.ReadASN1(&outer, context(0)) &&
		outer.ReadASN1(&signed, der.SEQUENCE) &&
		signed.SkipASN1(der.INTEGER) &&
		signed.SkipASN1(der.SET) &&
		signed.SkipASN1(der.SEQUENCE) &&
		signed.SkipOptionalASN1(context(0)) &&
		signed.SkipOptionalASN1(context(1)) &&
		signed.ReadASN1(&signers, der.SET) &&
		signers.ReadASN1(&si, der.SEQUENCE) &&
		si.SkipASN1(der.INTEGER)
	if !ok {
		return nil, errPKCS7
	}
	s := &Signature{IDType: "PKCS#7"}
	if !s.readSignerID(&si) {
		return nil, errPKCS7
	}
	var hash, signature cryptobyte.String
	var oid asn1.ObjectIdentifier
	ok = si.ReadASN1(&hash, der.SEQUENCE) &&
		hash.ReadASN1ObjectIdentifier(&oid) &&
		si.SkipOptionalASN1(context(0)) &&
		si.SkipASN1(der.SEQUENCE) &&
		si.ReadASN1(&signature, der.OCTET_STRING)
	if !ok {
		return nil, errPKCS7
	}
	s.HashAlgorithm, s.Data = hashName(oid), bytes.Clone(signature)
	return s, nil
}

// context returns the tag of a constructed value that an [n] marks.
func context(n uint8) der.Tag { return der.Tag(n).ContextSpecific().Constructed() }

// readSignerID reads who signed: an issuer and a serial number, or the name of
// a key.
func (s *Signature) readSignerID(si *cryptobyte.String) bool {
	var id, issuer, serial cryptobyte.String
	if keyTag := der.Tag(0).ContextSpecific(); si.PeekASN1Tag(keyTag) {
		if !si.ReadASN1(&id, keyTag) {
			return false
		}
		s.KeyID = bytes.Clone(id)
		return true
	}
	ok := si.ReadASN1(&id, der.SEQUENCE) &&
		id.ReadASN1(&issuer, der.SEQUENCE) &&
		id.ReadASN1(&serial, der.INTEGER)
	if !ok {
		return false
	}
	s.KeyID = bytes.Clone(bytes.TrimLeft(serial, "\x00"))
	s.Signer, ok = commonName(issuer)
	return ok
}

// commonName returns the common name in an X.509 name; if it has none, its last
// part, as modinfo does.
func commonName(name cryptobyte.String) (string, bool) {
	common := asn1.ObjectIdentifier{2, 5, 4, 3}
	var last string
	for !name.Empty() {
		var set cryptobyte.String
		if !name.ReadASN1(&set, der.SET) {
			return "", false
		}
		for !set.Empty() {
			var part, value cryptobyte.String
			var oid asn1.ObjectIdentifier
			if !set.ReadASN1(&part, der.SEQUENCE) || !part.ReadASN1ObjectIdentifier(&oid) || !part.ReadAnyASN1(&value, nil) {
				return "", false
			}
			last = string(value)
			if oid.Equal(common) {
				return last, true
			}
		}
	}
	return last, true
}

// hashName returns OpenSSL's name of a hash algorithm.
func hashName(oid asn1.ObjectIdentifier) string {
	switch s := oid.String(); s {
	case "1.3.14.3.2.26":
		return "sha1"
	case "2.16.840.1.101.3.4.2.1":
		return "sha256"
	case "2.16.840.1.101.3.4.2.2":
		return "sha384"
	case "2.16.840.1.101.3.4.2.3":
		return "sha512"
	case "2.16.840.1.101.3.4.2.4":
		return "sha224"
	case "2.16.840.1.101.3.4.2.8":
		return "sha3-256"
	case "2.16.840.1.101.3.4.2.9":
		return "sha3-384"
	case "2.16.840.1.101.3.4.2.10":
		return "sha3-512"
	case "1.2.840.113549.2.5":
		return "md5"
	case "1.2.156.10197.1.401":
		return "sm3"
	default:
		return s
	}
}
