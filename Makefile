# Everything there is to do with the sources of vragent; `make help` lists it.

GO ?= go
# What a release is called: the newest tag v*, and how far the sources are from it.
VERSION ?= $(shell packaging/version.sh)
COMMIT ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
# The time of the last commit stands for all times in what is built, so that the same sources
# give the same bytes.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y go.mod)
export SOURCE_DATE_EPOCH

# Pinned in a module of their own, so that they are no dependency of vragent.
TOOL = $(GO) tool -modfile=packaging/tools/go.mod
LDFLAGS = -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
FUZZTIME ?= 30s

.DEFAULT_GOAL := help
.PHONY: help build test test-quick race fuzz lint deb trial demo bench clean install-deps

help: ## list what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

build: ## build bin/vragent
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/vragent ./agent/cmd/vragent

test: install-deps ## all tests, in namespaces of their own and with real clients
	$(GO) vet ./...
	$(GO) test -race -shuffle=on -timeout 30m ./...

test-quick: ## the tests without the race detector and without installing
	$(GO) test ./...

race: ## all tests three times over with the race detector, in another order each time
	$(GO) test -race -shuffle=on -count=3 ./...

fuzz: ## each fuzz target for FUZZTIME (30s)
	packaging/fuzz.sh $(FUZZTIME)

lint: ## gofmt, vet, staticcheck and the shell scripts
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "run gofmt -w on:" $$unformatted >&2; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	@for script in $$(git grep -lI '^#!/bin/sh'); do sh -n $$script || exit 1; done

deb: build ## a Debian package in dist/
	packaging/deb.sh $(VERSION)

trial: deb ## try that package on a booted copy of this machine (root)
	packaging/deps.sh trial
	lintian --fail-on error,warning --allow-root dist/vragent_$(VERSION)_$$($(GO) env GOARCH).deb
	packaging/trial/run.sh dist/vragent_$(VERSION)_$$($(GO) env GOARCH).deb

demo: ## what vragent does, shown with a router and two guests
	packaging/deps.sh demo
	@$(MAKE) --no-print-directory build
	packaging/demo/run.sh bin/vragent

bench: ## the figures of this machine, as tables
	packaging/deps.sh bench
	$(GO) test -p 1 -run '^$$' -bench . ./...
	VRAGENT_FIGURES=1 $(GO) test -p 1 -timeout 60m -count=1 -v -run '^TestFigures' ./... | grep -v 'no test'

install-deps: ## install the Debian packages that the tests lack here
	packaging/deps.sh test

clean: ## remove what was built
	rm -rf bin dist
