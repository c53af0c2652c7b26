package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"overmount/manifest"
	"overmount/signature"
	"overmount/store"
)

// A trust says which manifests may be opened. The zero trust lets all.
type trust struct {
	cmd        *cobra.Command // has the flags; nil: the fields were filled in otherwise
	pubkey     string
	minSerial  uint64
	kind, kver string // what the manifest has to say that it is; empty: anything
}

// flags adds the flags to a verb and those below it.
func (t *trust) flags(cmd *cobra.Command) {
	t.cmd = cmd
	cmd.PersistentFlags().StringVar(&t.pubkey, "pubkey", "", "refuse a manifest that `KEY` has not signed: a file with minisign's public key, or its text")
	cmd.PersistentFlags().Uint64Var(&t.minSerial, "min-serial", 0, "with --pubkey: refuse a manifest whose signature has a serial below `N`")
}

// kindFlags adds those of verbs that use a manifest as what it should be.
func (t *trust) kindFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.kind, "kind", "", "refuse a manifest of another `KIND`: modules, firmware or tree")
	cmd.Flags().StringVar(&t.kver, "kver", "", "refuse a manifest for another kernel `version`")
}

// sameKey is the trust in other manifests than the one that the flags are about.
func (t *trust) sameKey() *trust { return &trust{cmd: t.cmd, pubkey: t.pubkey} }

// key returns the key that has to have signed, nil if nobody has to. A --pubkey
// that is empty, as an unset variable in a script makes it, is an error.
func (t *trust) key() (*signature.PublicKey, error) {
	switch {
	case t.pubkey == "" && t.cmd != nil && t.cmd.PersistentFlags().Changed("pubkey"):
		return nil, usagef(t.cmd, "--pubkey is empty: want a file with a public key, or its text")
	case t.pubkey == "" && t.minSerial > 0 && t.cmd != nil:
		return nil, usagef(t.cmd, "--min-serial needs --pubkey: without a signature there is no serial")
	case t.pubkey == "" && t.minSerial > 0:
		return nil, errors.New("a least serial is wanted, and no key that signs it")
	case t.pubkey == "":
		return nil, nil
	}
	key, err := signature.ReadPublicKey(t.pubkey)
	if err != nil {
		return nil, err
	}
	return &key, nil
}

// open opens FILE, a path or a URL, if it may be, and returns what its signature
// claims, if there has to be one.
//
// What has to be signed is copied to where only this user can write, as what
// comes from a URL is, and the copy is hashed and opened. So the bytes that were
// checked are the bytes that are read, whatever becomes of FILE on the way; and a
// journal beside FILE, which nobody has signed, changes nothing.
func (t *trust) open(ctx context.Context, file string) (*manifest.Manifest, signature.Claims, error) {
	m, c, _, done, err := t.openFile(ctx, file)
	if err != nil {
		return nil, signature.Claims{}, err
	}
	done()
	return m, c, nil
}

// openFile is open for who needs the bytes, too: they are in the file at path,
// until done is called.
func (t *trust) openFile(ctx context.Context, file string) (m *manifest.Manifest, c signature.Claims, path string, done func(), err error) {
	key, err := t.key()
	if err != nil {
		return nil, c, "", nil, err
	}
	if key == nil && !isURL(file) {
		path, done = file, func() {}
		m, err = manifest.Open(ctx, file)
	} else {
		m, c, path, done, err = t.openCopy(ctx, key, file)
	}
	if err == nil {
		if err = t.wanted(m); err != nil {
			done()
		}
	}
	if errors.Is(err, errRefused) {
		err = fmt.Errorf("manifest %s %w", shown(file), err)
	}
	return m, c, path, done, err
}

var (
	errRefused  = errors.New("is refused")
	errUnsigned = fmt.Errorf("%w: it is not signed", errRefused)
)

// openCopy opens what has to be copied first. Of a manifest at a URL that is being
// replaced, one may get the signature of the old and the bytes of the new one, or
// the other way round: then both are fetched again.
func (t *trust) openCopy(ctx context.Context, key *signature.PublicKey, file string) (m *manifest.Manifest, c signature.Claims, path string, done func(), err error) {
	for _, pause := range []time.Duration{300 * time.Millisecond, time.Second} {
		m, c, path, done, err = t.openCopyOnce(ctx, key, file)
		if !isURL(file) || !errors.Is(err, signature.ErrChangedFile) {
			return m, c, path, done, err
		}
		if err := wait(ctx, pause); err != nil {
			return nil, c, "", nil, err
		}
	}
	return t.openCopyOnce(ctx, key, file)
}

