# What there is to do with a checkout. Everything lacking on a Debian machine is installed on the way (tests/scripts/prepare.sh).

.DEFAULT_GOAL := help
.PHONY: help test demo up bench chaos fmt

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

test: ## format, lints, documentation, dependency rules, and all tests
	@tests/scripts/test.sh

demo: ## the main job, told as a tour in one minute; leaves nothing running
	@tests/scripts/tour.sh demo

up: ## a server with the console and one demo device, until Ctrl-C; writes target/up.env
	@tests/scripts/tour.sh up

bench: ## the benchmarks, one JSON object a line, also under target/bench/
	@tests/scripts/bench.sh

chaos: ## half an hour of harm to a cluster of three nodes with 10,000 devices; CHAOS_SEED plays one again
	@tests/scripts/chaos.sh

fmt: ## format the code
	@cargo fmt --all
