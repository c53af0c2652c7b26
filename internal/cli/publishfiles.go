package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"strings"
	"time"

	"overmount/block"
	"overmount/origin"
	"overmount/signature"
	"overmount/store"
	"overmount/verify"
)

// A fileStore is the store of the manifest.
type fileStore struct {
	store.FileStore
	name   string // for people
	budget time.Duration
}

// get returns a file, and whether there is one. One that is longer than most, or
// cannot be read, has no content here. The error is that of ctx.
func (s *fileStore) get(ctx context.Context, name string, most int64) (data []byte, there bool, err error) {
	data, err = s.GetFile(ctx, name, most)
	if errors.Is(err, store.ErrNotFound) {
		return nil, false, nil
	}
	return data, true, ctx.Err()
}

func (s *fileStore) put(ctx context.Context, name string, body io.ReaderAt, size int64) error {
	err := s.again(ctx, func(ctx context.Context) error { return s.PutFile(ctx, name, body, size, nil) })
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("publish: upload %s to %s: %w", name, s.name, err)
	}
	return err
}

// again repeats what fails for a time, as is done with objects.
func (s *fileStore) again(ctx context.Context, try func(context.Context) error) error {
	if _, ok := s.FileStore.(*store.Dir); ok {
		return try(ctx) // a directory does not recover
	}
	_, err := store.RetryWriter(tryWriter(try), &store.RetryOptions{Budget: s.budget}).Put(ctx, block.ID{}, nil)
	return err
}

// A tryWriter is any request in the form of one for an object.
type tryWriter func(context.Context) error

func (try tryWriter) Put(ctx context.Context, _ block.ID, _ []byte) (bool, error) {
	return true, try(ctx)
}

// ship lets the manifest appear under its names, one after the other, and returns
// the URLs. The second name moves only when the first is right from outside.
func (p *publication) ship(ctx context.Context, sig []byte) ([]string, error) {
	var urls []string
	for _, name := range []string{p.f.name, p.f.latest} {
		if name == "" {
			continue
		}
		at, err := p.shipAs(ctx, name, sig)
		if err != nil {
			return nil, err
		}
		urls = append(urls, at)
	}
	return urls, nil
}

// shipAs uploads what is not there under a name, and fetches all of it from where
// machines do.
func (p *publication) shipAs(ctx context.Context, name string, sig []byte) (at string, err error) {
	same, err := p.holds(ctx, name, &p.part)
	if err != nil {
		return "", err
	}
	if !same {
		if err := p.replace(ctx, name, sig); err != nil {
			return "", err
		}
	}
	if at, err = p.fetchBack(ctx, name); err != nil {
		return "", err
	}
	if sig != nil {
		signed := part{bytes.NewReader(sig), int64(len(sig)), digestOf(sig)}
		if err := p.besideBack(ctx, name+signature.Suffix, &signed, !same); err != nil {
			return "", err
		}
	}
	return at, p.besideBack(ctx, name+origin.Suffix, &p.small, !same)
}

// replace uploads signature, compressed copy and manifest. While they are replaced,
// the file of the signature has that of the old manifest, too, so that whatever
// readers get has its own, also if nothing comes after it.
func (p *publication) replace(ctx context.Context, name string, sig []byte) error {
	old, signed, err := p.files.get(ctx, name+signature.Suffix, signature.MaxSize)
	if err != nil {
		return err
	}
	if sig == nil && signed {
		return fmt.Errorf("publish: %s in %s has a signature, which the new manifest would not match: give --sign KEY, or another --name", name, p.files.name)
	}
	both := sig
	if sig != nil {
		both = signature.Join(sig, old)
	}
	if err := p.putSignature(ctx, name, both, old); err != nil {
		return err
	}
	if err := p.files.put(ctx, name+origin.Suffix, p.small.file, p.small.size); err != nil {
		return err
	}
	if err := p.files.put(ctx, name, p.file, p.size); err != nil {
		return err
	}
	return p.putSignature(ctx, name, sig, both)
}

