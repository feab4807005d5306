# The whole build. `make help` lists the targets; CI runs nothing but these.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory

GO ?= go
# VERSION is what `dals-host version` prints.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# FUZZTIME is how long each fuzz target runs.
FUZZTIME ?= 10s
# LINT_BUF=1 builds buf for `make lint` where it is not cached yet (minutes).
LINT_BUF ?=

# The same source gives the same bytes on any machine: a plugin's digest is its
# identity. -buildvcs=false because the repository's state is no input.
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false
LDFLAGS := -s -w -buildid=
TOOL := scripts/tool.sh
# What `make generate` writes, and nothing else.
GENERATED := 'sdk/proto/*.pb.go' 'host/registry/sqlcgen/*.go'

.PHONY: help
help: ## Print this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## Build the host and its shim: bin/dals-host, bin/containerd-shim-dals-v1
	$(BUILD) -ldflags '$(LDFLAGS) -X main.version=$(VERSION)' -o bin/dals-host ./cmd/dals-host
	$(BUILD) -ldflags '$(LDFLAGS)' -o bin/containerd-shim-dals-v1 ./cmd/containerd-shim-dals-v1

.PHONY: plugins
plugins: ## Build the worker types: bin/plugins/dals-worker-<type>
	@for dir in plugins/*/; do type=$$(basename "$$dir"); \
		(set -x; $(BUILD) -ldflags '$(LDFLAGS)' -o "bin/plugins/dals-worker-$$type" "./plugins/$$type"); \
	done

.PHONY: demo
demo: build plugins ## Show the whole main job, from dropped plugins to a verified record
	@scripts/demo.sh

.PHONY: test
test: ## Install what the tests need (Debian, root), build, vet and test everything
	@if [ "$$(id -u)" -eq 0 ]; then $(MAKE) test-as-root; else scripts/as-root.sh $(MAKE) test; fi

.PHONY: test-as-root
test-as-root:
	@scripts/setup-containerd.sh cc=gcc,libc6-dev strace=strace mkfs.ext4=e2fsprogs
	@$(MAKE) build plugins
	$(GO) vet ./...
	@mkdir -p .tmp
	DALS_CRASH_TABLE='$(CURDIR)/.tmp/crash.txt' CGO_ENABLED=1 $(GO) test -race -shuffle=on -count=1 -timeout=40m ./... | tee .tmp/test.log
	@grep -q '^ok .*s$$' .tmp/test.log || { echo 'make test: no test ran' >&2; exit 1; }
	@cat .tmp/crash.txt

.PHONY: crash
crash: ## Kill the host at every failpoint, and print the table
	@scripts/setup-containerd.sh strace=strace
	CGO_ENABLED=0 $(GO) test -count=1 -timeout=15m -v ./internal/crash

.PHONY: lint
lint: ## Run golangci-lint and buf lint (tools are built once and cached)
	$(TOOL) golangci-lint golangci-lint run
	@if [ -n '$(LINT_BUF)' ] || $(TOOL) --cached buf; then (set -x; $(TOOL) buf buf lint); \
	else echo 'make lint: buf is not built here, protos were not linted; LINT_BUF=1 builds it'; fi

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (10s)
	@GO='$(GO)' scripts/fuzz.sh '$(FUZZTIME)'

.PHONY: bench
bench: build plugins ## Measure what docs/PERFORMANCE.md reports
	@scripts/bench.sh

.PHONY: generate
generate: ## Write the code that comes from protos and SQL
	$(TOOL) buf buf generate
	$(TOOL) sqlc sqlc generate -f host/registry/sqlc.yaml

.PHONY: generate-check
generate-check: generate ## Fail when the generated code is not what generate writes
	@git diff --exit-code -- $(GENERATED)
	@new=$$(git ls-files --others --exclude-standard -- $(GENERATED)); \
	[ -z "$$new" ] || { printf 'make generate-check: not committed:\n%s\n' "$$new" >&2; exit 1; }

.PHONY: clean
clean: ## Remove what the build wrote
	rm -rf bin .tmp
