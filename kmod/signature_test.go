package kmod_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/internal/testenv"
	"overmount/kmod"
	"overmount/kmod/kmodtest"
)

// modinfo returns the fields that modinfo prints of a file, without its name.
// What it makes of parameters, it does not print as a field.
func modinfo(tb testing.TB, path string) []kmod.Field {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), modinfoTool(tb), "-0", path)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("modinfo %s: %v\n%s", path, err, &stderr)
	}
	var fields []kmod.Field
	for line := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		key, value, ok := strings.Cut(line, "=")
		if ok && key != "filename" && !strings.HasPrefix(line, "parm:") {
			fields = append(fields, kmod.Field{Key: key, Value: value})
		}
	}
	return fields
}

func modinfoTool(tb testing.TB) string {
	tb.Helper()
	const sbin = "/usr/sbin/modinfo" // not in everyone's PATH
	if _, err := os.Stat(sbin); err == nil {
		return sbin
	}
	return testenv.Tool(tb, "modinfo")
}

// fields returns what modinfo prints of a module.
func fields(m *kmod.Module) []kmod.Field {
	var all []kmod.Field
	for _, f := range m.Info {
		if f.Key != "parm" && f.Key != "parmtype" {
			all = append(all, f)
		}
	}
	if m.Signature != nil {
		all = append(all, m.Signature.Fields()...)
	}
	return all
}

func compareWithModinfo(tb testing.TB, path string) {
	tb.Helper()
	m, err := readFile(path)
	if err != nil {
		tb.Errorf("%s: ReadModule = %v", path, err)
		return
	}
	if diff := cmp.Diff(modinfo(tb, path), fields(m)); diff != "" {
		tb.Errorf("%s (-modinfo +ReadModule):\n%s", path, diff)
	}
}

// oldSignature is as kernels before 4.3 wrote it.
func oldSignature(module []byte) []byte {
	module = append(module, "A signer"+"\x0a\x0b\x0c"+"signature"...)
	module = append(module, 1, 4, 1, 8, 3, 0, 0, 0, 0, 0, 0, 9) // RSA, SHA-256, X509, lengths
	return append(module, "~Module signature appended~\n"...)
}

func TestSignatures(t *testing.T) {
	plain := kmodtest.Module{Info: []string{"license=GPL"}}.Bytes()
	data := bytes.Repeat([]byte{1, 2, 0xff}, 15)
	for _, c := range []struct {
		name string
		file []byte
		want *kmod.Signature
	}{
		{"none", plain, nil},
		{"PKCS#7", kmodtest.AppendSignature(bytes.Clone(plain), kmodtest.PKCS7("Build key", []byte{0x12, 0}, data)),
			&kmod.Signature{IDType: "PKCS#7", Signer: "Build key", KeyID: []byte{0x12, 0}, HashAlgorithm: "sha256", Data: data}},
		{"a high serial number", kmodtest.AppendSignature(bytes.Clone(plain), kmodtest.PKCS7("Größe", []byte{0, 0xf2, 0}, data)),
			&kmod.Signature{IDType: "PKCS#7", Signer: "Größe", KeyID: []byte{0xf2, 0}, HashAlgorithm: "sha256", Data: data}},
		{"before Linux 4.3", oldSignature(bytes.Clone(plain)),
			&kmod.Signature{IDType: "X509", Signer: "A signer", KeyID: []byte{10, 11, 12}, HashAlgorithm: "sha256", Data: []byte("signature")}},
	} {
		m := mustRead(t, c.file)
		if diff := cmp.Diff(c.want, m.Signature); diff != "" || len(m.Warnings) > 0 {
			t.Errorf("%s: warnings %q, Signature (-want +got):\n%s", c.name, m.Warnings, diff)
		}
		path := filepath.Join(t.TempDir(), "foo.ko")
		if err := os.WriteFile(path, c.file, 0o644); err != nil {
			t.Fatal(err)
		}
		compareWithModinfo(t, path)
	}
}

