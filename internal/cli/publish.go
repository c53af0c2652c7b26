package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"overmount/block"
	"overmount/origin"
	"overmount/pack"
	"overmount/signature"
	"overmount/store"
	"overmount/verify"
)

type publishFlags struct {
	meta           string
	to             []string
	public         []string
	manifestTo     string
	manifestPublic string
	name, latest   string
	out            string
	sign           signFlags
	objects        amount
	recheck        bool
	journal        string
	timeout        time.Duration
}

func (a *app) publishCommand() *cobra.Command {
	f := publishFlags{objects: amount{verify.DefaultSample}}
	cmd := &cobra.Command{
		Use:   "publish -m FILE --to STORE... --public URL... [--sign KEY] [--latest NAME]",
		Short: "Upload what is missing, check it from outside, then let the manifest appear",
		Long: `Publish makes what was packed readable for machines without credentials. FILE is a
manifest, a path or an http(s) URL, and stays as it is. In this order:

  1. A copy of FILE is made whose stores are those of --public and no others, each
     [xx-yy=]URL, fallbacks in the order in which they are given. It is refused if
     it has a password, a token, a place that machines cannot reach, or an address
     of before.
  2. The objects that a --to STORE lacks are copied there from the stores of FILE.
     If FILE names STORE itself, they are there already, and this is only checked.
  3. Objects are fetched through each --public URL, 64 if --objects does not say
     otherwise, compared with their names and opened. Buckets are read without
     credentials; HTTP servers with those of --auth-file, as machines do.
  4. The copy is written to OUT.fl, and with --sign signed.
  5. The signature is uploaded, then the manifest compressed with zstd, as NAME.zst,
     and last the manifest, to --manifest-to under NAME, and then all of it once more
     under the name of --latest.
  6. All is fetched from where machines will, and compared.

If a step fails, the later ones do not happen. So a manifest appears, or changes,
only when all of its objects are there. After an interruption, repeat the command:
it goes on where it was. While a manifest is replaced, the file of its signature has
both, that of the new one and that of the old one: so machines go on with the old one,
also if publish is killed in that moment. minisign looks at the first alone.

NAME.zst is the address for machines that boot: it has half the bytes, and the
signature of NAME.

Publish notes which objects a store is known to have, and which a public URL has
given, in a file for each below $XDG_CACHE_HOME/overmount/publish, or
~/.cache/overmount/publish. What is noted is not asked again, except two objects of
each public URL. A store of which not all is noted is listed. Who deletes objects
by other means than "overmount gc" on this host, or keeps notes with --journal, must
give --recheck. When objects turn out to be missing, the notes are forgotten.

So publishing an unchanged tree again takes one request for each --to STORE (two for
S3 without a region), two for each public URL (four where objects are flat), and four
for each name: the manifest from the store, and all three files from outside. With one
of each and --latest, these are 14 at most.

Errors among the findings, which are printed as those of verify, make publish fail
with exit code 4.

With --json, each finding is an object as verify prints it, and the last line is an
object: manifest, name, url, compressed_url, compressed_bytes, digest, objects,
new_objects, new_bytes, requests (those over HTTP), seconds; with --latest, latest
and latest_url; with --sign, signature and serial.

` + storeHelp + "\n\n" + exitCodes,
		Example: `  overmount publish -m modules.fl --to 's3://garage.example.com:3900/flists?region=garage' --public https://flists.example.com
  overmount publish -m modules.fl --to s3://garage.example.com:3900/flists --public https://flists.example.com \
      --name modules-6.1.0-56.fl --latest modules-latest.fl --sign fleet.key --serial "$BUILD_NUMBER"
  overmount publish -m firmware.fl --to dir:///srv/www/objects --public https://a.example.com/objects --public https://b.example.com/objects \
      --manifest-to dir:///srv/www --manifest-public https://a.example.com`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.publish(cmd, &f) },
	}
	metaFlag(cmd, &f.meta, "manifest `FILE` to publish, a path or an http(s) URL")
	flags := cmd.Flags()
	flags.StringArrayVar(&f.to, "to", nil, "`STORE` for the objects, can be repeated (required)")
	flags.StringArrayVar(&f.public, "public", nil, "`URL` where machines find the objects, can be repeated (required)")
	flags.StringVar(&f.manifestTo, "manifest-to", "", "`STORE` for the manifest, dir or s3 (default: the first --to that can have files)")
	flags.StringVar(&f.manifestPublic, "manifest-public", "", "`URL` below which machines find what is in --manifest-to (default: without --manifest-to, the first --public)")
	flags.StringVar(&f.name, "name", "", "`NAME` of the manifest there (default: the last part of FILE)")
	flags.StringVar(&f.latest, "latest", "", "second `NAME`, which moves from manifest to manifest")
	flags.StringVarP(&f.out, "output", "o", "", "`FILE` for the manifest that is published (default: FILE with -public before .fl)")
	flags.Var(&f.objects, "objects", "how many objects each public URL is asked for: all, none, sample or sample=N")
	flags.BoolVar(&f.recheck, "recheck", false, "ask stores and public URLs again, whatever was noted")
	flags.StringVar(&f.journal, "journal", "", "`FILE` for notes of what is there, or none (default: one for each store below the user's cache directory)")
	flags.DurationVar(&f.timeout, "timeout", 90*time.Second, "how long to wait for a store that does not answer")
	f.sign.optional(cmd)
	a.jsonFlag(cmd)
	return cmd
}

