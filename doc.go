// Package overmount holds the program's packages and nothing itself.
//
// Overmount ships kernel modules and firmware to machines that boot from the
// network. A build host packs a file tree into a flist: a small manifest (a
// SQLite file, .fl) and content-addressed, encrypted objects in a store. A
// booting machine mounts the flist with FUSE, and fetches content when it is
// read.
//
// The packages stand on floors, and import only what is below them.
// layers_test.go holds the map.
//
//	floor 5  cmd/overmount     signals and exit code
//	         cmd/overmount-boot  the same, less what no machine needs that boots
//	         internal/demo     what "make demo" runs
//	floor 4  internal/cli      the command line, one file for each verb
//	floor 3  pack              a file tree to objects and a manifest, and back
//	         verify            what is wrong with a packed tree
//	         fusefs            a tree as a FUSE mount
//	         modload           modules into the kernel, until all devices have theirs
//	         boot              what a machine does on its way up, and when
//	         initramfs         the image that a machine starts from
//	         prefetch          content of a mount, fetched before it is asked for
//	floor 2  tree              manifest + store = files, without a kernel
//	         tree/treetest     small trees, packed for tests
//	         bootpack          what a boot read, in one piece for the next one
//	         cache             a bounded, verified cache on disk before a store
//	         gc                objects that no manifest names
//	         origin            manifests from where they are published, and kept
//	         coldplug          what the hardware of a machine needs
//	         sysroot           modules and firmware in the tree of a system
//	         store/httpstore   a store behind HTTP
//	         internal/webdir   files below a URL
//	         store/s3store     a store in an S3 bucket
//	         store/zdbstore    a store in a 0-db
//	         store/storetest   the tests of every store, and servers that fail
//	floor 1  manifest          the .fl file: create, open, edit
//	         store             interfaces, directory, memory, wrappers
//	         depmod            the indexes of a tree of kernel modules
//	         deb               Debian's packages and repositories, as a tree
//	         apk               Alpine's repositories and packages, as a tree
//	         firmware          where the kernel finds a firmware file, and which package has it
//	         signature         who made a manifest, of what, and which is newer
//	         kmod/kmodtest     kernel modules made for tests
//	         deb/debtest       packages and repositories of Debian, made for tests
//	         internal/httpclient  requests whose every wait has a limit
//	floor 0  block             one block: seal, open, codecs
//	         kmod              facts about kernel modules, indexes, what modprobe would do
//	         archive           the files of packages, unpacked, as a tree
//	         archive/archivetest  what a tree of a stranger must be
//	         apk/apktest       packages and repositories of Alpine, made for tests
//	         internal/atomicfile  files that appear whole or not at all
//	         internal/cpio        archives that the kernel unpacks
//	         internal/decompress  gzip, xz, zstd and others of strangers, as streams
//	         internal/flight      work that those who want it share
//	         internal/linequeue   a log that holds up nobody who writes it
//	         internal/mounts      what is mounted where
//	         internal/notify      telling the service manager
//	         internal/overlay     an overlayfs over a mount
//	         internal/pulse       signs that an answer is on its way
//	         internal/refetch  a file over a line, and again if that fails
//	         internal/testenv     what tests need of the machine
//	cellar   internal/xz       a decoder of xz and lzma
//	         internal/pathfs   trees of files that are in no file system of the kernel
//
// bench measures several of them against plain tools, test/vm boots virtual
// machines, and contrib has the files for init systems. docs/format.md defines the
// format, docs/decisions.md gives the reasons.
package overmount
