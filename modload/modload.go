// Package modload loads kernel modules, and goes on until the devices of a machine
// have what they need.
//
// A [Loader] loads the modules of a [coldplug.Plan], each as soon as what it needs
// is there, many at a time: most of the time goes by with waiting, for the files
// of a mount over a network, or for a device. [Coldplug] plans for all devices,
// loads, and does the same for those devices that appear because of it, until
// nothing new does. Neither needs udev, modprobe or a shell, but for the commands
// that modprobe.d may name. [Rebind] is for devices whose drivers were loaded, did not
// find what they want, such as firmware, and have given up.
//
// The package looks at the kernel's events through a netlink socket, which has
// nothing to do with the network.
package modload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"overmount/coldplug"
	"overmount/kmod"
)

// Options are the options of [New]. Nil and zero mean the defaults.
type Options struct {
	// Parallel is how many modules are being loaded at a time, beside those that
	// wait for what they need. The default is 16.
	Parallel int
	// Insert loads one module. The default is the kernel's.
	Insert func(ctx context.Context, a kmod.Action) error
	// Logger gets a line for each module that is not loaded. Nil means nowhere.
	Logger *slog.Logger
}

// A Loader loads modules.
type Loader struct {
	tree  *kmod.Tree
	opts  Options
	slots chan struct{}

	mu    sync.Mutex
	tasks map[string]*task // by the module's name
}

// A task is a module that is being loaded, or was.
type task struct {
	done chan struct{}
	Result
}

// A Result is what became of a module.
type Result struct {
	Module string
	Took   time.Duration // from its turn on, without the wait for what it needs
	Err    error
}

// Declined reports whether the module, or one that it needs, has found that the
// machine has nothing for it. That is usual: which of the drivers for a processor's
// clock is the right one, for example, each of them finds out when it is loaded.
func (r *Result) Declined() bool { return errors.Is(r.Err, unix.ENODEV) }

// New returns a Loader for the modules in a directory lib/modules/KVER, which t
// knows.
func New(dir string, t *kmod.Tree, o *Options) *Loader {
	l := &Loader{tree: t, tasks: map[string]*task{}}
	if o != nil {
		l.opts = *o
	}
	if l.opts.Parallel <= 0 {
		l.opts.Parallel = 16
	}
	if l.opts.Insert == nil {
		l.opts.Insert = kernel(dir).do
	}
	if l.opts.Logger == nil {
		l.opts.Logger = slog.New(slog.DiscardHandler)
	}
	l.slots = make(chan struct{}, l.opts.Parallel)
	return l
}

// ErrNeeds says that a module was not tried, because one that it needs has failed.
var ErrNeeds = errors.New("a module that it needs has failed")

// Load starts to load the modules of a plan, and returns a channel that is closed
// when all of them are loaded or have failed. A module that a former plan had is
// not loaded again. When the context ends, those that have not begun fail; one
// that has begun is in the kernel's hands.
func (l *Loader) Load(ctx context.Context, p *coldplug.Plan) <-chan struct{} {
	l.mu.Lock()
	earlier := make([][]*task, len(p.Modules))
	for i, m := range p.Modules {
		earlier[i] = l.earlier(m.Module)
	}
	tasks, fresh := l.enter(p)
	l.mu.Unlock()
	for _, i := range fresh {
		m := p.Modules[i]
		go l.run(ctx, tasks[i], m, append(earlier[i], pick(tasks, m.Needs)...), pick(tasks, m.After))
	}
	all := make(chan struct{})
	go func() {
		defer close(all)
		for _, t := range tasks {
			<-t.done
		}
	}()
	return all
}

// enter makes the tasks of a plan, and says which of them are new.
func (l *Loader) enter(p *coldplug.Plan) (tasks []*task, fresh []int) {
	for i, m := range p.Modules {
		t := l.tasks[m.Module]
		if t == nil {
			t = &task{done: make(chan struct{}), Result: Result{Module: m.Module}}
			l.tasks[m.Module] = t
			fresh = append(fresh, i)
		}
		tasks = append(tasks, t)
	}
	return tasks, fresh
}

// earlier returns the tasks of modules that a module needs, and that a plan before
// its own had: they may not be done.
func (l *Loader) earlier(module string) []*task {
	_, deps, err := l.tree.Dep(module)
	if err != nil {
		return nil // the kernel will say what is missing
	}
	var tasks []*task
	for _, file := range deps {
		if t := l.tasks[kmod.Name(file)]; t != nil {
			tasks = append(tasks, t)
		}
	}
	return tasks
}

