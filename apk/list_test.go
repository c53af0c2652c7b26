package apk_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"overmount/apk"
	"overmount/apk/apktest"
	"overmount/archive"
)

// TestList lists packages, which may have the same paths, and keeps nothing of them.
// They are verified all the same.
func TestList(t *testing.T) {
	s := sha256Signer()
	one, two := sub("linux-firmware-one", s), sub("linux-firmware-two", s)
	one.Files = []apktest.Entry{{Name: "lib/"}, {Name: "lib/firmware/"}, {Name: "lib/firmware/a.bin", Content: []byte("a")}, {Name: "lib/firmware/b.bin", Symlink: "a.bin"}, {Name: "usr/share/doc", Content: []byte("doc")}}
	two.Files = []apktest.Entry{{Name: "lib/firmware/a.bin", Content: []byte("other")}}
	dir := t.TempDir()
	apktest.Repository(t, dir, s, one, two)
	t.Setenv("TMPDIR", "/nonexistent") // a spool would be there
	repo := openDir(t, dir, keysOf(t, s))
	done := 0
	list, err := repo.List(t.Context(), repo.Index.Packages, &apk.Options{
		Spool: archive.Options{Map: archive.Below("lib/firmware")}, Done: func(apk.Unpacked) { done++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range list {
		for _, f := range l.Files {
			got = append(got, strings.TrimSpace(l.String()+" "+f.Name+" "+f.Link))
		}
	}
	want := []string{"linux-firmware-one-" + fwVersion + " .", "linux-firmware-one-" + fwVersion + " a.bin", "linux-firmware-one-" + fwVersion + " b.bin a.bin", "linux-firmware-two-" + fwVersion + " a.bin"}
	if diff := cmp.Diff(want, got); diff != "" || done != 2 {
		t.Errorf("List of %d packages (-want +got):\n%s", done, diff)
	}

	// Swapped for another one that is signed, too.
	two.Files[0].Content = []byte("swapped")
	apktest.Write(t, dir+"/x86_64/"+two.File(), two.Build(t))
	if list, err := repo.List(t.Context(), repo.Index.Packages, nil); !errors.Is(err, apk.ErrUntrusted) || !strings.Contains(err.Error(), two.File()) || list != nil {
		t.Errorf("of a swapped package, List = %v, %v, want ErrUntrusted", list, err)
	}
}
