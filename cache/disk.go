package cache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"overmount/block"
)

const (
	version    = "v1"
	tempPrefix = ".tmp-"

	// touchAfter is how stale an entry's time of use may be. It bounds the
	// writing that reading causes.
	touchAfter = 5 * time.Minute

	// maxVerified bounds the memory of files that were hashed: 3 MB at most.
	maxVerified = 1 << 15
)

// openDir opens the version directory of the cache in dir, and makes both if
// they are not there.
func openDir(dir string) (*os.Root, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	// Before: what leads there, links included. After: where it led.
	if err := trusted(abs); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return nil, err
	}
	resolved, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return nil, err
	}
	if err := trusted(resolved); err != nil {
		return nil, err
	}
	home := filepath.Join(resolved, version)
	if err := os.Mkdir(home, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	fi, err := os.Lstat(home)
	if err != nil {
		return nil, err
	}
	if uid := owner(fi); !fi.IsDir() || uid != os.Geteuid() || fi.Mode()&0o022 != 0 {
		return nil, fmt.Errorf("%s must be a directory of user %d that nobody else may write to; it is %v of user %d",
			home, os.Geteuid(), fi.Mode(), uid)
	}
	return os.OpenRoot(home)
}

// trusted checks that nobody but root and this user can put another file in the
// place of path or of a directory above it. What does not exist is trusted.
func trusted(path string) error {
	for p := path; ; p = filepath.Dir(p) {
		fi, err := os.Lstat(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil {
			if err := trustedFile(p, fi); err != nil {
				return err
			}
		}
		if p == filepath.Dir(p) {
			return nil
		}
	}
}

func trustedFile(path string, fi fs.FileInfo) error {
	if uid := owner(fi); uid != 0 && uid != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, who could put anything in its place", path, uid)
	}
	if fi.Mode()&(fs.ModeSymlink|fs.ModeSticky) != 0 {
		return nil
	}
	if fi.Mode()&0o002 != 0 {
		return fmt.Errorf("%s is writable by everyone, without the sticky bit", path)
	}
	// The user's own group is trusted as far as the user's umask trusts it.
	gid := int(fi.Sys().(*syscall.Stat_t).Gid)
	if fi.Mode()&0o020 != 0 && gid != 0 && gid != os.Getegid() {
		return fmt.Errorf("%s is writable by group %d, without the sticky bit", path, gid)
	}
	return nil
}

func owner(fi fs.FileInfo) int { return int(fi.Sys().(*syscall.Stat_t).Uid) }

// unlinked reports whether the directory that root holds was removed.
func unlinked(root *os.Root) bool {
	fi, err := root.Stat(".")
	return err != nil || fi.Sys().(*syscall.Stat_t).Nlink == 0
}

// entryName returns the name of an entry below the version directory.
func entryName(id block.ID) string {
	s := id.String()
	return s[:2] + "/" + s
}

// A stamp tells a file from another at the same name. It leaves out ctime,
// which changes with atime.
type stamp struct {
	inode uint64
	mtime int64
	size  int64
}

func stampOf(fi fs.FileInfo) stamp {
	return stamp{fi.Sys().(*syscall.Stat_t).Ino, fi.ModTime().UnixNano(), fi.Size()}
}

// cost returns what a file of size bytes takes on the disk.
func cost(size int64) int64 { return (size + 4095) &^ 4095 }

// read returns an entry. It returns block.ErrCorrupt for one that is not the
// object that its name promises.
func (c *Cache) read(id block.ID) ([]byte, error) {
	if err := c.step("read"); err != nil {
		return nil, err
	}
	root, name := c.root.Load(), entryName(id)
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() == 0 || fi.Size() > block.MaxObject {
		return nil, fmt.Errorf("%w: %v of %d bytes", block.ErrCorrupt, fi.Mode(), fi.Size())
	}
	object := make([]byte, fi.Size())
	if _, err := io.ReadFull(f, object); errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: shorter than its %d bytes", block.ErrCorrupt, fi.Size())
	} else if err != nil {
		return nil, err
	}
	if s := stampOf(fi); !c.isVerified(id, s) {
		if block.Sum(object) != id {
			return nil, fmt.Errorf("%w: its %d bytes have another hash", block.ErrCorrupt, len(object))
		}
		c.setVerified(id, s)
	}
	touch(root, name, time.Unix(fi.Sys().(*syscall.Stat_t).Atim.Unix()))
	return object, nil
}