// wait waits, but not for longer than the context.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *trust) openCopyOnce(ctx context.Context, key *signature.PublicKey, file string) (m *manifest.Manifest, c signature.Claims, path string, done func(), err error) {
	// First, because it is small and may be missing.
	var sig []byte
	if key != nil {
		if sig, err = readSignature(ctx, file); err != nil {
			return nil, c, "", nil, err
		}
	}
	tmp, remove, err := copyManifest(ctx, file)
	if err != nil {
		return nil, c, "", nil, err
	}
	defer func() {
		if err != nil {
			remove()
		}
	}()
	if key != nil {
		if c, err = signature.Verify(*key, tmp, sig); err == nil {
			err = c.CheckSerial(t.minSerial)
		}
		if err != nil {
			return nil, c, "", nil, fmt.Errorf("%w: %w", errRefused, err)
		}
	}
	if m, err = manifest.Open(ctx, tmp.Name()); err != nil {
		return nil, c, "", nil, fmt.Errorf("%s: %w", shown(file), err)
	}
	if key != nil && (c.Kind != m.Tag(manifest.TagKind) || c.Kver != m.Tag(manifest.TagKver)) {
		return nil, c, "", nil, fmt.Errorf("%w: it is of kind %q for kernel %q, and its signature says kind %q for kernel %q",
			errRefused, m.Tag(manifest.TagKind), m.Tag(manifest.TagKver), c.Kind, c.Kver)
	}
	return m, c, tmp.Name(), remove, nil
}

// wanted refuses a manifest that is another than was asked for.
func (t *trust) wanted(m *manifest.Manifest) error {
	for _, w := range []struct{ tag, want string }{{manifest.TagKind, t.kind}, {manifest.TagKver, t.kver}} {
		if got := m.Tag(w.tag); w.want != "" && got != w.want {
			return fmt.Errorf("%w: its %s is %q, not %q", errRefused, w.tag, got, w.want)
		}
	}
	return nil
}

// copyManifest copies FILE, a path or a URL, to a directory of this user alone. The
// copy is at its beginning, and has the mode of any new file, for those who make
// another manifest of it.
func copyManifest(ctx context.Context, file string) (tmp *os.File, remove func(), err error) {
	dir, err := os.MkdirTemp("", "overmount-")
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	if tmp, err = os.OpenFile(filepath.Join(dir, "manifest.fl"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666); err != nil {
		return nil, nil, err
	}
	remove = func() {
		tmp.Close()
		os.RemoveAll(dir)
	}
	if err = copyTo(ctx, tmp, file, maxManifest); err == nil {
		_, err = tmp.Seek(0, io.SeekStart)
	}
	if err != nil {
		tmp.Close()
		return nil, nil, fmt.Errorf("%s manifest %s: %w", getting(file), shown(file), err)
	}
	return tmp, remove, nil
}

// getting is what is done to have FILE.
func getting(file string) string {
	if isURL(file) {
		return "fetch"
	}
	return "open"
}

// maxSignatureTime is how long fetching a signature may take.
const maxSignatureTime = time.Minute

// readSignature returns the signature beside FILE.
func readSignature(ctx context.Context, file string) ([]byte, error) {
	name, err := signatureName(file)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, maxSignatureTime)
	defer cancel()
	var sig bytes.Buffer
	err = copyTo(ctx, &sig, name, signature.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		if _, missing := os.Stat(file); missing != nil && !isURL(file) {
			return nil, fmt.Errorf("open manifest %s: %w", file, pathless(missing))
		}
		return nil, fmt.Errorf("%w: there is no %s", errUnsigned, shown(name))
	}
	if err != nil {
		return nil, fmt.Errorf("%s signature %s: %w", getting(name), shown(name), err)
	}
	return sig.Bytes(), nil
}

// signatureName returns where the signature of FILE is.
func signatureName(file string) (string, error) {
	if !isURL(file) {
		return file + signature.Suffix, nil
	}
	// The errors of net/url repeat what they cannot parse, with its password.
	if _, err := store.ParseSpec(file); err != nil {
		return "", fmt.Errorf("manifest: %w", err)
	}
	u, err := url.Parse(file)
	if err != nil {
		return "", errors.New("manifest: the URL cannot be parsed")
	}
	u.Path += signature.Suffix
	if u.RawPath != "" {
		u.RawPath += signature.Suffix
	}
	return u.String(), nil
}
