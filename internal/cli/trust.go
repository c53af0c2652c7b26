package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"overmount/manifest"
	"overmount/origin"
	"overmount/signature"
	"overmount/store/httpstore"
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
func (t *trust) open(ctx context.Context, a *app, file string) (*manifest.Manifest, signature.Claims, error) {
	p, err := t.openFile(ctx, a, file)
	if err != nil {
		return nil, signature.Claims{}, err
	}
	return p.Manifest, p.Claims, p.Close()
}

// openFile is open for who needs the bytes, too: they are in a file until that is
// closed.
func (t *trust) openFile(ctx context.Context, a *app, file string) (*origin.Private, error) {
	key, err := t.key()
	if err != nil {
		return nil, err
	}
	f, err := a.fetcher(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Open(ctx, file, origin.Trust{Key: key, MinSerial: t.minSerial, Kind: t.kind, Kver: t.kver})
}

// openManifest opens FILE, a path or a URL, whoever made it.
func (a *app) openManifest(ctx context.Context, file string) (*manifest.Manifest, error) {
	m, _, err := new(trust).open(ctx, a, file)
	return m, err
}

// copyManifest copies FILE, a path or a URL, to a file of this user alone.
func (a *app) copyManifest(ctx context.Context, file string) (*origin.Private, error) {
	f, err := a.fetcher(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Copy(ctx, file)
}

// maxManifest is the length of the longest manifest that is fetched from a URL,
// in bytes. A million files take 300 MB.
const maxManifest = 4 << 30

// fetcher returns what gets the manifest in FILE, a path or a URL, to be closed.
func (a *app) fetcher(file string) (*origin.Fetcher, error) {
	if !isURL(file) {
		return origin.NewFetcher(&origin.Options{MaxBytes: maxManifest}), nil
	}
	auth, err := a.httpAuth()
	if err != nil {
		return nil, err
	}
	return origin.NewFetcher(withAuth(auth, origin.Options{MaxBytes: maxManifest})), nil
}

// withAuth are options with credentials for servers that want some.
func withAuth(auth *httpstore.Auth, o origin.Options) *origin.Options {
	o.Client.Wrap, o.Hint = auth.Transport, auth.Hint
	return &o
}