// touch records that an entry was used, if it was last used a while ago. It is
// best effort: on a file system mounted read-only the order does not matter.
func touch(root *os.Root, name string, used time.Time) {
	now := time.Now()
	if now.Sub(used).Abs() > touchAfter {
		root.Chtimes(name, now, time.Time{}) // zero: leave mtime alone
	}
}

// write makes an entry of an object, whole or not at all. It does not wait for
// the name to last: after a power cut the entry may be missing.
//
// It does by itself what internal/atomicfile does, because it works below an
// open directory, and not below a path.
func (c *Cache) write(id block.ID, object []byte) error {
	defer time.AfterFunc(writePatience, func() {
		c.trip(ReadOnly, fmt.Errorf("the disk took no write within %v", writePatience))
	}).Stop()
	if err := c.step("create"); err != nil {
		return err
	}
	root, name := c.root.Load(), entryName(id)
	f, temp, err := createTemp(root, name[:2])
	if err != nil {
		return err
	}
	s, err := c.writeTemp(f, object)
	if err == nil {
		err = c.step("rename")
	}
	if err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		root.Remove(temp)
		return err
	}
	c.setVerified(id, s)
	return c.step("renamed")
}

// writeTemp gives a file its content, makes it last, and closes it.
func (c *Cache) writeTemp(f *os.File, content []byte) (stamp, error) {
	defer f.Close()
	if err := c.step("write"); err != nil {
		return stamp{}, err
	}
	if _, err := f.Write(content); err != nil {
		return stamp{}, err
	}
	if err := c.step("sync"); err != nil {
		return stamp{}, err
	}
	if err := f.Sync(); err != nil {
		return stamp{}, err
	}
	fi, err := f.Stat()
	if err != nil {
		return stamp{}, err
	}
	return stampOf(fi), nil
}

// createTemp makes an empty file in a shard, and the shard if need be.
func createTemp(root *os.Root, shard string) (*os.File, string, error) {
	name := fmt.Sprintf("%s/%s%016x", shard, tempPrefix, rand.Uint64())
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := root.OpenFile(name, flags, 0o600)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, name, err
	}
	if err := root.Mkdir(shard, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, "", err
	}
	f, err = root.OpenFile(name, flags, 0o600)
	return f, name, err
}

// remove drops an entry, and what is known of it.
func (c *Cache) remove(id block.ID) error {
	c.mu.Lock()
	delete(c.verified, id)
	c.mu.Unlock()
	return c.root.Load().Remove(entryName(id))
}

func (c *Cache) isVerified(id block.ID, s stamp) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.verified[id]
	return ok && known == s
}

func (c *Cache) setVerified(id block.ID, s stamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.verified) >= maxVerified {
		for some := range c.verified {
			delete(c.verified, some) // it costs a hash, if ever
			break
		}
	}
	c.verified[id] = s
}

// space returns how many bytes of the file system are free to this user, and
// how many of them the cache must leave. Without a floor all is free.
func (c *Cache) space(root *os.Root) (free, floor int64, err error) {
	d, err := root.Open(".")
	if err != nil {
		return 0, 0, err
	}
	defer d.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("statfs: %w", err)
	}
	if st.Blocks == 0 || c.opts.MinFree < 0 {
		return math.MaxInt64, 0, nil
	}
	floor = c.opts.MinFree
	if floor == 0 {
		floor = min(int64(st.Blocks)*st.Frsize/20, 1<<30)
	}
	return int64(st.Bavail) * st.Frsize, floor, nil
}

// step is where tests stop or fail.
func (c *Cache) step(name string) error {
	if c.opts.at == nil {
		return nil
	}
	return c.opts.at(name)
}
