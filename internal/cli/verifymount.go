package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"overmount/fusefs"
	"overmount/internal/mounts"
	"overmount/kmod"
	"overmount/manifest"
	"overmount/store"
	"overmount/store/s3store"
	"overmount/tree"
	"overmount/verify"
)

// A mountTest mounts a manifest as a machine does, with another process, without
// a cache, and reads a little of everything there. What is there is compared with
// what src gives.
type mountTest struct {
	src  *moduleSource
	dir  string // where it is mounted
	log  string // of the mount
	down bool   // a store did not answer: others are not waited for again
	done struct {
		files, links, dirs int
		bytes              int64
	}
	findings []verify.Finding
}

// mountTestFile is the longest part of a file that a mount test reads, in bytes.
const mountTestFile = 8 << 20

// verifyMount is "verify --mount". Only what keeps it from cleaning up, and the
// end of the context, is an error.
func (a *app) verifyMount(ctx context.Context, f *verifyFlags, file string, src *moduleSource) ([]verify.Finding, error) {
	t := &mountTest{src: src}
	if err := fusefs.Available(); err != nil {
		t.add(verify.Warning, "", "nothing was mounted, as that is not possible here: %v", err)
		return t.findings, nil
	}
	work, err := os.MkdirTemp("", "overmount-verify-")
	if err == nil {
		work, err = filepath.EvalSymlinks(work)
	}
	if err != nil {
		return nil, err
	}
	t.dir, t.log = filepath.Join(work, "mount"), filepath.Join(work, "log")
	// One by one: what is mounted must not be removed.
	defer func() {
		for _, name := range []string{t.dir, t.log, work} {
			os.Remove(name)
		}
	}()
	if err := os.Mkdir(t.dir, 0o700); err != nil {
		return nil, err
	}
	var said bytes.Buffer
	child, err := launch(ctx, os.Args[0], a.mountTestArgs(f, file, t), file, &said)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		t.add(verify.Error, "", "it cannot be mounted: %s", cmp.Or(strings.TrimPrefix(strings.TrimSpace(said.String()), "overmount: "), err.Error()))
		return t.findings, nil
	}
	if err := t.readAll(ctx, child); err != nil {
		return nil, err
	}
	if verify.Worst(t.findings) < verify.Error {
		t.add(verify.Info, "", "mounted and unmounted; what was read there is right: directories: %d, symlinks: %d, files: %d with %s",
			t.done.dirs, t.done.links, t.done.files, humanBytes(t.done.bytes))
	}
	a.credentialsUsed(t)
	return t.findings, nil
}

// mountTestArgs are the arguments of the process that mounts.
func (a *app) mountTestArgs(f *verifyFlags, file string, t *mountTest) []string {
	args := []string{"mount", "-d", "-c", "none", "-m", file, "-l", t.log, "--log-level", "warn", "--timeout", f.timeout.String()}
	if f.trust.pubkey != "" {
		args = append(args, "--pubkey", f.trust.pubkey, "--min-serial", fmt.Sprint(f.trust.minSerial))
	}
	for flag, value := range map[string]string{"--credentials": a.stores.credentials, "--auth-file": a.stores.authFile} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	return append(args, t.dir)
}

// readAll reads the mount that child serves, and ends it.
func (t *mountTest) readAll(ctx context.Context, child *exec.Cmd) error {
	read := make(chan struct{})
	go func() {
		defer close(read)
		t.read(ctx)
	}()
	select {
	case <-read:
		if err := stopDaemon(child); err != nil {
			return err
		}
	case <-ctx.Done():
		// A read in the mount may wait for a store: without the child it ends.
		_ = child.Process.Kill()
		_ = child.Wait()
		<-read
	}
	top, err := mounts.Top(t.dir)
	if err != nil || top == nil {
		return errors.Join(ctx.Err(), err)
	}
	if err := fusefs.Unmount(t.dir, true); err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("unmount %s: %w", t.dir, err))
	}
	if ctx.Err() == nil {
		t.add(verify.Error, "", "the mount did not end as it should")
	}
	return ctx.Err()
}

