package vm_test

import (
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"overmount/block"
	"overmount/internal/testenv"
	"overmount/manifest"
	"overmount/pack"
	"overmount/signature"
	"overmount/store"
	"overmount/store/storetest"
	"overmount/test/vm"
)

// A host is what the guest finds on the network: a web server with two manifests,
// signed, and their objects, which takes the guest's reports, counts, and fails as
// told.
type host struct {
	t      *testing.T
	dir    string // of the files at the top of the server
	server *storetest.HTTPServer
	addr   string // where the guest reaches the server, as 127.0.0.1:80
	isFar  bool   // there is a slow line before it

	key               signature.PrivateKey
	modules, firmware *manifest.Manifest
	packed            pack.Summary // of the modules

	mu     sync.Mutex
	began  int               // how many requests there had been
	posts  map[string][]byte // from the guest
	asked  map[string]int    // how many requests there had been by then
	faults map[block.ID]storetest.HTTPFault
}

// newHost packs a kernel's modules and a directory of firmware, and serves both.
func newHost(t *testing.T, modules, firmware string) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir()}
	h.begin()
	objects := store.NewDir(filepath.Join(h.dir, "objects"))
	h.server = storetest.NewHTTPServer(t, store.Sharded, objects, &storetest.HTTPOptions{Base: "/objects", Missing: h.other})
	h.server.Always(h.answer)
	h.addr = strings.TrimSuffix(strings.TrimPrefix(h.server.URL, "http://"), "/objects")
	src, err := pack.PrepareModules(t.Context(), pack.Dir(modules), pack.ModulesOptions{Name: filepath.Base(modules)})
	if err != nil {
		t.Fatal(err)
	}
	if h.key, err = signature.GenerateKey(); err != nil {
		t.Fatal(err)
	}
	h.modules, h.packed = h.pack(objects, "modules-"+src.Kver+".fl", src.FS, &pack.Options{
		Codec: block.Zstd, Inline: pack.IsModuleIndex, Modules: src.Modules,
		Tags: map[string]string{manifest.TagKind: "modules", manifest.TagKver: src.Kver},
	})
	h.firmware, _ = h.pack(objects, "firmware.fl", pack.Dir(firmware), &pack.Options{Codec: block.Zstd, Tags: map[string]string{manifest.TagKind: "firmware"}})
	return h
}

// farther puts a line between the server and the guests, from now on: in the place
// where they look for it, and where the manifests have the objects.
func (h *host) farther(rtt time.Duration) {
	h.t.Helper()
	h.isFar, h.addr = true, slowLine(h.t, h.addr, rtt)
	for _, name := range []string{h.manifest(), "firmware.fl"} {
		file := filepath.Join(h.dir, name)
		err := manifest.Edit(h.t.Context(), file, func(e *manifest.Editor) error { return e.SetRoutes(h.routes()) })
		if err != nil {
			h.t.Fatal(err)
		}
		m, err := manifest.Open(h.t.Context(), file)
		if err != nil {
			h.t.Fatal(err)
		}
		h.sign(file, m)
	}
}

// routes say that all objects are at this server.
func (h *host) routes() []manifest.Route {
	return []manifest.Route{{First: 0, Last: 255, URL: h.url() + "/objects"}}
}

// begin forgets what the guests before have asked for and said, and makes the server
// work.
func (h *host) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.server != nil {
		h.began = len(h.server.Requests())
	}
	h.posts, h.asked, h.faults = map[string][]byte{}, map[string]int{}, map[block.ID]storetest.HTTPFault{}
}

// url is the address of the server for the guest.
func (h *host) url() string {
	return "http://" + strings.Replace(h.addr, "127.0.0.1", vm.HostAddr, 1)
}

// pack packs a tree whose objects the guest finds at this server.
func (h *host) pack(objects store.Writer, name string, src fs.FS, o *pack.Options) (*manifest.Manifest, pack.Summary) {
	h.t.Helper()
	o.Routes = h.routes()
	file := filepath.Join(h.dir, name)
	sum, err := pack.Run(h.t.Context(), src, objects, file, o)
	if err != nil {
		h.t.Fatal(err)
	}
	m, err := manifest.Open(h.t.Context(), file)
	if err != nil {
		h.t.Fatal(err)
	}
	h.sign(file, m)
	return m, sum
}

// serial is that of all signatures.
const serial = 3

func (h *host) sign(file string, m *manifest.Manifest) {
	h.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		h.t.Fatal(err)
	}
	claims := signature.Claims{Kind: m.Tag(manifest.TagKind), Kver: m.Tag(manifest.TagKver), Serial: serial}
	sig, err := signature.Sign(h.key, bytes.NewReader(data), claims)
	if err != nil {
		h.t.Fatal(err)
	}
	vm.WriteFile(h.t, file+signature.Suffix, sig)
}

