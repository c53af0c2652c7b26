package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/spf13/cobra"

	"overmount/internal/atomicfile"
	"overmount/manifest"
	"overmount/origin"
	"overmount/signature"
)

type signFlags struct {
	meta     string
	key      string
	serial   uint64
	password passwordFlags
}

func (a *app) signCommand() *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "sign -m FILE --key SECRET.key",
		Short: "Sign a manifest, so that machines can tell who made it and which is newer",
		Long: `Sign writes FILE.minisig, a signature that --pubkey checks and so does minisign:
"minisign -V -p PUBLIC.pub -m FILE". It says which kind of tree the manifest has
and for which kernel, as its tags do, and carries a serial number.

Machines that are told --min-serial refuse what has a lower number, so that nobody
can make them use an old manifest that was signed once. Each manifest that takes
another's place needs a higher number than that: of a kind and a kernel version,
the number of the build or "$(date +%s)" will do. Without --serial it is one more
than in the FILE.minisig that is there and signed with the same key, the same if
FILE has not changed since, and 1 if there is none.

Any change to FILE, also of its tags and stores, needs a new signature.

` + exitCodes,
		Example: `  overmount sign -m modules.fl --key modules.key
  overmount sign -m modules.fl --key ci.key --serial "$BUILD_NUMBER"`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.sign(cmd, &f) },
	}
	metaFlag(cmd, &f.meta, "manifest `FILE` to sign")
	flags := cmd.Flags()
	flags.StringVar(&f.key, "key", "", "`FILE` with the secret key (required)")
	flags.Uint64Var(&f.serial, "serial", 0, "`number` of the manifest, from 1 (default: one more than last time)")
	f.password.flags(cmd)
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) sign(cmd *cobra.Command, f *signFlags) error {
	if err := needMeta(cmd, f.meta); err != nil {
		return err
	}
	switch {
	case isURL(f.meta):
		return usagef(cmd, "-m %s: a file is signed, not a URL", shown(f.meta))
	case notCompressed(f.meta) != nil:
		return usagef(cmd, "-m: %w", notCompressed(f.meta))
	case f.key == "":
		return usagef(cmd, "missing flag: --key FILE, with the secret key")
	case f.serial == 0 && cmd.Flags().Changed("serial"):
		return usagef(cmd, "--serial 0: serials begin with 1")
	}
	// What is signed has to be what is looked at, and sound without a journal
	// beside it.
	tmp, claims, err := a.claimsOf(cmd.Context(), f.meta)
	if err != nil {
		return err
	}
	defer tmp.Close()
	key, err := f.readKey(cmd)
	if err != nil {
		return err
	}
	if _, claims, err = a.writeSignature(cmd.Context(), f, key, tmp.File, claims); err != nil {
		return err
	}
	return a.signed(f.meta+signature.Suffix, key, claims)
}

// optional adds the flags to a verb that signs only if --sign is given.
func (f *signFlags) optional(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.key, "sign", "", "sign the manifest with the secret key in `FILE`")
	cmd.Flags().Uint64Var(&f.serial, "serial", 0, "with --sign: `number` of the manifest, from 1 (default: one more than last time)")
	f.password.flags(cmd)
}

// checkOptional refuses flags that mean nothing without --sign.
func (f *signFlags) checkOptional(cmd *cobra.Command) error {
	for _, name := range []string{"serial", "password-file"} {
		if f.key == "" && cmd.Flags().Changed(name) {
			return usagef(cmd, "--%s is for --sign", name)
		}
	}
	switch {
	case f.key == "" && cmd.Flags().Changed("sign"):
		return usagef(cmd, "--sign is empty: want the file with the secret key")
	case f.serial == 0 && cmd.Flags().Changed("serial"):
		return usagef(cmd, "--serial 0: serials begin with 1")
	}
	return nil
}

func (f *signFlags) readKey(cmd *cobra.Command) (signature.PrivateKey, error) {
	return signature.ReadPrivateKey(f.key, func() ([]byte, error) {
		return f.password.read(cmd, "Password of "+f.key+": ")
	})
}

