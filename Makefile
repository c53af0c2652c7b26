# The targets that people and CI use. "make" alone lists them.
#
# Whatever a target needs and does not find it installs (scripts/install-tools),
# Go included.

GO := scripts/go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 5s
FULL_FUZZTIME ?= 2m

# What the tests and the demo run beside our own programs.
TOOLS := go ca-certificates kmod sqlite3 zstd xz-utils bzip2 attr diffutils redis-server minisign busybox-static systemd util-linux \
	nginx curl openssl qemu-system-x86 udev cpio gnupg gpgv
ifneq ($(shell id -u),0)
TOOLS += fuse3
endif

# The race detector needs C; and what takes minutes under it runs without.
RACE_TOOLS := gcc libc6-dev
RACE_SKIP := /(fusefs|bench|internal/demo|internal/cli|test/vm)$$

# The environment of tests that work on the modules of real kernels, and compare
# with kmod: beside this host's architecture those of KERNEL_ARCHS.
KERNEL_ARCHS := s390x
FIRMWARE_DEBS :=
LARGE_DEBS := --large
KERNEL = OVERMOUNT_TEST_KERNEL="$$(scripts/kernel-tree --package)" \
	OVERMOUNT_TEST_KERNELS="$$(for arch in $(KERNEL_ARCHS); do scripts/kernel-tree --arch $$arch || exit; done | paste -sd :)" \
	OVERMOUNT_TEST_KMOD30="$$(scripts/kmod-of bookworm)" OVERMOUNT_TEST_KMOD34="$$(scripts/kmod-of trixie)" \
	OVERMOUNT_TEST_VERSITYGW="$$(scripts/versitygw)" OVERMOUNT_TEST_DEBS="$$(scripts/firmware-debs $(FIRMWARE_DEBS))" \
	OVERMOUNT_TEST_FIRMWARE="$$(scripts/firmware-debs $(LARGE_DEBS))"

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

.PHONY: build
build: tools-go ## build bin/overmount, and bin/overmount-boot for machines that boot
	CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/overmount ./cmd/overmount-boot

.PHONY: demo
demo: tools build ## pack, serve, mount and use a real kernel's modules, and show what crossed the wire
	@CGO_ENABLED=0 $(GO) build -buildvcs=false -o bin/demo ./internal/demo
	@modules=$$(scripts/kernel-tree --modules) && exec bin/demo bin/overmount "$$modules"

.PHONY: test
test: tools tools-race ## run all tests, fuzz targets for FUZZTIME each (5s)
	@echo '== tests with the race detector'
	env -u REQUIRE_TOOLS CGO_ENABLED=1 $(GO) test -race $$($(GO) list ./... | grep -v -E '$(RACE_SKIP)')
	@echo '== the mount on one processor'
	$(KERNEL) GOMAXPROCS=1 $(GO) test -count=1 -timeout 5m ./fusefs
	@echo '== fuzz targets, $(FUZZTIME) each'
	scripts/fuzz $(FUZZTIME)
	@echo '== all tests'
	$(KERNEL) CGO_ENABLED=0 $(GO) test -timeout 20m ./...

.PHONY: test-full
test-full: KERNEL_ARCHS := s390x armhf arm64
test-full: FIRMWARE_DEBS := --all
test-full: LARGE_DEBS := --all
test-full: KERNEL += OVERMOUNT_TEST_ZINIT="$$(scripts/zinit)" OVERMOUNT_TEST_GARAGE="$$(scripts/garage)"
test-full: tools tools-race ## like test, with all under the race detector, more kernels, a real Garage, longer fuzzing
	$(KERNEL) CGO_ENABLED=1 $(GO) test -count=1 -race -timeout 60m $$($(GO) list ./... | grep -v '/test/vm$$')
	$(KERNEL) OVERMOUNT_TEST_VM=all CGO_ENABLED=0 $(GO) test -count=1 -timeout 30m ./test/vm
	$(KERNEL) OVERMOUNT_TEST_LONG=1 CGO_ENABLED=0 $(GO) test -count=1 -run 'Outage|Real' ./internal/cli ./store/httpstore ./deb
	$(MAKE) test FUZZTIME=$(FULL_FUZZTIME) KERNEL_ARCHS="$(KERNEL_ARCHS)"

.PHONY: fuzz
fuzz: tools-go ## run the fuzz targets for FUZZTIME each
	scripts/fuzz $(FUZZTIME)

.PHONY: bench
bench: tools ## run the benchmarks
	$(KERNEL) CGO_ENABLED=0 $(GO) test -run '^$$' -bench . -benchmem -timeout 60m ./...

# BOOTS is how many boots of each kind.
BOOTS ?= 1
.PHONY: bench-boot
bench-boot: tools tools-boot ## time boots of a virtual machine, over lines of several lengths (20 minutes)
	@mkdir -p bin
	$(KERNEL) REQUIRE_TOOLS=1 CGO_ENABLED=0 OVERMOUNT_BENCH_BOOT=$(BOOTS) OVERMOUNT_BENCH_OUT="$(CURDIR)/bin" \
		$(GO) test -count=1 -timeout 6h -run '^TestBootTimes$$' ./test/vm
	@cat bin/bench-boot.md

.PHONY: lint
lint: tools-go ## gofmt, go vet, and golangci-lint
	scripts/lint

.PHONY: clean
clean: ## remove what was built here
	rm -rf bin .cache

.PHONY: tools tools-go tools-race tools-boot
tools:
	@scripts/install-tools $(TOOLS)
tools-go:
	@scripts/install-tools go ca-certificates
tools-race:
	@scripts/install-tools $(RACE_TOOLS)
tools-boot:
	@scripts/install-tools iproute2