// putSignature uploads a file of signatures in the place of another one, if there is
// to be one.
func (p *publication) putSignature(ctx context.Context, name string, sig, old []byte) error {
	if sig == nil || bytes.Equal(sig, old) {
		return nil
	}
	return p.files.put(ctx, name+signature.Suffix, bytes.NewReader(sig), int64(len(sig)))
}

// holds reports whether the store has a file as it is to be.
func (p *publication) holds(ctx context.Context, name string, want *part) (bool, error) {
	data, there, err := p.files.get(ctx, name, want.size)
	if err != nil || !there {
		return false, err
	}
	return digestOf(data) == want.digest, nil
}

// errOther says that other bytes came than were uploaded.
var errOther = errors.New("it is not what was uploaded")

// fetchBack fetches the manifest from where machines do, compares it, and returns the
// URL.
func (p *publication) fetchBack(ctx context.Context, name string) (string, error) {
	if p.url == nil {
		if same, err := p.holds(ctx, name, &p.part); err != nil || !same {
			return "", errors.Join(fmt.Errorf("publish: %s in %s is not what was uploaded", name, p.files.name), err)
		}
		p.warnf("whether machines can fetch %s was not checked: say with --manifest-public where they find it", name)
		return "", nil
	}
	at := below(p.url, name)
	if err := p.fetchSame(ctx, at, p.digest); err != nil {
		return "", p.notOutside(ctx, at, err)
	}
	return verify.StoreName(at), nil
}

// besideBack fetches what lies beside the manifest, too, and compares it. It was
// uploaded with the manifest, unless that was there already: then nobody has asked
// for it so far, and what is not right is uploaded.
func (p *publication) besideBack(ctx context.Context, name string, want *part, fresh bool) error {
	put := func() error { return p.files.put(ctx, name, want.file, want.size) }
	if p.url == nil {
		same, err := p.holds(ctx, name, want)
		if err != nil || same {
			return err
		}
		return put()
	}
	at := below(p.url, name)
	if !fresh {
		if p.fetchOnce(ctx, at, want.digest) == nil {
			return nil
		}
		if err := put(); err != nil {
			return err
		}
	}
	if err := p.fetchSame(ctx, at, want.digest); err != nil {
		return p.notOutside(ctx, at, err)
	}
	return nil
}

// digestOf is a SHA-256 for people, who compare it with what sha256sum says.
func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return digestName(sum[:])
}

// below returns the URL of a file below another one.
func below(base *url.URL, name string) string {
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		parts = append(parts, url.PathEscape(part))
	}
	return base.JoinPath(parts...).String()
}

// fetchSame fetches a file, and tries again if it is another one or does not come:
// what is before a store may need a moment.
func (p *publication) fetchSame(ctx context.Context, from, digest string) error {
	var err error
	for _, pause := range []time.Duration{0, 300 * time.Millisecond, time.Second} {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err = p.fetchOnce(ctx, from, digest); err == nil {
			return nil
		}
	}
	return err
}

func (p *publication) fetchOnce(ctx context.Context, from, digest string) error {
	hash := sha256.New()
	if err := p.copyTo(ctx, hash, from, maxManifest); err != nil {
		return err
	}
	if got := digestName(hash.Sum(nil)); got != digest {
		return fmt.Errorf("%w: what came has %s, not %s", errOther, got, digest)
	}
	return nil
}

// notOutside says what may be wrong with what machines fetch.
func (p *publication) notOutside(ctx context.Context, at string, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errOther):
		return fmt.Errorf("publish: fetch %s: %w\nA proxy or cache before the store has kept what was there before, or the address is of another place: purge it, let it heed Cache-Control: no-cache, and publish again", verify.StoreName(at), err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("publish: fetch %s: %w\nIt was uploaded to %s. The server gives other files than those of this store (say with --manifest-public where it has them), or a proxy has kept the answer that there is none", verify.StoreName(at), err, p.files.name)
	}
	return fmt.Errorf("publish: fetch %s: %w\nIt was uploaded to %s; machines have to get it from there", verify.StoreName(at), err, p.files.name)
}