// check looks at the flags, and fills in the defaults of names.
func (f *publishFlags) check(cmd *cobra.Command) error {
	if err := needMeta(cmd, f.meta); err != nil {
		return err
	}
	switch {
	case len(f.to) == 0:
		return usagef(cmd, "missing flag: --to STORE, where the objects go")
	case len(f.public) == 0:
		return usagef(cmd, "missing flag: --public URL, where machines find them")
	case f.out == "" && isURL(f.meta):
		return usagef(cmd, "missing flag: -o OUT.fl, for a manifest at a URL")
	case isURL(f.out):
		return usagef(cmd, "-o %s: the manifest is written to a file, not to a URL", shown(f.out))
	case f.journal == "" && cmd.Flags().Changed("journal"):
		return usagef(cmd, "--journal is empty: want a file, or none")
	}
	if f.name == "" {
		f.name = baseName(f.meta)
	}
	if f.out == "" {
		f.out = strings.TrimSuffix(origin.Plain(f.meta), ".fl") + "-public.fl"
	}
	for _, name := range []string{f.name, f.latest} {
		if name != "" && (name == "." || !fs.ValidPath(name)) {
			return usagef(cmd, "name %q: want one like modules.fl or 6.1/modules.fl, without empty parts and dots", name)
		}
		if origin.Compressed(name) {
			return usagef(cmd, "name %q: give that of the manifest; its compressed copy gets %s by itself", name, origin.Suffix)
		}
	}
	switch {
	case f.name == "":
		return usagef(cmd, "missing flag: --name NAME, for a manifest at a URL without a name")
	case f.name == f.latest:
		return usagef(cmd, "--latest %s: the manifest has that name anyway", f.latest)
	case origin.Compressed(f.out):
		return usagef(cmd, "-o %s: the manifest is written as it is, and only published compressed, too", f.out)
	case sameFile(f.meta, f.out):
		return usagef(cmd, "-o %s: that is FILE, which publish leaves as it is", f.out)
	}
	f.sign.meta = f.out
	return f.sign.checkOptional(cmd)
}

// A publication is one run of publish.
type publication struct {
	*app
	f        *publishFlags
	log      *slog.Logger
	start    time.Time
	requests atomic.Int64 // over HTTP
	public   []store.Spec
	stocks   []*stock // the stores of --to
	to       store.Routes
	files    fileStore
	url      *url.URL // below which machines find the manifest; nil: nobody said
	journals *journals
	*publicCopy
}

func (a *app) publish(cmd *cobra.Command, f *publishFlags) error {
	if err := f.check(cmd); err != nil {
		return err
	}
	log, err := a.logger(cmd, a.Stderr)
	if err != nil {
		return err
	}
	p := &publication{app: a, f: f, log: log, start: time.Now(), journals: a.journals(f.journal)}
	defer p.journals.close()
	ctx := countRequests(cmd.Context(), &p.requests)
	if p.public, err = publicSpecs(f.public); err != nil {
		return err
	}
	if p.publicCopy, err = a.copyPublic(ctx, f.meta, p.public); err != nil {
		return fmt.Errorf("publish %s: %w", shown(f.meta), err)
	}
	defer p.remove()
	findings, err := p.checkRoutes()
	if err != nil {
		return err
	}
	if verify.Worst(findings) == verify.Error {
		return a.found(f.meta, findings, false)
	}
	var key signature.PrivateKey
	if f.sign.key != "" {
		if key, err = f.sign.readKey(cmd); err != nil {
			return err
		}
	}
	sum, err := p.deliver(ctx, findings)
	if err != nil {
		return err
	}
	sig, claims, err := p.writeOut(ctx, key)
	if err != nil {
		return err
	}
	urls, err := p.ship(ctx, sig)
	if err != nil {
		return err
	}
	return p.published(urls, sum, claims)
}

// deliver brings the objects to where machines find them, and prints what was found
// so far and from outside.
func (p *publication) deliver(ctx context.Context, findings []verify.Finding) (pack.CopySummary, error) {
	if err := p.openStores(ctx); err != nil {
		return pack.CopySummary{}, err
	}
	sum, err := p.upload(ctx)
	if err != nil {
		return sum, fmt.Errorf("publish %s: %w", shown(p.f.meta), err)
	}
	more, err := p.checkObjects(ctx)
	if err != nil {
		return sum, fmt.Errorf("publish %s: %w", shown(p.f.meta), err)
	}
	return sum, p.found(p.f.meta, append(findings, more...), false)
}

