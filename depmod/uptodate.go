package depmod

import (
	"errors"
	"fmt"
	"io/fs"
)

// UpToDate reports whether no module of a directory is newer than its
// modules.dep, in whole seconds, as depmod -A has it, and otherwise which one
// is; newer is "modules.dep" if that is missing. It opens no file.
//
// Like kmod it sees no module that went away or came with an old time, and no
// other change.
func UpToDate(fsys fs.FS) (ok bool, newer string, err error) {
	dep, err := fs.Stat(fsys, "modules.dep")
	if errors.Is(err, fs.ErrNotExist) {
		return false, "modules.dep", nil
	}
	if err != nil {
		return false, "", fmt.Errorf("read modules.dep: %w", pathless(err))
	}
	w := &walker{fsys: fsys}
	w.failed = func(name string, cause error) bool {
		err = fmt.Errorf("read %s: %w", name, pathless(cause))
		return false
	}
	w.found = func(name string, e fs.DirEntry, info fs.FileInfo) bool {
		if info == nil {
			var cause error
			if info, cause = e.Info(); cause != nil {
				return w.failed(name, cause)
			}
		}
		if info.ModTime().Unix() > dep.ModTime().Unix() {
			newer = name
		}
		return newer == ""
	}
	w.run()
	return newer == "" && err == nil, newer, err
}
