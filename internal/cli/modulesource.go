package cli

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"overmount/block"
	"overmount/coldplug"
	"overmount/kmod"
	"overmount/manifest"
	"overmount/store"
	"overmount/tree"
)

// A moduleSource is FILE as a directory lib/modules/KVER: a manifest, or a
// directory.
type moduleSource struct {
	dir    string             // where the modules are or will be, for people
	kver   string             // empty if it is not known
	m      *manifest.Manifest // nil for a directory
	reader store.Reader       // of the manifest's content
}

// openModules opens FILE. Stores are asked only for what the manifest does not
// carry itself, so that one without any reachable store will do for much. A
// directory cannot be signed.
func (a *app) openModules(cmd *cobra.Command, t *trust, file string, timeout time.Duration) (*moduleSource, error) {
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		if key, err := t.key(); err != nil || key != nil {
			return nil, cmp.Or(err, fmt.Errorf("%s: --pubkey is for manifests: a directory has no signature", file))
		}
		dir, err := filepath.Abs(file)
		if err != nil {
			return nil, err
		}
		s := &moduleSource{dir: dir}
		if name := filepath.Base(dir); kmod.IsVersion(name) {
			s.kver = name
		}
		return s, nil
	}
	m, _, err := t.open(cmd.Context(), a, file)
	if err != nil {
		return nil, err
	}
	log, err := a.logger(cmd, a.Stderr)
	if err != nil {
		return nil, err
	}
	s := &moduleSource{m: m, kver: m.Tag(manifest.TagKver)}
	s.dir = "/lib/modules/" + s.kver
	reader, err := a.readStores(m.Routes(), timeout, log)
	if err != nil {
		reader = noStore{fmt.Errorf("%s: %w", shown(file), err)}
	}
	s.reader = &firstFailure{Reader: reader}
	return s, nil
}

// notOf fails for a manifest that says of itself that it is of another kind than the
// one that is needed; nil is a directory.
func notOf(m *manifest.Manifest, kind, file string) error {
	if m != nil && m.Tag(manifest.TagKind) == kind {
		return fmt.Errorf("%s is a manifest of %s: give that of the other kind", shown(file), kind)
	}
	return nil
}

// A firstFailure is a store that, once it could not answer, is not asked again:
// what reads thousands of objects would wait for each.
type firstFailure struct {
	store.Reader
	failed atomic.Pointer[error]
}

func (f *firstFailure) Get(ctx context.Context, id block.ID) ([]byte, error) {
	if err := f.failed.Load(); err != nil {
		return nil, *err
	}
	object, err := f.Reader.Get(ctx, id)
	if err != nil && store.Temporary(err) {
		f.failed.CompareAndSwap(nil, &err)
	}
	return object, err
}

// noStore is the store of a manifest whose stores cannot be used.
type noStore struct{ reason error }

func (s noStore) Get(context.Context, block.ID) ([]byte, error) { return nil, s.reason }

// manifestFS returns the tree of a manifest. With a nil reader, only what it
// carries itself can be read.
func manifestFS(ctx context.Context, m *manifest.Manifest, r store.Reader) fs.FS {
	if r == nil {
		r = noStore{store.ErrNoRoute}
	}
	return tree.New(m, r, nil).FS(ctx)
}

func (s *moduleSource) fs(ctx context.Context) fs.FS {
	if s.m == nil {
		return os.DirFS(s.dir)
	}
	return manifestFS(ctx, s.m, s.reader)
}

// inline returns what tells whether a file needs no store; nil for a directory.
func (s *moduleSource) inline() func(name string) bool {
	if s.m == nil {
		return nil
	}
	return func(name string) bool {
		ino, err := s.m.Find(name)
		if err != nil {
			return false
		}
		for _, b := range s.m.Blocks(ino) {
			if _, ok := s.m.Object(b.ID); !ok {
				return false
			}
		}
		return true
	}
}

// note returns what a module file says: from the manifest's notes if it has any,
// else from the file.
func (s *moduleSource) note(fsys fs.FS, file string) (manifest.Module, error) {
	if s.m != nil {
		ino, err := s.m.Find(file)
		if err != nil {
			return manifest.Module{}, err
		}
		if note, ok := s.m.Module(s.m.FirstName(ino)); ok {
			return note, nil
		}
	}
	m, _, err := readModule(fsys, file)
	if err != nil {
		return manifest.Module{}, err
	}
	return manifest.Module{Name: kmod.Name(file), Firmware: m.Info.All("firmware")}, nil
}

// facts returns what tells of the modules' files.
func (s *moduleSource) facts() coldplug.Source {
	if s.m != nil {
		return coldplug.FromManifest(s.m)
	}
	return coldplug.FromFiles(os.DirFS(s.dir))
}

// countObjects adds the objects of a file.
func (s *moduleSource) countObjects(file string, objects map[block.ID]bool) {
	if s.m == nil {
		return
	}
	if ino, err := s.m.Find(file); err == nil {
		for _, b := range s.m.Blocks(ino) {
			objects[b.ID] = true
		}
	}
}

// runningKver returns the version of the kernel that runs.
func runningKver() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}
