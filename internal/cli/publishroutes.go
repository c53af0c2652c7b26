package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"overmount/internal/atomicfile"
	"overmount/manifest"
	"overmount/origin"
	"overmount/signature"
	"overmount/store"
	"overmount/store/s3store"
	"overmount/verify"
)

// publicSpecs reads --public. That a directory is of no use to machines is found
// with everything else.
func publicSpecs(texts []string) ([]store.Spec, error) {
	var specs []store.Spec
	var routes []manifest.Route
	for _, text := range texts {
		spec, err := store.ParseSpec(text)
		if err != nil {
			return nil, fmt.Errorf("--public: %w", err)
		}
		specs = append(specs, spec)
		routes = append(routes, manifest.Route{First: spec.First, Last: spec.Last})
	}
	return specs, covered(routes)
}

// A publicCopy is the manifest as it will be published, in a file of this user
// alone. It may turn out to hold what nobody may see.
type publicCopy struct {
	m      *manifest.Manifest
	old    []manifest.Route // before
	part                    // the manifest itself
	small  part             // its compressed copy
	opened []io.Closer
}

// remove removes what copyPublic has made.
func (c *publicCopy) remove() {
	for _, file := range slices.Backward(c.opened) {
		file.Close()
	}
}

// A part is one of the files that a manifest is published as.
type part struct {
	file   io.ReaderAt
	size   int64
	digest string
}

// content is what the part is, from its beginning.
func (p *part) content() *io.SectionReader { return io.NewSectionReader(p.file, 0, p.size) }

// readPart takes a file as it is.
func readPart(file *os.File) (part, error) {
	info, err := file.Stat()
	if err != nil {
		return part{}, err
	}
	p := part{file: file, size: info.Size()}
	hash := sha256.New()
	_, err = io.Copy(hash, p.content())
	p.digest = digestName(hash.Sum(nil))
	return p, err
}

