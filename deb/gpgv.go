package deb

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A GPGV is a [Verifier] that asks gpgv, as apt does. One good signature by a key
// of the keyring is enough, unless another one is bad: repositories are signed with
// keys of several releases.
type GPGV struct {
	// Keyrings are files with public keys, as gpg --export writes them, also with
	// --armor. There must be one.
	Keyrings []string
	// Program is gpgv; empty means that of PATH.
	Program string
}

var (
	_ Verifier         = GPGV{}
	_ DetachedVerifier = GPGV{}
)

const (
	messageBegin   = "-----BEGIN PGP SIGNED MESSAGE-----\n"
	signatureBegin = "-----BEGIN PGP SIGNATURE-----\n"
	signatureEnd   = "\n-----END PGP SIGNATURE-----"
)

// Verify implements [Verifier].
func (g GPGV) Verify(ctx context.Context, signed []byte) ([]byte, error) {
	if len(g.Keyrings) == 0 {
		return nil, ErrUnsigned
	}
	if !bytes.HasPrefix(signed, []byte(messageBegin)) {
		return nil, errors.New("it is not signed: it does not begin with a signed message of OpenPGP")
	}
	// In the text a line that begins with a dash is escaped.
	if err := checkBlock(signed, messageBegin, "\n"+signatureBegin); err != nil {
		return nil, err
	}
	s, err := g.newSession()
	if err != nil {
		return nil, err
	}
	defer s.close()
	file := filepath.Join(s.home, "text")
	if err := s.ask(ctx, signed, "--output", file); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

// VerifyDetached implements [DetachedVerifier].
func (g GPGV) VerifyDetached(ctx context.Context, text, sig []byte) error {
	if len(g.Keyrings) == 0 {
		return ErrUnsigned
	}
	// A signed message in its place would be another text that is right. apt
	// takes no binary signatures, either.
	if !bytes.HasPrefix(sig, []byte(signatureBegin)) {
		return errors.New("it is no signature of OpenPGP in ASCII armor")
	}
	if err := checkBlock(sig, signatureBegin); err != nil {
		return err
	}
	s, err := g.newSession()
	if err != nil {
		return err
	}
	defer s.close()
	file := filepath.Join(s.home, "signature")
	if err := os.WriteFile(file, sig, 0o600); err != nil {
		return err
	}
	return s.ask(ctx, text, file, "-")
}

// checkBlock refuses a file with several messages or signatures, or with anything
// behind the signature: whoever reads past it must find nothing there.
func checkBlock(signed []byte, begins ...string) error {
	if !bytes.HasSuffix(bytes.TrimRight(signed, "\n"), []byte(signatureEnd)) {
		return errors.New("something follows its signature, or it is truncated")
	}
	for _, line := range append(begins, signatureEnd) {
		if bytes.Count(signed, []byte(line)) != 1 {
			return errors.New("it is more than one signed message")
		}
	}
	return nil
}

// A session is what gpgv works with, in a directory of its own. It is to be closed.
type session struct {
	program, home string
	args          []string
}

func (g GPGV) newSession() (*session, error) {
	program, err := exec.LookPath(cmp.Or(g.Program, "gpgv"))
	if err != nil {
		return nil, errors.New("to check its signature the program gpgv is needed, which is not installed (package gpgv or gnupg): " +
			"install it, or fetch the packages with apt-get download, and use the files")
	}
	home, err := os.MkdirTemp("", "overmount-gpgv-")
	if err != nil {
		return nil, err
	}
	s := &session{program: program, home: home}
	if s.args, err = g.keyrings(home); err != nil {
		s.close()
		return nil, err
	}
	s.args = append(s.args, "--homedir", home, "--status-fd", "1")
	return s, nil
}

func (s *session) close() { _ = os.RemoveAll(s.home) }

// ask has gpgv check what is signed, and fails unless that is right.
func (s *session) ask(ctx context.Context, signed []byte, args ...string) error {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, s.program, append(s.args, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(signed), &out, &errs
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	err := cmd.Run()
	talk := strings.TrimSpace(errs.String())
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && out.Len() == 0 {
		return fmt.Errorf("%s: %w: %s", s.program, err, shorten(talk))
	}
	return judge(out.String(), talk)
}

// maxKeyring bounds a keyring, in bytes. That of Debian has 57 KB.
const maxKeyring = 16 << 20

// keyrings copies the keyrings, plain, and returns the options that name them.
func (g GPGV) keyrings(home string) (args []string, err error) {
	for i, k := range g.Keyrings {
		f, err := os.Open(k)
		if err != nil {
			return nil, fmt.Errorf("keyring: %w", err)
		}
		keys, err := io.ReadAll(&limitedReader{f, maxKeyring, fmt.Errorf("it has over the limit of %d bytes", maxKeyring)})
		f.Close()
		if err == nil {
			keys, err = dearmor(keys)
		}
		if err != nil {
			return nil, fmt.Errorf("keyring %s: %w", k, pathless(err))
		}
		plain := filepath.Join(home, fmt.Sprintf("keyring-%d.gpg", i))
		if err := os.WriteFile(plain, keys, 0o600); err != nil {
			return nil, err
		}
		args = append(args, "--keyring", plain)
	}
	return args, nil
}

// dearmor returns what is in armored text (RFC 9580, section 6), which gpgv does
// not read. Other bytes come back as they are.
func dearmor(keys []byte) ([]byte, error) {
	const begin, end = "-----BEGIN PGP PUBLIC KEY BLOCK-----", "-----END PGP PUBLIC KEY BLOCK-----"
	text := strings.ReplaceAll(string(keys), "\r\n", "\n")
	if !strings.HasPrefix(text, "-----") {
		return keys, nil
	}
	var plain []byte
	for strings.TrimSpace(text) != "" {
		block, rest, ok := strings.Cut(text, end)
		text = rest
		_, body, headed := strings.Cut(block, begin)
		_, body, split := strings.Cut(body, "\n\n")
		if !ok || !headed || !split {
			return nil, errors.New("it is armored text, and no block of public keys")
		}
		body, _, _ = strings.Cut(body, "\n=") // a checksum
		b, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(body, "\n", ""))
		if err != nil {
			return nil, fmt.Errorf("it is armored text, and damaged: %w", err)
		}
		plain = append(plain, b...)
	}
	return plain, nil
}

// judge reads the lines of --status-fd (doc/DETAILS of GnuPG).
func judge(status, talk string) error {
	good, valid, bad, missing := false, false, "", []string(nil)
	for line := range strings.SplitSeq(status, "\n") {
		f := strings.Fields(strings.TrimPrefix(line, "[GNUPG:] "))
		if len(f) == 0 {
			continue
		}
		switch f[0] {
		case "GOODSIG":
			good = true
		case "VALIDSIG":
			valid = true
		case "BADSIG":
			bad = "the signature does not fit: the file is damaged, or changed"
		case "EXPKEYSIG":
			missing = append(missing, f[1]+" (expired)")
		case "REVKEYSIG":
			missing = append(missing, f[1]+" (revoked)")
		case "NO_PUBKEY":
			missing = append(missing, f[1])
		}
	}
	switch {
	case bad != "":
		return errors.New(bad)
	case good && valid:
		return nil
	case len(missing) > 0:
		return fmt.Errorf("it is signed by keys that the keyring has not, or which are no longer good: %s; give a keyring of those who sign it", strings.Join(missing, ", "))
	}
	return fmt.Errorf("it has no good signature: gpgv says: %s", shorten(talk))
}
