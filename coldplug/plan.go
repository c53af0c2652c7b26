package coldplug

import "overmount/kmod"

// A Plan is what a number of devices need, and what came of each modalias. All
// numbers in it are positions in its own lists.
type Plan struct {
	// Modules are in the order of loading: each after all that it depends on. No
	// module is there twice, and none that the kernel has or an earlier plan of the
	// same Planner had.
	Modules []Module
	// Firmware are the files that the modules declare, in the order of the modules,
	// each once.
	Firmware []Firmware
	// Omitted are declared files that are not in Firmware, and why.
	Omitted []Omitted
	// Requests are all modaliases in the order of planning.
	Requests []Request
	// Problems are what could not be found out, such as the size of a module whose
	// file is missing. The rest of the plan is right without it.
	Problems []error
}

// A Module is a step of the plan.
type Module struct {
	// Action says what to do: load a file with parameters, or run a command in its
	// place. Its Kind is Insmod or Install.
	kmod.Action
	// Size is that of the file as it is in the tree, in bytes; 0 for a command, and
	// for a file outside of the tree.
	Size int64

	Reason Reason // the best of those that hold
	// CatchAll says that the module is there only because of patterns that leave
	// open which device of a kind it is, or for such a module. Another may know the
	// device better, so who fetches takes these last.
	CatchAll bool
	// Requests are those that ask for the module, directly or not, in their order.
	Requests []int

	// Needs are the modules that must be loaded before this one, at any distance:
	// without them it cannot be loaded. What is not there is in the kernel already,
	// or was in an earlier plan.
	Needs []int
	// After are the modules that softdeps want before this one. Who loads in
	// parallel waits for them, and goes on if they fail.
	After []int
}

// A Reason is why a module is in a plan.
type Reason int

const (
	Direct     Reason = iota // a device asks for it
	Dependency               // another module needs it
	Soft                     // another module wants it, or what is wanted needs it
)

func (r Reason) String() string {
	switch r {
	case Direct:
		return "direct"
	case Dependency:
		return "dependency"
	case Soft:
	}
	return "softdep"
}

// Firmware is a file that some driver may ask for.
type Firmware struct {
	Name    string // as it is declared: maybe a pattern, without .zst or .xz
	Path    string // of the file in the tree of firmware
	Size    int64  // of the file as it is there, in bytes
	Modules []int  // that declare it
}

// Omitted are files that a module declares and the plan leaves out.
type Omitted struct {
	Module int
	Why    Omission
	Names  []string // as they are declared
	Files  int      // that are there
	Bytes  int64    // that these have
}

// An Omission is why firmware is left out.
type Omission int

const (
	// OverCap are all files of a module that declares more than the cap lets by.
	// Such a module asks for a few of them, and which is not known here.
	OverCap Omission = iota
	// NotThere are names for which there is no file.
	NotThere
)

func (o Omission) String() string {
	if o == OverCap {
		return "over the cap"
	}
	return "not there"
}

// A Request is a modalias, and what came of it.
type Request struct {
	Modalias string
	Devices  []string // paths of those that have it
	// Matches are the modules that the modalias stands for, in modprobe's order.
	// There is none for an unresolved one: no module is for the device, or none is
	// needed.
	Matches []Match
}

// A Match is a module that a modalias stands for.
type Match struct {
	Module   string
	Outcome  Outcome
	CatchAll bool // the pattern leaves open which device of a kind it is
}

// An Outcome is what became of a match.
type Outcome int

const (
	Planned     Outcome = iota // it is in this plan
	Known                      // it is in the kernel, part of it, or in an earlier plan
	Blacklisted                // modprobe.d or modprobe.blacklist= forbids it
	Refused                    // module_blacklist= forbids it, or a module that it needs
	Missing                    // there is no such module, or the indexes are damaged there
)

func (o Outcome) String() string {
	return [...]string{"planned", "known", "blacklisted", "refused", "missing"}[o]
}

// ModuleBytes returns the size of all modules.
func (p *Plan) ModuleBytes() (n int64) {
	for i := range p.Modules {
		n += p.Modules[i].Size
	}
	return n
}

// FirmwareBytes returns the size of all firmware files.
func (p *Plan) FirmwareBytes() (n int64) {
	for _, f := range p.Firmware {
		n += f.Size
	}
	return n
}

// Unresolved returns the requests that stand for no module.
func (p *Plan) Unresolved() []Request {
	var all []Request
	for _, r := range p.Requests {
		if len(r.Matches) == 0 {
			all = append(all, r)
		}
	}
	return all
}