// copyPublic copies a manifest, and gives the copy the public routes.
func (a *app) copyPublic(ctx context.Context, file string, public []store.Spec) (_ *publicCopy, err error) {
	if !isURL(file) {
		if err := noJournal("open", file); err != nil {
			return nil, err
		}
	}
	tmp, err := a.copyManifest(ctx, file)
	if err != nil {
		return nil, err
	}
	c := &publicCopy{opened: []io.Closer{tmp}}
	defer func() {
		if err != nil {
			c.remove()
		}
	}()
	before, err := manifest.Open(ctx, tmp.Path)
	if err != nil {
		return nil, err
	}
	c.old = before.Routes()
	name := filepath.Join(filepath.Dir(tmp.Path), "public.fl")
	if err := manifest.EditCopy(ctx, tmp.Path, name, func(e *manifest.Editor) error { return e.SetRoutes(routesOf(public)) }); err != nil {
		return nil, err
	}
	if c.m, err = manifest.Open(ctx, name); err != nil {
		return nil, err
	}
	plain, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	c.opened = append(c.opened, plain)
	small, err := os.OpenFile(name+origin.Suffix, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	c.opened = append(c.opened, small)
	if c.part, err = readPart(plain); err != nil {
		return nil, err
	}
	if err := origin.Compress(small, c.content(), c.size); err != nil {
		return nil, err
	}
	c.small, err = readPart(small)
	return c, err
}

// digestName writes a SHA-256.
func digestName(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

// writeOut writes the manifest to its file, and signs it if there is a key.
func (p *publication) writeOut(ctx context.Context, key signature.PrivateKey) (sig []byte, c signature.Claims, err error) {
	if err := noJournal("write", p.f.out); err != nil {
		return nil, c, err
	}
	out, err := atomicfile.Create(p.f.out, 0o644)
	if err != nil {
		return nil, c, fmt.Errorf("publish: %w", err)
	}
	defer out.Abort()
	if _, err := io.Copy(out, p.content()); err != nil {
		return nil, c, fmt.Errorf("write %s: %w", p.f.out, err)
	}
	if err := out.Commit(); err != nil {
		return nil, c, fmt.Errorf("write %s: %w", p.f.out, err)
	}
	if p.f.sign.key == "" {
		return nil, c, nil
	}
	c = signature.Claims{Kind: p.m.Tag(manifest.TagKind), Kver: p.m.Tag(manifest.TagKver)}
	return p.writeSignature(ctx, &p.f.sign, key, p.content(), c)
}

// checkRoutes checks what the manifest says of stores, and that it says nothing of
// those of before.
func (p *publication) checkRoutes() ([]verify.Finding, error) {
	unfit := map[string]bool{}
	var findings []verify.Finding
	add := func(s verify.Severity, at, text string) {
		findings = append(findings, verify.Finding{Severity: s, Check: "route", Store: at, Text: text})
	}
	for _, spec := range p.public {
		name := verify.StoreName(spec.URL.String())
		switch scheme := spec.URL.Scheme; {
		case scheme == "dir" || spec.URL.Host == "":
			unfit[name] = true
		case scheme == "http" || scheme == "https":
		case scheme != "s3" && scheme != "s3s" && scheme != "zdb":
			add(verify.Error, name, "this version cannot check what it has: --public wants http, https, s3, s3s or zdb")
		case p.f.objects.Amount == verify.None:
			add(verify.Error, name, "whether it can be read without credentials has to be tried: --objects none will not do")
		default:
			add(verify.Info, name, "machines have to be able to read it without credentials, as is checked here")
		}
		if spec.URL.User.Username() != "" {
			unfit[name] = true
		}
	}
	for _, f := range verify.Routes(p.m, nil) {
		if f.Severity == verify.Warning && unfit[f.Store] {
			f.Severity = verify.Error
		}
		findings = append(findings, f)
	}
	secrets, err := p.secrets()
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(p.content())
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(secrets, func(s string) bool { return bytes.Contains(data, []byte(s)) }) {
		add(verify.Error, "", "the manifest still holds a secret of a store, in a tag or in what was deleted from it: pack it again")
	}
	for _, u := range p.replaced() {
		if bytes.Contains(data, []byte(place(u))) {
			add(verify.Error, verify.StoreName(u.String()), "the manifest still holds this address, which --public replaced, in a tag or in what was deleted from it: take the tag out, or pack it again")
		}
	}
	return findings, nil
}

// replaced returns the stores of before, and those that are written to, which are
// not public: neither among --public nor web servers that others may reach.
func (p *publication) replaced() []*url.URL {
	texts := slices.Clone(p.f.to)
	for _, r := range p.old {
		texts = append(texts, r.URL)
	}
	var urls []*url.URL
	for _, text := range texts {
		spec, err := parseSpec(text)
		if err != nil || isURL(text) && !privateAddress(spec.URL.Hostname()) || place(spec.URL) == "//" {
			continue
		}
		isPublic := func(s store.Spec) bool { return strings.Contains(s.URL.String(), place(spec.URL)) }
		same := func(u *url.URL) bool { return place(u) == place(spec.URL) }
		if !slices.ContainsFunc(p.public, isPublic) && !slices.ContainsFunc(urls, same) {
			urls = append(urls, spec.URL)
		}
	}
	return urls
}

func privateAddress(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && (addr.Unmap().IsPrivate() || addr.Unmap().IsLoopback())
}

// place is where a store is, in words that a text about it has: without the
// scheme, but with the slashes behind it, and without user and query.
func place(u *url.URL) string {
	bare := url.URL{Host: u.Host, Path: strings.TrimRight(u.Path, "/")}
	if u.Host == "" {
		return "//" + bare.Path
	}
	return bare.String()
}

// secrets returns what must not be in the manifest, as it may be spelled.
func (p *publication) secrets() ([]string, error) {
	const least = 6 // characters; less may be there by chance
	var found []string
	add := func(s string) {
		if len(s) >= least {
			found = append(found, s, url.QueryEscape(s), url.PathEscape(s))
		}
	}
	texts := append(slices.Clone(p.f.to), p.f.manifestTo)
	for _, r := range p.old {
		texts = append(texts, r.URL)
	}
	s3 := false
	for _, text := range texts {
		spec, err := parseSpec(text)
		if err != nil {
			continue
		}
		password, _ := spec.URL.User.Password()
		add(password)
		s3 = s3 || strings.HasPrefix(spec.URL.Scheme, "s3") && spec.URL.User == nil
	}
	if !s3 {
		return found, nil
	}
	credentials, err := s3store.LoadCredentials(p.Getenv, p.stores.credentials)
	if err != nil {
		return nil, err
	}
	if credentials != nil {
		add(credentials.Secret)
		add(credentials.SessionToken)
	}
	return found, nil
}
