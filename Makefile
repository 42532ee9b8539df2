# What people and CI do here. `make` or `make help` lists it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# Outside the checkout, so that every working copy shares one.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/trellis/target

.PHONY: help setup demo demo-pipeline test torture simulate guests lint fmt bench bench-lattice

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what building and testing need beyond Rust (Debian; again changes nothing)
	@deploy/setup/setup.sh

demo: ## Start a node, deploy examples/orders and use it (DEMO_NATS=1: on NATS; DEMO_EXIT=1: stop at the end)
	@deploy/demo.sh

demo-pipeline: ## Three nodes on NATS charge 10,000 orders; one is killed, a version is taken back (DEMO_EXIT=1: stop at the end)
	@deploy/demo-pipeline.sh

test: ## Everything that CI checks: format, lints, guests, all tests
	@deploy/test.sh

guests: ## Build the guests under examples/
	@deploy/setup/setup.sh rust js python
	@examples/build.sh

lint: ## Check format and lints, and dependencies where cargo-deny is installed
	@deploy/test.sh format lints dependencies

fmt: ## Format all Rust
	@cargo fmt --all
	@cargo fmt --all --manifest-path examples/Cargo.toml

bench: ## Measure the promised numbers beside their peers, into BENCHMARKS.md (BENCH="http cold": some; BENCH=quick: try)
	@deploy/setup/setup.sh rust tools nats brokers js python bench
	@examples/build.sh
	@env -u RUST_BACKTRACE cargo bench --locked -p trellis-cli --bench promises -- $(BENCH) write
	@$(if $(BENCH),,$(MAKE) --no-print-directory bench-lattice)

bench-lattice: ## Measure how a lattice grows: plans and log up to 1,000 nodes and 10,000 components, heartbeats, commits
	@deploy/setup/setup.sh rust nats
	@cargo bench --locked -p trellis-placement --bench scale
	@cargo test --locked -p trellis-daemon --lib -- --nocapture a_heartbeat_is_bounded
	@cargo bench --locked -p trellis-raft --bench commit

simulate: ## Simulate lattices in which things go wrong, thousands of them (SIMULATE_SEEDS=N)
	@deploy/torture.sh simulate

torture: ## What CI has no time for, each for minutes; TORTURE="brokers mixed": only those
	@deploy/torture.sh $(TORTURE)
