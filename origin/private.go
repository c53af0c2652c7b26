package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"overmount/manifest"
	"overmount/signature"
)

// A Private is a manifest in a file that only this user can write, to be closed.
type Private struct {
	// File is the file at its beginning. It is nil where the place itself was
	// opened.
	File *os.File
	// Path is the file's, or the place.
	Path string
	// Manifest and Claims are what was checked; the claims are zero without a key.
	// Copy fills in neither.
	Manifest *manifest.Manifest
	Claims   signature.Claims

	dir string
}

// Close removes the file.
func (p *Private) Close() error {
	if p.File == nil {
		return nil
	}
	return errors.Join(p.File.Close(), os.RemoveAll(p.dir))
}

// Copy copies the manifest at a place, whatever it is, decompressed. The copy has the
// mode of any new file, for those who make another manifest of it.
func (f *Fetcher) Copy(ctx context.Context, place string) (*Private, error) {
	p, err := f.copy(ctx, place)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if errors.Is(err, ErrRefused) {
		return nil, refused(place, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s manifest %s: %w", getting(place), Shown(place), err)
	}
	return p, nil
}

func (f *Fetcher) copy(ctx context.Context, place string) (_ *Private, err error) {
	p := &Private{}
	if p.dir, err = os.MkdirTemp(f.opts.TempDir, "overmount-"); err != nil {
		return nil, err
	}
	p.Path = filepath.Join(p.dir, "manifest.fl")
	if p.File, err = os.OpenFile(p.Path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666); err != nil {
		return nil, errors.Join(err, os.RemoveAll(p.dir))
	}
	if err = f.content(ctx, p.File, place); err == nil {
		_, err = p.File.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Open opens the manifest at a place, if it may be used.
//
// What has to be signed, is compressed, or comes from a URL is copied, and the copy is
// hashed and opened. So the bytes that were checked are the bytes that are read,
// whatever becomes of the place on the way; and a journal beside it, which nobody has
// signed, changes nothing. Any other file is opened where it is.
//
// The error is ErrRefused for a manifest that must not be used, fs.ErrNotExist for a
// place where none is, the context's, or another one.
func (f *Fetcher) Open(ctx context.Context, place string, t Trust) (*Private, error) {
	if t.Key == nil && !IsURL(place) && !Compressed(place) {
		m, err := manifest.Open(ctx, place)
		if err != nil {
			return nil, err
		}
		if err := t.wanted(m, signature.Claims{}); err != nil {
			return nil, refused(place, err)
		}
		return &Private{Path: place, Manifest: m}, nil
	}
	var p *Private
	err := again(ctx, place, func() (err error) {
		p, err = f.openCopy(ctx, place, t)
		return err
	})
	return p, err
}

func (f *Fetcher) openCopy(ctx context.Context, place string, t Trust) (*Private, error) {
	// First, because it is small and may be missing.
	var sig []byte
	if t.Key != nil {
		var err error
		if sig, err = f.Signature(ctx, place); err != nil {
			return nil, refused(place, err)
		}
	}
	p, err := f.Copy(ctx, place)
	if err != nil {
		return nil, err
	}
	if p.Manifest, p.Claims, err = t.check(ctx, p.File, sig); err != nil {
		if err = refused(place, err); !errors.Is(err, ErrRefused) {
			err = fmt.Errorf("open manifest %s: %w", Shown(place), err)
		}
		return nil, errors.Join(err, p.Close())
	}
	_, err = p.File.Seek(0, io.SeekStart)
	return p, err
}
