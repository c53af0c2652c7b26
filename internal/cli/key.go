package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"overmount/internal/atomicfile"
	"overmount/signature"
)

type keyFlags struct {
	secret, public string
	password       passwordFlags
	noPassword     bool
}

func (a *app) keyCommand() *cobra.Command {
	cmd := group("key", "Make keys that sign manifests", a.keyGenerateCommand())
	cmd.Long = `Key makes the keys that "overmount sign" and --pubkey use. They are keys of minisign.

` + exitCodes
	return cmd
}

func (a *app) keyGenerateCommand() *cobra.Command {
	var f keyFlags
	cmd := &cobra.Command{
		Use:   "generate -s SECRET.key -p PUBLIC.pub",
		Short: "Make a key",
		Long: `Generate makes a key and writes its two halves: the secret one, which signs and
which only its owner may read, and the public one, which machines check signatures
with. It prints the public half, 56 characters, which --pubkey takes, too.

The secret key is encrypted with a password, asked for on the terminal. Making one
and each use of it takes a second and 1 GiB of memory: that is what makes guessing
the password slow.

No file is overwritten.

` + exitCodes,
		Example: `  overmount key generate -s modules.key -p modules.pub
  overmount key generate -s ci.key -p ci.pub --no-password`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.keyGenerate(cmd, &f) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.secret, "secret", "s", "", "`FILE` for the secret key (required)")
	flags.StringVarP(&f.public, "public", "p", "", "`FILE` for the public key (required)")
	flags.BoolVar(&f.noPassword, "no-password", false, "leave the secret key readable by whoever gets the file")
	f.password.flags(cmd)
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) keyGenerate(cmd *cobra.Command, f *keyFlags) error {
	switch {
	case f.secret == "":
		return usagef(cmd, "missing flag: -s FILE, for the secret key")
	case f.public == "":
		return usagef(cmd, "missing flag: -p FILE, for the public key")
	case f.noPassword && f.password.given(cmd):
		return usagef(cmd, "give --password-file or --no-password, not both")
	}
	// Before anybody types a password.
	for _, file := range []string{f.secret, f.public} {
		if _, err := os.Lstat(file); err == nil {
			return fmt.Errorf("key generate: %s is there already, and keys are not overwritten", file)
		}
	}
	var password []byte
	if !f.noPassword {
		var err error
		if password, err = f.password.choose(cmd); err != nil {
			return fmt.Errorf("key generate: %w", err)
		}
	}
	key, err := signature.GenerateKey()
	if err != nil {
		return err
	}
	if err := writeKey(key, password, f.secret, f.public); err != nil {
		return fmt.Errorf("key generate: %w", err)
	}
	if a.json {
		return json.NewEncoder(a.Stdout).Encode(map[string]any{
			"id": key.ID(), "public_key": key.Public().String(), "secret_file": f.secret, "public_file": f.public,
		})
	}
	_, err = fmt.Fprintf(a.Stdout, "secret key %s\npublic key %s\n%s\n", f.secret, f.public, key.Public())
	return err
}

// writeKey writes both files or none.
func writeKey(key signature.PrivateKey, password []byte, secret, public string) error {
	text, err := key.Encode(password)
	if err != nil {
		return err
	}
	if err := createFile(secret, text, 0o600); err != nil {
		return err
	}
	if err := createFile(public, key.Public().Encode(), 0o644); err != nil {
		return errors.Join(err, os.Remove(secret))
	}
	return nil
}

// createFile writes a file that is not there yet, and makes it last. Unlike a file
// that is renamed to its name, it cannot take the place of another.
func createFile(file string, data []byte, perm fs.FileMode) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = atomicfile.SyncDir(filepath.Dir(file))
	}
	if err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}
