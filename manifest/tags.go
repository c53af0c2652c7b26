package manifest

// Tags that this package and the tools around it give a meaning. Others are
// the packer's own.
const (
	// TagCodec is the codec of all blocks; absent means snappy.
	TagCodec = "codec"
	// TagBlockSize is the length of every block but a file's last, in bytes;
	// absent means block.Size, and so does every value that can be read.
	TagBlockSize = "block-size"
	// TagKind says what the tree is: modules, firmware or tree.
	TagKind = "kind"
	// TagKver is the kernel version that a tree of modules belongs to.
	TagKver = "kver"
	// TagCreated is the time of packing in RFC 3339, only if it was given.
	TagCreated = "created"
	// TagGenerator names the program that packed.
	TagGenerator = "generator"
)