func (t *mountTest) add(s verify.Severity, path, format string, args ...any) {
	t.findings = append(t.findings, verify.Finding{Severity: s, Check: "mount", Path: path, Text: fmt.Sprintf(format, args...)})
}

// read reads what the manifest has most different of.
func (t *mountTest) read(ctx context.Context) {
	m := t.src.m
	files := mountSample(m)
	module, isModule := manifest.Ino(0), false
	if m.Tag(manifest.TagKind) == "modules" {
		if index, err := m.Find("modules.dep"); err == nil && !slices.Contains(files, index) {
			files = append(files, index)
		}
		if module, isModule = someModule(m); isModule && !slices.Contains(files, module) {
			files = append(files, module)
		}
	}
	for _, ino := range files {
		ok := t.check(ctx, ino, t.file)
		if ok && isModule && ino == module {
			t.check(ctx, ino, t.module)
		}
	}
	if ino, ok := firstLink(m); ok {
		t.check(ctx, ino, t.link)
	}
	t.check(ctx, largestDir(m), t.list)
}

// check runs one comparison, unless the test is to end, and reports whether nothing
// was wrong.
func (t *mountTest) check(ctx context.Context, ino manifest.Ino, compare func(ctx context.Context, ino manifest.Ino, name string) error) bool {
	if ctx.Err() != nil {
		return false
	}
	path := t.src.m.Path(ino)
	err := compare(ctx, ino, filepath.Join(t.dir, path))
	if err != nil {
		t.add(verify.Error, path, "%v", err)
	}
	return err == nil
}

// file compares the attributes and the content of a file.
func (t *mountTest) file(ctx context.Context, ino manifest.Ino, name string) error {
	if err := t.attributes(ino, name); err != nil || t.down {
		return err
	}
	want, reason := readStart(func() (fs.File, error) { return t.src.fs(ctx).Open(t.src.m.Path(ino)) })
	got, err := readStart(func() (fs.File, error) { return os.Open(name) })
	switch {
	case err != nil && reason != nil:
		if lost, ok := errors.AsType[*tree.BlockError](reason); ok {
			t.down = store.Temporary(lost.Err)
		}
		return fmt.Errorf("it cannot be read: %w (%w)", pathless(err), pathless(reason))
	case err != nil:
		return fmt.Errorf("it cannot be read in the mount, though its objects can: %w%s", pathless(err), t.logged())
	case reason != nil:
		return fmt.Errorf("it can be read in the mount, but its objects cannot: %w", pathless(reason))
	case !bytes.Equal(got, want):
		return errors.New("its content in the mount is not what its objects hold")
	}
	t.done.files++
	t.done.bytes += int64(len(got))
	return nil
}

// readStart reads a file up to mountTestFile.
func readStart(open func() (fs.File, error)) ([]byte, error) {
	f, err := open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, mountTestFile))
}

// attributes compares what stat tells.
func (t *mountTest) attributes(ino manifest.Ino, name string) error {
	info, err := os.Lstat(name)
	if err != nil {
		return pathless(err)
	}
	at := t.src.m.Attr(ino)
	for _, a := range []struct{ what, got, want string }{
		{"mode", info.Mode().String(), at.FileMode().String()},
		{"size", fmt.Sprint(info.Size()), fmt.Sprint(at.Size)},
		{"time", info.ModTime().UTC().Format(time.RFC3339), at.ModTime().UTC().Format(time.RFC3339)},
	} {
		if a.got != a.want {
			return fmt.Errorf("its %s in the mount is %s, not %s", a.what, a.got, a.want)
		}
	}
	return nil
}

func (t *mountTest) module(_ context.Context, ino manifest.Ino, _ string) error {
	if t.down {
		return nil
	}
	_, _, err := readModule(os.DirFS(t.dir), t.src.m.Path(ino))
	return err
}

func (t *mountTest) link(_ context.Context, ino manifest.Ino, name string) error {
	got, err := os.Readlink(name)
	if err != nil {
		return pathless(err)
	}
	if want := t.src.m.Target(ino); got != want {
		return fmt.Errorf("it points in the mount to %q, not to %q", got, want)
	}
	t.done.links++
	return nil
}