// A damaged signature is a warning; modinfo shows none either.
func TestDamagedSignature(t *testing.T) {
	plain := kmodtest.Module{Info: []string{"license=GPL"}}.Bytes()
	const descriptor, mark = 12, 28
	pkcs7 := kmodtest.PKCS7("Build key", []byte{1}, []byte("signature"))
	signed := kmodtest.AppendSignature(bytes.Clone(plain), pkcs7)
	change := func(at int, to byte) []byte {
		b := bytes.Clone(signed)
		b[len(b)-mark-descriptor+at] = to
		return b
	}
	for name, file := range map[string][]byte{
		"unknown hash":  change(1, 200),
		"unknown type":  change(2, 3),
		"too long":      change(8, 1),
		"far too long":  change(8, 0xff),
		"long signer":   change(3, 255),
		"no length":     change(11, 0),
		"no PKCS#7":     kmodtest.AppendSignature(bytes.Clone(plain), []byte("0123456789")),
		"half a PKCS#7": kmodtest.AppendSignature(bytes.Clone(plain), pkcs7[:len(pkcs7)/2]),
	} {
		if name == "long signer" { // until there is no room for it
			file = file[len(file)-mark-descriptor:]
			file = append(append(bytes.Clone(plain), pkcs7...), file...)
			file[len(file)-mark-descriptor+10] = 0xff
		}
		m := mustRead(t, file)
		if m.Signature != nil || len(m.Warnings) != 1 || !strings.HasPrefix(m.Warnings[0], "its signature is damaged: ") {
			t.Errorf("%s: Signature %+v, warnings %q, want a warning", name, m.Signature, m.Warnings)
		}
		path := filepath.Join(t.TempDir(), "foo.ko")
		if err := os.WriteFile(path, file, 0o644); err != nil {
			t.Fatal(err)
		}
		compareWithModinfo(t, path)
	}
	// Each byte of the PKCS#7 may be wrong.
	for i := range pkcs7 {
		for _, v := range []byte{0, 1, 0x7f, 0x80, 0x84, 0xff} {
			bad := bytes.Clone(pkcs7)
			bad[i] = v
			m := mustRead(t, kmodtest.AppendSignature(bytes.Clone(plain), bad))
			if (m.Signature == nil) != (len(m.Warnings) == 1) {
				t.Fatalf("byte %d = %d: Signature %+v, warnings %q", i, v, m.Signature, m.Warnings)
			}
		}
	}
}

// CMS may name the key instead of a certificate; OpenSSL makes such a one.
func TestSignatureOfOpenSSL(t *testing.T) {
	openssl := testenv.Tool(t, "openssl")
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), openssl, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %q: %v\n%s", args, err, out)
		}
	}
	plain := kmodtest.Module{Info: []string{"license=GPL"}}.Bytes()
	if err := os.WriteFile(filepath.Join(dir, "foo.ko"), plain, 0o644); err != nil {
		t.Fatal(err)
	}
	run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "cert",
		"-subj", "/C=XX/CN=Some key/O=Tests", "-set_serial", "0x8123456789", "-addext", "subjectKeyIdentifier=01020304")
	type test struct {
		name, hash string
		args       []string
	}
	tests := []test{
		{"with attributes and certificate", "sha512", nil},
		{"key", "sha512", []string{"-noattr", "-nocerts", "-keyid"}},
	}
	for _, hash := range []string{"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512"} {
		tests = append(tests, test{hash, hash, []string{"-noattr", "-nocerts"}})
	}
	for _, c := range tests {
		args := []string{"cms", "-sign", "-in", "foo.ko", "-binary", "-outform", "DER", "-out", "sig", "-signer", "cert", "-inkey", "key", "-md", c.hash}
		run(append(args, c.args...)...)
		sig, err := os.ReadFile(filepath.Join(dir, "sig"))
		if err != nil {
			t.Fatal(err)
		}
		signed := kmodtest.AppendSignature(bytes.Clone(plain), sig)
		m := mustRead(t, signed)
		if m.Signature == nil || len(m.Signature.Data) != 256 {
			t.Errorf("%s: Signature = %+v, warnings %q, want one of 256 bytes", c.name, m.Signature, m.Warnings)
			continue
		}
		want := &kmod.Signature{IDType: "PKCS#7", Signer: "Some key", KeyID: []byte{0x81, 0x23, 0x45, 0x67, 0x89}, HashAlgorithm: c.hash, Data: m.Signature.Data}
		if c.name == "key" {
			want.Signer, want.KeyID = "", []byte{1, 2, 3, 4}
		}
		if diff := cmp.Diff(want, m.Signature); diff != "" {
			t.Errorf("%s: Signature (-want +got):\n%s", c.name, diff)
		}
		if c.name == "key" || strings.HasPrefix(c.hash, "sha3") {
			continue // modinfo shows only certificates, and of kmod 30 not these hashes
		}
		path := filepath.Join(dir, "signed.ko")
		if err := os.WriteFile(path, signed, 0o644); err != nil {
			t.Fatal(err)
		}
		compareWithModinfo(t, path)
	}
}
