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
BUILD = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
# The machines that there are packages for, and this one.
ARCHS = amd64 arm64
ARCH = $(shell $(GO) env GOARCH)
RPM_amd64 = x86_64
RPM_arm64 = aarch64
# Whatever lintian has to say needs an override with its reason, but for words that the instructions
# of one build happen to spell and those of the next do not.
LINTIAN = lintian --allow-root --suppress-tags spelling-error-in-binary --display-info --pedantic --fail-on error,warning,info,pedantic
PACKAGE = VERSION=$(VERSION) COMMIT=$(COMMIT) packaging/package.sh
FUZZTIME ?= 30s
SOAK ?= 30m

.DEFAULT_GOAL := help
.PHONY: help build test test-quick test-faults race fuzz lint vulncheck deb packages packages-check trial demo bench soak clean install-deps FORCE

help: ## list what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

build: ## build bin/vragent
	$(BUILD) -o bin/vragent ./agent/cmd/vragent

dist/%/vragent: FORCE
	GOOS=linux GOARCH=$* $(BUILD) -o $@ ./agent/cmd/vragent

dist/%/vragent-cloudstack: FORCE
	GOOS=linux GOARCH=$* $(BUILD) -o $@ ./agent/cmd/vragent-cloudstack

test: install-deps ## all tests, in namespaces of their own and with real clients
	$(GO) vet ./...
	$(GO) test -race -shuffle=on -timeout 30m ./...

test-quick: ## the tests without the race detector and without installing
	$(GO) test ./...

test-faults: install-deps ## what happens when power, disk, memory or devices fail (VRAGENT_SEED=n repeats a run)
	VRAGENT_FAULTS=1 $(GO) test -race -shuffle=on -count=1 -timeout 20m -run '^TestFault' ./...

race: ## all tests three times over with the race detector, in another order each time
	$(GO) test -race -shuffle=on -count=3 ./...

fuzz: ## each fuzz target for FUZZTIME (30s)
	packaging/fuzz.sh $(FUZZTIME)

lint: ## gofmt, vet, staticcheck and the shell scripts
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "run gofmt -w on:" $$unformatted >&2; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	@for script in $$(git grep -lI '^#!/bin/sh' -- ':!*.md'); do sh -n $$script || exit 1; done

vulncheck: ## known vulnerabilities in what vragent is built of; asks https://vuln.go.dev
	packaging/vulncheck.sh

deb: build dist/$(ARCH)/vragent dist/$(ARCH)/vragent-cloudstack ## the Debian packages for this machine in dist/
	$(PACKAGE) deb $(ARCH)
	$(PACKAGE) deb $(ARCH) vragent-cloudstack

packages: build $(ARCHS:%=dist/%/vragent) $(ARCHS:%=dist/%/vragent-cloudstack) ## debs and rpm for amd64 and arm64 in dist/
	@for arch in $(ARCHS); do \
		$(PACKAGE) deb $$arch && $(PACKAGE) rpm $$arch && $(PACKAGE) deb $$arch vragent-cloudstack || exit 1; \
	done

packages-check: packages ## look into each of them, build them a second time and compare
	packaging/deps.sh packages
	$(LINTIAN) $(ARCHS:%=dist/vragent_$(VERSION)_%.deb) $(ARCHS:%=dist/vragent-cloudstack_$(VERSION)_%.deb)
	packaging/inspect.sh $(VERSION)
	packaging/rebuild.sh VERSION=$(VERSION) COMMIT=$(COMMIT) SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH)

trial: deb ## try the packages on a booted copy of this machine (root)
	packaging/deps.sh trial
	$(PACKAGE) rpm $(ARCH)
	$(LINTIAN) dist/vragent_$(VERSION)_$(ARCH).deb dist/vragent-cloudstack_$(VERSION)_$(ARCH).deb
	packaging/trial/run.sh packaging/trial/inside.sh dist/vragent_$(VERSION)_$(ARCH).deb dist/vragent-$(VERSION)-1.$(RPM_$(ARCH)).rpm
	packaging/trial/run.sh packaging/trial/cloudstack.sh dist/vragent_$(VERSION)_$(ARCH).deb dist/vragent-cloudstack_$(VERSION)_$(ARCH).deb packaging/cloudstack/standins

lab: deb ## routers, guests and a management server on booted Debian machines (root); SCENARIOS="isolated ..."
	packaging/deps.sh lab
	packaging/lab/run.sh dist/vragent_$(VERSION)_$(ARCH).deb dist/vragent-cloudstack_$(VERSION)_$(ARCH).deb

demo: ## what vragent does, shown with a router and two guests
	packaging/deps.sh demo
	@$(MAKE) --no-print-directory build
	packaging/demo/run.sh bin/vragent

bench: ## the figures of this machine, as tables
	packaging/deps.sh bench
	$(GO) test -p 1 -run '^$$' -bench . ./...
	VRAGENT_FIGURES=1 $(GO) test -p 1 -timeout 60m -count=1 -v -run '^TestFigures' ./... | grep -v 'no test'

soak: ## everything that changes on a router, changing for SOAK (30m): is the daemon flat?
	packaging/deps.sh test
	VRAGENT_FIGURES=1 VRAGENT_SOAK=$(SOAK) $(GO) test -timeout 0 -count=1 -v -run '^TestFiguresOfSoak$$' ./agent/e2e

install-deps: ## install the Debian packages that the tests lack here
	packaging/deps.sh test

clean: ## remove what was built
	rm -rf bin dist