func (t *mountTest) list(_ context.Context, dir manifest.Ino, name string) error {
	list, err := os.ReadDir(name)
	if err != nil {
		return pathless(err)
	}
	var got, want []string
	for _, e := range list {
		got = append(got, e.Type().String()+" "+e.Name())
	}
	for _, ino := range t.src.m.Children(dir) {
		want = append(want, t.src.m.Attr(ino).FileMode().Type().String()+" "+t.src.m.Name(ino))
	}
	for _, names := range [][]string{got, want} {
		slices.Sort(names)
	}
	if !slices.Equal(slices.Compact(got), slices.Compact(want)) {
		return fmt.Errorf("the mount lists %d names, which are not the %d that the manifest has", len(got), len(want))
	}
	t.done.dirs++
	return nil
}

// logged returns the last that the mount has logged, to be appended to an error.
func (t *mountTest) logged() string {
	text, err := os.ReadFile(t.log)
	if err != nil || len(bytes.TrimSpace(text)) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "; the mount's log ends with: " + lines[len(lines)-1]
}

// mountSample picks the smallest, a middling and the largest of the files that are
// not too long and have content that is in the stores. If there are none, the
// smallest of the others will do.
func mountSample(m *manifest.Manifest) []manifest.Ino {
	var fit, others []manifest.Ino
	for _, ino := range m.Walk(manifest.Root) {
		switch at := m.Attr(ino); {
		case !at.IsRegular():
		case at.Size <= mountTestFile && needsStore(m, ino):
			fit = append(fit, ino)
		default:
			others = append(others, ino)
		}
	}
	bySize := func(a, b manifest.Ino) int { return cmp.Compare(m.Attr(a).Size, m.Attr(b).Size) }
	slices.SortStableFunc(fit, bySize)
	slices.SortStableFunc(others, bySize)
	switch {
	case len(fit) > 2:
		return []manifest.Ino{fit[0], fit[len(fit)/2], fit[len(fit)-1]}
	case len(fit) == 0 && len(others) > 0:
		return others[:1]
	}
	return fit
}

// needsStore reports whether a file has content that the manifest does not carry.
func needsStore(m *manifest.Manifest, ino manifest.Ino) bool {
	for _, b := range m.Blocks(ino) {
		if _, carried := m.Object(b.ID); !carried {
			return true
		}
	}
	return false
}

// someModule returns a kernel module from the middle of the tree.
func someModule(m *manifest.Manifest) (manifest.Ino, bool) {
	var modules []manifest.Ino
	for _, ino := range m.Walk(manifest.Root) {
		if m.Attr(ino).IsRegular() && kmod.Suffix(m.Name(ino)) != "" {
			modules = append(modules, ino)
		}
	}
	if len(modules) == 0 {
		return 0, false
	}
	return modules[len(modules)/2], true
}

func firstLink(m *manifest.Manifest) (manifest.Ino, bool) {
	for _, ino := range m.Walk(manifest.Root) {
		if m.Attr(ino).Type() == unix.S_IFLNK {
			return ino, true
		}
	}
	return 0, false
}

func largestDir(m *manifest.Manifest) manifest.Ino {
	largest := manifest.Root
	for _, ino := range m.Walk(manifest.Root) {
		if m.Attr(ino).IsDir() && len(m.Children(ino)) > len(m.Children(largest)) {
			largest = ino
		}
	}
	return largest
}

// credentialsUsed tells that a store was read with what other machines may not
// have.
func (a *app) credentialsUsed(t *mountTest) {
	for _, r := range t.src.m.Routes() {
		spec, err := store.ParseSpec(r.URL)
		if err != nil || spec.URL.Scheme != "s3" && spec.URL.Scheme != "s3s" || spec.URL.User != nil {
			continue
		}
		if c, err := s3store.LoadCredentials(a.Getenv, a.stores.credentials); err == nil && c != nil {
			t.findings = append(t.findings, verify.Finding{
				Severity: verify.Warning, Check: "mount", Store: verify.StoreName(r.URL),
				Text: "it may have been read with the S3 credentials of this user: machines without any may not be let in",
			})
		}
	}
}