// writeSignature signs tmp, what is in the file f.meta, and puts the signature
// beside that.
func (a *app) writeSignature(ctx context.Context, f *signFlags, key signature.PrivateKey, tmp io.ReadSeeker, c signature.Claims) ([]byte, signature.Claims, error) {
	var err error
	if c.Serial, err = a.serial(ctx, key.Public(), f, tmp); err != nil {
		return nil, c, err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return nil, c, err
	}
	sig, err := signature.Sign(key, tmp, c)
	if err != nil {
		return nil, c, fmt.Errorf("%s: %w", f.meta, err)
	}
	if err := atomicfile.Write(f.meta+signature.Suffix, sig, 0o644); err != nil {
		return nil, c, fmt.Errorf("sign: %w", err)
	}
	return sig, c, nil
}

// signFile signs the manifest f.meta as it is.
func (a *app) signFile(ctx context.Context, f *signFlags, key signature.PrivateKey) (signature.Claims, error) {
	tmp, claims, err := a.claimsOf(ctx, f.meta)
	if err != nil {
		return claims, err
	}
	defer tmp.Close()
	_, claims, err = a.writeSignature(ctx, f, key, tmp.File, claims)
	return claims, err
}

// noJournal refuses a file beside which lies what would make another one of it.
func noJournal(doing, file string) error {
	for _, suffix := range []string{"-journal", "-wal"} {
		if info, err := os.Stat(file + suffix); err == nil && info.Size() > 0 {
			return fmt.Errorf("%s %s: beside it lies %s%s, a change that is not in it as a whole: end what writes it, or open it with sqlite3 once", doing, file, file, suffix)
		}
	}
	return nil
}

// claimsOf opens a private copy of a manifest, and returns what it says of itself.
func (a *app) claimsOf(ctx context.Context, file string) (*origin.Private, signature.Claims, error) {
	var c signature.Claims
	if err := noJournal("sign", file); err != nil {
		return nil, c, err
	}
	tmp, err := a.copyManifest(ctx, file)
	if err != nil {
		return nil, c, err
	}
	m, err := manifest.Open(ctx, tmp.Path)
	if err != nil {
		return nil, c, errors.Join(fmt.Errorf("sign %s: %w", file, err), tmp.Close())
	}
	return tmp, signature.Claims{Kind: m.Tag(manifest.TagKind), Kver: m.Tag(manifest.TagKver)}, nil
}

// serial returns the serial for a manifest, with a look at the signature that it
// had before.
func (a *app) serial(ctx context.Context, key signature.PublicKey, f *signFlags, manifest io.Reader) (uint64, error) {
	old, same, err := a.lastSerial(ctx, key, f.meta, manifest)
	switch {
	case f.serial > 0:
		if err == nil && (f.serial < old || f.serial == old && !same) {
			a.warnf("serial %d is not above the last one, %d: machines that have seen that one take this manifest for an old one", f.serial, old)
		}
		return f.serial, nil
	case err != nil:
		return 0, fmt.Errorf("sign %s: the signature that it has does not tell the next serial: %w\nGive --serial", f.meta, err)
	case same:
		return old, nil
	case old == math.MaxUint64:
		return 0, fmt.Errorf("sign %s: there is no serial above %d", f.meta, old)
	}
	return old + 1, nil
}

// lastSerial returns the serial of the signature beside FILE, 0 if there is none,
// and whether it is of the same bytes.
func (a *app) lastSerial(ctx context.Context, key signature.PublicKey, file string, manifest io.Reader) (serial uint64, same bool, err error) {
	f, err := a.fetcher(file)
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	sig, err := f.Signature(ctx, file)
	if errors.Is(err, origin.ErrUnsigned) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	c, err := signature.Verify(key, manifest, sig)
	if err == nil {
		return c.Serial, true, nil
	}
	if !errors.Is(err, signature.ErrChangedFile) {
		return 0, false, err
	}
	c, err = signature.Read(key, sig)
	return c.Serial, false, err
}

// signed tells what was signed.
func (a *app) signed(file string, key signature.PrivateKey, c signature.Claims) error {
	if a.json {
		return json.NewEncoder(a.Stdout).Encode(map[string]any{
			"signature": file, "kind": c.Kind, "kver": c.Kver, "serial": c.Serial, "key": key.ID(),
		})
	}
	_, err := fmt.Fprintf(a.Stdout, "signature %s\nclaims    %s\nkey       %s\n", file, c, key.ID())
	return err
}
