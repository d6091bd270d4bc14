# Every task of this repository. Each target installs what it needs itself, on
# Debian or Ubuntu with Rust; nothing else has to be done by hand before.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

CARGO  ?= cargo
HOST   := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
STATIC  = target/$(HOST)/release/aufs-csi

# The tests make real mounts, so their programs run as root; cargo itself does
# not, and its files stay the caller's.
ifneq ($(shell id -u),0)
AS_ROOT := $(shell sudo -n true 2>/dev/null && echo 'sudo -n -E' || echo 'sudo -E')
RUNNER  := CARGO_TARGET_$(shell echo '$(HOST)' | tr 'a-z-' 'A-Z_')_RUNNER='$(AS_ROOT)'
endif

# The same inputs for every run of the property tests, so that a change can be
# told from luck. Other numbers explore.
export PROPTEST_RNG_SEED ?= 1

.PHONY: help
help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: try
try: ## Build, then show a volume of two pods from beginning to end
	scripts/setup.sh build
	scripts/try.sh

.PHONY: test
test: lint deny ## Everything that must pass before a commit is merged (mounts, as root)
	scripts/setup.sh test
	@[ "$$(id -u)" = 0 ] || command -v sudo >/dev/null || \
	    { echo 'test: the tests mount filesystems; run this as root, or install sudo' >&2; exit 77; }
	$(RUNNER) $(CARGO) test --locked

.PHONY: lint
lint: ## Formatting, clippy and the documentation's links
	scripts/setup.sh test
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --test aufs --test power --test soak -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items --features testing

.PHONY: deny
deny: ## Licences, sources and known vulnerabilities of the dependencies
	scripts/setup.sh build
	scripts/deny.sh

.PHONY: fuzz-smoke
fuzz-smoke: ## A fixed number of mutated inputs for every parser, on stable Rust
	scripts/setup.sh build
	$(CARGO) test --locked --test fuzz_smoke

.PHONY: bench
bench: ## Measure staging and mounting in both builds, beside other programs; fails on a missed aim
	scripts/setup.sh bench
	$(RUNNER) CARGO='$(CARGO)' scripts/bench.sh

.PHONY: test-isal
test-isal: ## The tests of decompression with the fastest decoder (feature isal)
	scripts/setup.sh isal
	$(RUNNER) $(CARGO) test --locked --features isal --lib --test fuzz_smoke decompress

.PHONY: e2e-aufs
e2e-aufs: ## The suite on real AUFS: make e2e-aufs AUFS_KERNEL=path/to/bzImage
	scripts/setup.sh build
	AUFS_KERNEL='$(AUFS_KERNEL)' e2e/aufs/run.sh

.PHONY: bench-aufs
bench-aufs: ## What pods cost on real AUFS beside overlayfs: make bench-aufs AUFS_KERNEL=path/to/bzImage
	scripts/setup.sh build
	AUFS_KERNEL='$(AUFS_KERNEL)' e2e/aufs/run.sh bench

.PHONY: sanity
sanity: release ## The CSI project's own tests against the released program (mounts, as root)
	scripts/setup.sh test
	e2e/sanity/run.sh build
	$(AS_ROOT) e2e/sanity/run.sh test $(STATIC)

.PHONY: admission
admission: ## The policy of manifests/admission on a real API server
	scripts/setup.sh chart
	e2e/admission/run.sh

.PHONY: chart
chart: release ## The chart: lint, tests of what it renders, alerts, dashboard, manifests (as root)
	scripts/setup.sh chart
	helm=$$(scripts/helm.sh) promtool=$$(scripts/promtool.sh); \
	    "$$helm" lint --strict charts/aufs-csi && \
	    (cd charts/tests && "$$promtool" test rules alerts.yaml) && \
	    (cd charts/tests && $(AS_ROOT) env HELM="$$helm" AUFS_CSI='$(abspath $(STATIC))' python3 -B -m unittest)
	scripts/manifests.sh --check
	$(AS_ROOT) scripts/reference.py --check $(STATIC)

.PHONY: reference
reference: release ## Write what docs/reference.md says of commands and metrics (as root)
	scripts/setup.sh chart
	$(AS_ROOT) scripts/reference.py $(STATIC)

.PHONY: manifests
manifests: ## Render manifests/ from the chart
	scripts/setup.sh chart
	scripts/manifests.sh

.PHONY: e2e-api
e2e-api: ## Chart, manifests and the documentation's YAML before a real API server (as root)
	scripts/setup.sh chart
	$(AS_ROOT) e2e/api/run.sh

.PHONY: e2e-node
e2e-node: release ## Pods on a real kubelet and API server on this machine (as root)
	E2E_DRIVER=$(STATIC) e2e/node/run.sh $(CASES)

.PHONY: e2e-chart
e2e-chart: release ## The same with the plugin from its image by the chart: install, upgrade, drain, uninstall (as root)
	scripts/setup.sh image
	E2E_INSTALL=chart E2E_DRIVER=$(STATIC) E2E_IMAGE=$$(IMAGE_PROGRAM=$(STATIC) scripts/image.sh) \
	    e2e/node/run.sh $(CASES)

.PHONY: e2e-kind
e2e-kind: release ## A cluster of two nodes by kind, where a Docker engine runs; KIND_NODE_IMAGE=…
	scripts/setup.sh image
	scripts/setup.sh chart
	archive=$$(IMAGE_PROGRAM=$(STATIC) scripts/image.sh); PROGRAM=$(abspath $(STATIC)) e2e/kind/run.sh "$$archive"

.PHONY: e2e-node-aufs
e2e-node-aufs: release ## The same on real AUFS: make e2e-node-aufs AUFS_KERNEL=path/to/bzImage
	AUFS_KERNEL='$(AUFS_KERNEL)' E2E_DRIVER=$(STATIC) e2e/node/vm.sh $(CASES)

.PHONY: e2e-chart-aufs
e2e-chart-aufs: release ## The chart on real AUFS: make e2e-chart-aufs AUFS_KERNEL=path/to/bzImage
	scripts/setup.sh image
	AUFS_KERNEL='$(AUFS_KERNEL)' E2E_INSTALL=chart E2E_DRIVER=$(STATIC) \
	    E2E_IMAGE=$$(IMAGE_PROGRAM=$(STATIC) scripts/image.sh) e2e/node/vm.sh $(CASES)

.PHONY: soak
soak: ## An hour of volumes, collection and kills on a disk that is nearly full (as root): make soak SOAK_SECONDS=120
	scripts/setup.sh build
	AUFS_CSI_SOAK_SECONDS='$(or $(SOAK_SECONDS),3600)' $(RUNNER) $(CARGO) test --locked --test soak

.PHONY: release
release: ## One static binary, in target/<triple>/release; ARCH=amd64|arm64 for another machine's
	scripts/setup.sh build
	CARGO='$(CARGO)' scripts/release.sh $(ARCH)

.PHONY: image
image: ## The container image, from scratch, as an archive in target/image; ARCH=amd64|arm64
	scripts/setup.sh image
	CARGO='$(CARGO)' scripts/image.sh $(ARCH)

.PHONY: test-image
test-image: ## That image: size, labels, files, SBOM, that it runs, and that a second build equals it
	scripts/setup.sh test
	scripts/setup.sh image
	archive=$$(CARGO='$(CARGO)' scripts/image.sh $(ARCH)); scripts/test-image.sh "$$archive"

.PHONY: clean
clean: ## Remove what was built, the tools of the checks included
	$(CARGO) clean
	rm -rf .cache
