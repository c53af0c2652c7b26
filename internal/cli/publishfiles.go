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
		if err := p.shipAs(ctx, name, sig); err != nil {
			return nil, err
		}
		at, err := p.fetchBack(ctx, name, sig)
		if err != nil {
			return nil, err
		}
		urls = append(urls, at)
	}
	return urls, nil
}

// shipAs uploads signature and manifest, each only if something else is there.
func (p *publication) shipAs(ctx context.Context, name string, sig []byte) error {
	same, err := p.holds(ctx, name)
	if err != nil {
		return err
	}
	oldSig, signed, err := p.files.get(ctx, name+signature.Suffix, signature.MaxSize)
	if err != nil {
		return err
	}
	if sig == nil && signed && !same {
		return fmt.Errorf("publish: %s in %s has a signature, which the new manifest would not match: give --sign KEY, or another --name", name, p.files.name)
	}
	newSig := sig != nil && !bytes.Equal(sig, oldSig)
	if newSig {
		err = p.files.put(ctx, name+signature.Suffix, bytes.NewReader(sig), int64(len(sig)))
	}
	if err == nil && !same {
		err = p.files.put(ctx, name, p.file, p.size)
	}
	if err != nil && newSig && !same && len(oldSig) > 0 {
		if failed := p.restore(ctx, name, oldSig); failed != nil {
			return exitError{exitPartly, errors.Join(err, failed)}
		}
	}
	return err
}

// holds reports whether the store has this manifest under a name.
func (p *publication) holds(ctx context.Context, name string) (bool, error) {
	data, there, err := p.files.get(ctx, name, p.size)
	if err != nil || !there {
		return false, err
	}
	return digestOf(data) == p.digest, nil
}

// restoreLimit is how long the old signature is waited for, also by who has given
// up.
const restoreLimit = 10 * time.Second

// restore puts the old signature back, when the manifest did not follow the new
// one. An upload may have failed and yet been done.
func (p *publication) restore(ctx context.Context, name string, old []byte) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreLimit)
	defer cancel()
	if done, err := p.holds(ctx, name); done && err == nil {
		return nil
	}
	err := p.files.PutFile(ctx, name+signature.Suffix, bytes.NewReader(old), int64(len(old)), nil)
	if err != nil {
		return fmt.Errorf("publish: in %s the old %s has the new signature now, and machines that check it refuse it until you publish again: %w", p.files.name, name, err)
	}
	return nil
}

// errOther says that other bytes came than were uploaded.
var errOther = errors.New("it is not what was uploaded")

// fetchBack fetches manifest and signature from where machines do, compares them,
// and returns the URL.
func (p *publication) fetchBack(ctx context.Context, name string, sig []byte) (string, error) {
	if p.url == nil {
		if same, err := p.holds(ctx, name); err != nil || !same {
			return "", errors.Join(fmt.Errorf("publish: %s in %s is not what was uploaded", name, p.files.name), err)
		}
		p.warnf("whether machines can fetch %s was not checked: say with --manifest-public where they find it", name)
		return "", nil
	}
	at := below(p.url, name)
	if err := fetchSame(ctx, at, p.digest); err != nil {
		return "", p.notOutside(ctx, at, err)
	}
	if sig != nil {
		sigAt := below(p.url, name+signature.Suffix)
		if err := fetchSame(ctx, sigAt, digestOf(sig)); err != nil {
			return "", p.notOutside(ctx, sigAt, err)
		}
	}
	return verify.StoreName(at), nil
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
func fetchSame(ctx context.Context, from, digest string) error {
	var err error
	for _, pause := range []time.Duration{0, 300 * time.Millisecond, time.Second} {
		if err := wait(ctx, pause); err != nil {
			return err
		}
		hash := sha256.New()
		err = fetchTo(ctx, hash, from, maxManifest, nil)
		got := digestName(hash.Sum(nil))
		if err == nil && got == digest {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("%w: what came has %s, not %s", errOther, got, digest)
		}
	}
	return err
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
