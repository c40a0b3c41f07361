# make help lists the targets. Go, git and make are all that a fresh clone needs to
# build; the tests of the torch engine install PyTorch with python3 (bench-venv).

SHELL := /bin/sh
GO ?= go
BIN := bin
CACHE := $(CURDIR)/.cache

# The version is the nearest tag, or the commit, or "devel" outside a clone.
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)

# cgo is off: one static binary that runs wherever the kernel does. The race
# detector is the exception and needs a C compiler (see internal/testsum).
export CGO_ENABLED := 0

# What a user's environment may hold must not change the build: no workspace of
# theirs, and no stamp from git, which fails in a checkout that another user owns.
export GOWORK := off
export GOFLAGS := -buildvcs=false

# Packages whose tests are arithmetic: minutes under the race detector, seconds
# without. Their concurrency is tested on other packages' terms (equal bits at
# every thread count).
PLAIN := agent/engine,model,placement,bench,verify

# The golden folders that this build answers for.
GOLDEN_FLUX := dev dev-no-guidance schnell dev-bf16 head128 head128-fp8 prefixed fp8-e4m3 fp8-e5m2 fp8-scaled kontext-offset kontext-index kontext-uxo fill control masked diffusers lora-kohya lora-peft lora-native lora-bfl-control lora-bf16 lora-unknown-key lora-wrong-rank sampling sampling-bf16 schedules
GOLDEN_GGUF := types types-v2 metadata five-dimensions orig-shape flux flux-k
GOLDEN_CASES := $(addprefix flux/,$(GOLDEN_FLUX)) $(addprefix gguf/,$(GOLDEN_GGUF)) tables safetensors bad/safetensors bad/gguf bad/model

# A golangci-lint of this version is built once into the cache.
LINT_VERSION := $(shell sed -n 's|^.*golangci/golangci-lint/v2 \(v[0-9.]*\).*|\1|p' tools/lint/go.mod)
LINT := $(CACHE)/bin/golangci-lint-$(LINT_VERSION)

GENERATED := grep -rlE '^// Code generated .* DO NOT EDIT' proto agent --include=*.go --include=*.s | sort

CROSS := windows/amd64 darwin/arm64 linux/arm64

.PHONY: help build quickstart test test-torch test-pack test-comfyui fuzz test-golden test-comfy-clients test-comfy-worker lint lint-fix bench bench-real bench-venv proto generate check-generated cross clean $(BIN)/distorch

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1	\2/p' $(MAKEFILE_LIST) | expand -t 18

build: $(BIN)/distorch ## build bin/distorch

$(BIN)/distorch: # always asked: go build knows best what is up to date
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/distorch

quickstart: $(BIN)/distorch ## one picture on three agents, then on one; NETNS=1: each in a network namespace
	./$(BIN)/distorch quickstart $(if $(filter 1,$(NETNS)),--netns) $(QUICKSTARTFLAGS)

# The tests that run a second time, with the torch engine in native's place.
TORCH_TESTED := ./agent/stage ./verify ./cmd/internal/assemble

test: $(CACHE)/venv/.done ## vet and all tests; closes with the slowest packages and what was skipped
	$(GO) vet ./...
	DISTORCH_TEST_PYTHON=$(CACHE)/venv/bin/python \
		$(GO) run ./internal/testsum -plain $(PLAIN) -args '-shuffle=on -timeout=20m $(TESTFLAGS)' $(if $(PKG),$(PKG),./...)
	$(if $(PKG),,$(MAKE) --no-print-directory test-torch test-pack)

test-torch: $(CACHE)/venv/.done ## stages, pipelines, clusters and golden cases on PyTorch's CPU
	DISTORCH_TEST_ENGINE=torch DISTORCH_TEST_PYTHON=$(CACHE)/venv/bin/python \
		$(GO) run ./internal/testsum -plain agent,verify,cmd -args '-timeout=20m $(TESTFLAGS)' $(TORCH_TESTED)

test-pack: $(BIN)/distorch $(CACHE)/venv/.pillow ## the ComfyUI node pack on a double of ComfyUI, with a real cluster behind it
	DISTORCH_BIN=$(CURDIR)/$(BIN)/distorch $(CACHE)/venv/bin/python comfyui/tests/run.py

# Its own environment has PyTorch from the one above and what the checkout's
# requirements.txt asks for (1 GB).
test-comfyui: $(BIN)/distorch $(CACHE)/venv/.done ## COMFYUI_DIR=DIR: the node pack in a real ComfyUI, compared with its own model
	@test -n "$(COMFYUI_DIR)" || { echo 'make test-comfyui COMFYUI_DIR=DIR: DIR is a checkout of ComfyUI' >&2; exit 2; }
	python3 -B comfyui/tests/real --comfyui "$(COMFYUI_DIR)" --distorch $(BIN)/distorch --venv $(CACHE)/comfyui-venv --torch $(CACHE)/venv $(COMFYUIFLAGS)

FUZZTIME ?= 10s
fuzz: ## each fuzz target for FUZZTIME (10s)
	@grep -rn --include='*_test.go' -o '^func Fuzz[A-Za-z0-9_]*' . | sed 's|^\(.*\)/[^/]*:[0-9]*:func \(.*\)$$|\1 \2|' | while read -r dir name; do \
		echo "fuzz $$dir $$name"; \
		$(GO) test -run '^$$' -fuzz "^$$name$$" -fuzzminimizetime 10x -fuzztime $(FUZZTIME) "$$dir" </dev/null || exit 1; \
	done