// countRequests counts the HTTP requests that are made under the context it
// returns.
func countRequests(ctx context.Context, n *atomic.Int64) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { n.Add(1) }})
}

// openStores opens the stores to write to.
func (p *publication) openStores(ctx context.Context) error {
	var err error
	if p.to, _, err = p.writeStores(ctx, p.f.to, false); err != nil {
		return err
	}
	if err := p.openFiles(ctx); err != nil {
		return err
	}
	byURL := map[string]*stock{}
	for i, text := range p.f.to {
		spec, err := parseSpec(text)
		if err != nil {
			return err
		}
		s := byURL[spec.URL.String()]
		if s == nil {
			s = &stock{Writer: p.to[i].Writer, name: addressOf(spec.URL), has: map[block.ID]bool{}}
			if spec.URL.Scheme != "dir" { // to look there costs nothing
				s.journal = p.journals.open(p.app, s.name)
			}
			byURL[spec.URL.String()] = s
			p.stocks = append(p.stocks, s)
		}
		s.routes = append(s.routes, p.to[i])
		p.to[i].Writer = s
	}
	return nil
}

// openFiles opens the store for the manifest, and finds out where machines will
// fetch it.
func (p *publication) openFiles(ctx context.Context) error {
	at := p.f.manifestPublic
	if at == "" && p.f.manifestTo == "" {
		at = p.public[0].URL.String()
	}
	switch {
	case isURL(at):
		spec, err := store.ParseSpec(at)
		if err != nil {
			return fmt.Errorf("--manifest-public: %w", err)
		}
		p.url = spec.URL
	case p.f.manifestPublic != "":
		return errors.New("publish: --manifest-public wants the URL of a web server, http:// or https://")
	}
	if p.f.manifestTo == "" {
		return p.defaultFiles()
	}
	spec, err := parseSpec(p.f.manifestTo)
	if err != nil {
		return err
	}
	w, err := p.openWriter(ctx, spec.URL)
	if err != nil {
		return err
	}
	files, ok := w.(store.FileStore)
	if !ok {
		return fmt.Errorf("publish: the store %s cannot have a manifest: --manifest-to wants dir or s3", redacted(spec.URL))
	}
	p.files = fileStore{files, redacted(spec.URL), p.f.timeout}
	return nil
}

// defaultFiles takes the first store for objects that can have files.
func (p *publication) defaultFiles() error {
	for i, r := range p.to {
		files, ok := r.Writer.(store.FileStore)
		if !ok {
			continue
		}
		spec, err := parseSpec(p.f.to[i])
		if err != nil {
			return err
		}
		p.files = fileStore{files, redacted(spec.URL), p.f.timeout}
		return nil
	}
	return errors.New("publish: the stores for objects cannot have a manifest: say with --manifest-to where it goes, dir or s3")
}

// published tells what was published.
func (p *publication) published(urls []string, sum pack.CopySummary, c signature.Claims) error {
	requests, took := p.requests.Load(), time.Since(p.start)
	sig := p.f.out + signature.Suffix
	if p.json {
		result := map[string]any{
			"manifest": p.f.out, "name": p.f.name, "url": urls[0], "digest": p.digest,
			"objects": sum.Objects, "new_objects": sum.NewObjects, "new_bytes": sum.NewBytes,
			"compressed_bytes": p.small.size, "requests": requests, "seconds": took.Seconds(),
		}
		if urls[0] != "" {
			result["compressed_url"] = urls[0] + origin.Suffix
		}
		if p.f.latest != "" {
			result["latest"], result["latest_url"] = p.f.latest, urls[1]
		}
		if c.Serial > 0 {
			result["signature"], result["serial"] = sig, c.Serial
		}
		return json.NewEncoder(p.Stdout).Encode(result)
	}
	fmt.Fprintf(p.Stdout, "objects  %d: %d new, %s; %d known\n", sum.Objects, sum.NewObjects, humanBytes(sum.NewBytes), sum.Objects-sum.NewObjects)
	fmt.Fprintf(p.Stdout, "manifest %s\n", p.f.out)
	if c.Serial > 0 {
		fmt.Fprintf(p.Stdout, "signed   %s, serial %d\n", sig, c.Serial)
	}
	fmt.Fprintf(p.Stdout, "digest   %s\n", p.digest)
	for _, u := range urls {
		if u != "" {
			fmt.Fprintf(p.Stdout, "at       %s\n", u)
			fmt.Fprintf(p.Stdout, "boot     %s%s, %s instead of %s\n", u, origin.Suffix, humanBytes(p.small.size), humanBytes(p.size))
		}
	}
	fmt.Fprintf(p.Stdout, "time     %.2f s, %d requests\n", took.Seconds(), requests)
	return nil
}