// answer answers requests for objects, and hands on all others.
func (h *host) answer(w http.ResponseWriter, r *http.Request, id block.ID, object []byte) {
	h.mu.Lock()
	fault := h.faults[id]
	h.mu.Unlock()
	switch {
	case object == nil:
		h.other(w, r, id, nil)
	case fault != nil:
		fault(w, r, id, object)
	default:
		storetest.ServeObject(w, r, id, object)
	}
}

// other serves the manifests, and takes what the guest posts.
func (h *host) other(w http.ResponseWriter, r *http.Request, _ block.ID, _ []byte) {
	if r.Method != http.MethodPost {
		http.ServeFileFS(w, r, os.DirFS(h.dir), strings.TrimPrefix(r.URL.Path, "/"))
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		h.t.Error(err)
		return
	}
	asked := len(h.server.Requests())
	h.mu.Lock()
	defer h.mu.Unlock()
	h.posts[strings.TrimPrefix(r.URL.Path, "/")] = body
	h.asked[strings.TrimPrefix(r.URL.Path, "/")] = asked
}

// post returns what the guest has posted under a name.
func (h *host) post(name string) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.posts[name]
}

// requests returns what the guest has asked for.
func (h *host) requests() []storetest.HTTPRequest {
	h.mu.Lock()
	began := h.began
	h.mu.Unlock()
	return h.server.Requests()[began:]
}

// requestsUntil returns what the guest had asked for when it posted under a name.
func (h *host) requestsUntil(name string) []storetest.HTTPRequest {
	h.mu.Lock()
	began, end := h.began, h.asked[name]
	h.mu.Unlock()
	return h.server.Requests()[began:max(began, end)]
}

// fail makes the answers for the objects of a module fail.
func (h *host) fail(module string, fault storetest.HTTPFault) {
	h.t.Helper()
	for _, id := range h.objects(h.modules, h.path(module)) {
		h.mu.Lock()
		h.faults[id] = fault
		h.mu.Unlock()
	}
}

// path returns the path of a module.
func (h *host) path(module string) string {
	h.t.Helper()
	for ino, m := range h.modules.Modules() {
		if m.Name == module {
			return h.modules.Path(ino)
		}
	}
	h.t.Fatalf("the kernel has no module %s", module)
	return ""
}

func (h *host) objects(m *manifest.Manifest, file string) []block.ID {
	h.t.Helper()
	ino, err := m.Find(strings.TrimPrefix(file, "/"))
	if err != nil {
		h.t.Fatal(err)
	}
	var ids []block.ID
	for _, b := range m.Blocks(ino) {
		ids = append(ids, b.ID)
	}
	return ids
}

// fetched returns how often each object was asked for.
func (h *host) fetched() map[block.ID]int { return objectsOf(h.requests()) }

// objectsOf returns how often requests were for each object.
func objectsOf(requests []storetest.HTTPRequest) map[block.ID]int {
	n := map[block.ID]int{}
	for _, r := range requests {
		if id, err := block.ParseID(r.Path[strings.LastIndex(r.Path, "/")+1:]); err == nil {
			n[id]++
		}
	}
	return n
}

// manifest is the name of the manifest of modules.
func (h *host) manifest() string { return "modules-" + h.modules.Tag(manifest.TagKver) + ".fl" }

// known returns the names of all that the server has.
func (h *host) known() map[string]bool {
	names := map[string]bool{"booted": true, "capture": true, "later": true, "report": true}
	for _, name := range []string{h.manifest(), "firmware.fl"} {
		names[name], names[name+signature.Suffix] = true, true
	}
	for _, m := range []*manifest.Manifest{h.modules, h.firmware} {
		for _, b := range m.AllBlocks() {
			names[b.ID.String()] = true
		}
	}
	return names
}

// files returns the paths of a manifest of which an object was asked for.
func (h *host) files(m *manifest.Manifest) map[string]int {
	fetched := h.fetched()
	files := map[string]int{}
	for name, ino := range m.Walk(manifest.Root) {
		for _, b := range m.Blocks(ino) {
			if n := fetched[b.ID]; n > 0 {
				files[name] = max(files[name], n)
			}
		}
	}
	return files
}

// overmount builds the programs: that which makes images, and beside it that which
// they carry.
func overmount(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	testenv.Build(t, dir, "-s -w", "overmount/cmd/overmount", "overmount/cmd/overmount-boot")
	return filepath.Join(dir, "overmount")
}
