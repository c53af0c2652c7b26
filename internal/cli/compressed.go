package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"overmount/internal/atomicfile"
	"overmount/manifest"
	"overmount/origin"
)

// notCompressed refuses to write to a compressed copy of a manifest.
func notCompressed(file string) error {
	if origin.Compressed(file) {
		return fmt.Errorf("%s is the name of a compressed copy: give that of the manifest, %s; the copy beside it is replaced with it", file, origin.Plain(file))
	}
	return nil
}

// editManifest changes the manifest in a file, and the compressed copy beside it.
func editManifest(ctx context.Context, file string, change func(*manifest.Editor) error) error {
	if err := notCompressed(file); err != nil {
		return err
	}
	if err := manifest.Edit(ctx, file, change); err != nil {
		return err
	}
	return recompress(file)
}

// editManifestCopy writes a changed copy of a manifest to a file, and to the
// compressed copy beside that.
func editManifestCopy(ctx context.Context, from, to string, change func(*manifest.Editor) error) error {
	if err := notCompressed(to); err != nil {
		return err
	}
	if err := manifest.EditCopy(ctx, from, to, change); err != nil {
		return err
	}
	return recompress(to)
}

// recompress replaces the compressed copy beside a manifest, if there is one.
func recompress(file string) error {
	name := file + origin.Suffix
	if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := compressFile(file, name); err != nil {
		return fmt.Errorf("%s is written, and its compressed copy %s is still the old one: %w", file, name, err)
	}
	return nil
}

func compressFile(file, name string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := atomicfile.Create(name, 0o644)
	if err != nil {
		return err
	}
	defer out.Abort()
	if err := origin.Compress(out, in, info.Size()); err != nil {
		return err
	}
	return out.Commit()
}