test-golden: $(BIN)/distorch $(CACHE)/venv/.done ## GOLDEN=DIR: compare with tensors that ComfyUI's own classes made, on both engines
	@test -n "$(GOLDEN)" || { echo 'make test-golden GOLDEN=DIR: DIR holds the golden folders (flux, tables, ...)' >&2; exit 2; }
	@for c in $(GOLDEN_CASES); do test -e "$(GOLDEN)/$$c" || { echo "there is no $(GOLDEN)/$$c" >&2; exit 2; }; done
	./$(BIN)/distorch verify $(addprefix $(GOLDEN)/,$(GOLDEN_CASES)) $(VERIFYFLAGS)
	./$(BIN)/distorch verify --engine torch --python $(CACHE)/venv/bin/python --device cpu $(addprefix $(GOLDEN)/,$(GOLDEN_CASES))
	./$(BIN)/distorch verify --engine torch --python $(CACHE)/venv/bin/python --device cpu --stages 3 --stored $(addprefix $(GOLDEN)/flux/,dev dev-bf16 masked kontext-uxo)

test-comfy-clients: $(CACHE)/comfy-clients/.done ## ComfyUI clients from npm and PyPI, unmodified, against the coordinator's ComfyUI API
	$(GO) run ./bench/comfyclients -dir $(CACHE)/comfy-clients

test-comfy-worker: $(CACHE)/comfy-clients/.done ## COMFYUI_URL=URL: a ComfyUI that runs, as a worker behind the coordinator's ComfyUI API
	@test -n "$(COMFYUI_URL)" || { echo 'make test-comfy-worker COMFYUI_URL=URL: URL is that of a ComfyUI, such as http://127.0.0.1:8188' >&2; exit 2; }
	$(GO) run ./bench/comfyclients -dir $(CACHE)/comfy-clients -worker "$(COMFYUI_URL)"

# No script of a package runs; Node.js 20 or newer is the machine's own.
$(CACHE)/comfy-clients/.done:
	@command -v npm >/dev/null || { echo 'make test-comfy-clients needs Node.js 20 with npm' >&2; exit 2; }
	mkdir -p $(CACHE)/comfy-clients
	npm install --prefix $(CACHE)/comfy-clients --no-audit --no-fund --ignore-scripts --save-exact \
		@saintno/comfyui-sdk@0.3.1 @stable-canvas/comfyui-client@1.5.9 comfy-ui-client@0.1.2 ws@8.23.0
	python3 -m venv $(CACHE)/comfy-clients/venv
	$(CACHE)/comfy-clients/venv/bin/pip install --disable-pip-version-check --quiet websocket-client==1.9.2 comfy-cli==1.23.0
	@touch $@

lint: $(LINT) ## golangci-lint; the first time builds it (two minutes)
	$(LINT) run ./...
	@if command -v $$($(GO) env CC) >/dev/null; then echo 'with cgo:'; CGO_ENABLED=1 $(LINT) run ./agent/device/...; fi
	cd tools && $(LINT) run --config ../.golangci.yml ./...

lint-fix: $(LINT) ## let golangci-lint mend what it can
	$(LINT) run --fix ./...

$(LINT): tools/lint/go.mod tools/lint/go.sum
	$(GO) -C tools/lint build -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

bench: $(BIN)/distorch ## figures as ratios against PyTorch, dd and one agent
	$(GO) run ./bench $(BENCHFLAGS)

bench-real: $(BIN)/distorch ## a checkpoint of FLUX.1-dev's size on three agents of 6 GB
	$(GO) run ./bench real $(BENCHFLAGS)

bench-venv: $(CACHE)/venv/.done ## PyTorch from PyPI for tests and `make bench` (5.4 GB)

$(CACHE)/venv/.done:
	python3 -m venv $(CACHE)/venv
	$(CACHE)/venv/bin/pip install --disable-pip-version-check --quiet torch numpy
	@touch $@

$(CACHE)/venv/.pillow: $(CACHE)/venv/.done
	$(CACHE)/venv/bin/pip install --disable-pip-version-check --quiet pillow
	@touch $@

proto: ## generate the Go code of proto/
	$(GO) -C tools run ./protogen

generate: ## generate the assembly of the kernels
	$(GO) generate ./agent/...

check-generated: ## fail if generating again changes what generated code there is
	@mkdir -p $(CACHE)
	@$(GENERATED) | xargs cksum > $(CACHE)/generated.before
	@$(MAKE) --no-print-directory proto generate
	@$(GENERATED) | xargs cksum > $(CACHE)/generated.after
	@diff $(CACHE)/generated.before $(CACHE)/generated.after || \
	{ echo 'generated code was not up to date; it is now: commit it' >&2; exit 1; }

cross: ## compile and vet for the systems that are built but not run
	@for t in $(CROSS); do \
		echo "cross $$t"; \
		GOOS=$${t%/*} GOARCH=$${t#*/} $(GO) build ./... || exit 1; \
		GOOS=$${t%/*} GOARCH=$${t#*/} $(GO) vet ./... || exit 1; \
	done

clean: ## remove what was built; the caches stay (rm -r .cache for those)
	rm -rf $(BIN) out