func pick(tasks []*task, which []int) []*task {
	var some []*task
	for _, i := range which {
		some = append(some, tasks[i])
	}
	return some
}

// run loads one module when its time has come.
func (l *Loader) run(ctx context.Context, t *task, m coldplug.Module, needs, after []*task) {
	defer close(t.done)
	for _, other := range after {
		<-other.done
	}
	for _, other := range needs {
		<-other.done
		if other.Err != nil && t.Err == nil {
			t.Err = fmt.Errorf("%w: %s: %w", ErrNeeds, other.Module, other.Err)
		}
	}
	if t.Err == nil {
		t.Took, t.Err = l.insert(ctx, m.Action)
	}
	if t.Err != nil && ctx.Err() == nil {
		level := slog.LevelWarn
		if t.Declined() {
			level = slog.LevelInfo
		}
		l.opts.Logger.Log(ctx, level, "module not loaded", "module", m.Module, "error", t.Err)
	}
}

func (l *Loader) insert(ctx context.Context, a kmod.Action) (time.Duration, error) {
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	start := time.Now()
	err := l.opts.Insert(ctx, a)
	return time.Since(start), err
}

// Results returns what became of the modules that are done, in no order.
func (l *Loader) Results() []Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []Result
	for _, t := range l.tasks {
		select {
		case <-t.done:
			all = append(all, t.Result)
		default:
		}
	}
	return all
}

// Waiting returns the modules that are not done.
func (l *Loader) Waiting() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for name, t := range l.tasks {
		select {
		case <-t.done:
		default:
			names = append(names, name)
		}
	}
	return names
}

// kernel loads from a directory lib/modules/KVER into the running kernel.
type kernel string

func (k kernel) do(ctx context.Context, a kmod.Action) error {
	switch a.Kind {
	case kmod.Insmod:
		file := a.Path
		if !filepath.IsAbs(file) {
			file = filepath.Join(string(k), file)
		}
		return Insert(file, a.Options)
	case kmod.Install:
		// modprobe.d(5): the options are in CMDLINE_OPTS.
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", a.Command)
		cmd.Env = append(os.Environ(), "MODPROBE_MODULE="+a.Module, "CMDLINE_OPTS="+a.Options)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("command of modprobe.d: %w: %.300s", err, out)
		}
	}
	return nil
}

// Insert loads the module in a file. One that is loaded already is no error. A
// compressed file is given to the kernel as it is, if the kernel can read it so.
func Insert(file, options string) error {
	f, err := open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if filepath.Ext(file) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(int(f.Fd()), options, flags)
	if flags != 0 && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
		err = insertPlain(f, options)
	}
	return inserted(file, err)
}

// open opens a file for reading, past Go's poller. The poller asks the file system
// whether a file can be waited for, and keeps a processor until it is answered: if
// this process serves the file system, and has no other processor, that is never.
func open(file string) (*os.File, error) {
	for {
		fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), file), nil
		case err != unix.EINTR:
			return nil, &fs.PathError{Op: "open", Path: file, Err: err}
		}
	}
}

// insertPlain is for kernels that cannot decompress.
func insertPlain(f *os.File, options string) error {
	file, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	image, err := kmod.Plain(file)
	if err != nil {
		return err
	}
	return unix.InitModule(image, options)
}

// inserted says what the kernel's answer means.
func inserted(file string, err error) error {
	switch {
	case err == nil, errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.ENOEXEC):
		err = fmt.Errorf("the kernel does not take it, for its version or format: %w", err)
	case errors.Is(err, unix.ENOKEY):
		err = fmt.Errorf("it is not signed with a key that the kernel knows: %w", err)
	case errors.Is(err, unix.ENOENT):
		err = fmt.Errorf("it asks for a symbol that the kernel does not have, or the kernel has no room for it: %w", err)
	case errors.Is(err, unix.ENODEV):
		err = fmt.Errorf("it finds nothing here that it is for: %w", err)
	case errors.Is(err, unix.EIO):
		err = fmt.Errorf("it cannot be read: %w", err)
	}
	return fmt.Errorf("load %s: %w", file, err)
}

// Run does what modprobe would do for a name ([kmod.Resolver.Resolve]), one action
// after the other. It goes on after one that nothing else requires.
func Run(ctx context.Context, dir string, actions []kmod.Action) error {
	for _, a := range actions {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := kernel(dir).do(ctx, a); err != nil && a.Required {
			return err
		}
	}
	return nil
}
