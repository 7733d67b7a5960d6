# What people do with the project. `demo`, `test`, `bench` and `setup` install Debian packages and make network namespaces: run them as root.
.PHONY: help setup build demo test faults engines soak lint bench package image book

help:
	@echo "make demo    a shop of real servers on a private Docker Engine, without and with Cofferdam"
	@echo "make test    every test; those that need an engine get a private one"
	@echo "make faults  of the tests, only faults, races and hostile containers, with a leak probe; about 15 minutes"
	@echo "make engines  what depends on the engine, on Docker Engine 20.10, 26.1 and 28.5 from Debian's packages, and a table of it; an hour and a half"
	@echo "make soak    the same again and again, ROUNDS=20 times, until something fails"
	@echo "make book    the documents as a book, in target/book/html"
	@echo "make lint    format, clippy and shell syntax"
	@echo "make bench   the benchmarks, as root in namespaces of their own; ARGS=--quick: whether they still work"
	@echo "make package  a Debian package in target/debian; needs cargo and dpkg-dev"
	@echo "make image   an image of the program for Docker: cofferdam:VERSION"
	@echo "make setup   what demo and test need of Debian (they call it themselves)"

setup:
	@[ "$$(id -u)" = 0 ] || { echo "packages, namespaces and dockerd need root: run make as root" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "there is no cargo on PATH: install Rust from https://rustup.rs" >&2; exit 1; }
	@tests/run setup

build:
	cargo build --locked

demo: setup build
	@examples/shop/demo.sh

test: setup
	@tests/run

faults: setup
	@tests/run faults

engines: setup
	@tests/engines $(ENGINES)

soak: setup
	@for round in $$(seq "$${ROUNDS:-20}"); do echo "round $$round"; tests/run faults || exit 1; done

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	@for script in tests/run tests/engines tests/engine/private-engine tests/engine/root .ci/run packaging/package packaging/image/build packaging/debian/p* examples/shop/*.sh examples/shop/*/*.sh examples/gitops/ci/policy.sh \
		examples/gitops/hooks/pre-commit examples/monitoring/check.sh docs/pictures/make; do \
		bash -n "$$script" || exit 1; \
		if command -v shellcheck >/dev/null; then shellcheck "$$script" || exit 1; fi; \
	done

# Built by the test that CI runs, too: its links are looked at on the way.
book:
	@cargo test --locked --test book the_book_is_built
	@echo "target/book/html/index.html"

bench: setup
	@tests/engine/private-engine setup iperf3
	@cargo bench --locked --bench claims -- $(ARGS)

package:
	@packaging/package release

image:
	cargo build --locked --release
	@packaging/image/build target/release/cofferdam "cofferdam:$$(target/release/cofferdam --version | cut -d' ' -f2)"
