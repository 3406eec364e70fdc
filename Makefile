# Copyright: Contributors to sendense.backup
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help deps venv lab lab-ssh lab-reset lab-down provision demo test lint sanity unit scenarios matrix molecule bench clean

INVENTORY ?= inventories/lab
SCENARIO ?= default
ARGS ?=

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Sockets of the tests lie below it, and the path of a socket has room for 107 bytes.
export TMPDIR := /tmp
export MOLECULE_GLOB := molecule/*/molecule.yml
export MOLECULE_EPHEMERAL_DIRECTORY := $(CURDIR)/build/molecule
export MOLECULE_COMMAND_BORDERS := false

help: ## List every word
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## Install the Debian packages that are missing (root)
	@tools/deps

venv: deps ## Make .venv with the pinned tools, if it is not there yet
	@tools/venv

# --- lab
lab: venv ## Raise the lab: hub1, node1 and a vCenter
	@rm -f build/lab-of-the-tests # from now on it is a person's lab, and the tests leave it up
	/usr/bin/python3 -m lab up

lab-ssh: ## A shell, or CMD=..., on HOST=hub1|node1
	@: $${HOST:?Say which one: HOST=hub1 or HOST=node1}
	@/usr/bin/python3 -m lab ssh $(HOST) $${CMD:+"$$CMD"}

lab-reset: ## A fresh machine in the place of HOST=hub1|node1
	@: $${HOST:?Say which one: HOST=hub1 or HOST=node1}
	/usr/bin/python3 -m lab reset $(HOST)

lab-down: ## Take the lab down; nothing is left
	/usr/bin/python3 -m lab down
# --- end of lab

provision: venv ## Run playbooks/provision.yml (INVENTORY=inventories/lab ARGS=...)
	ansible-playbook --inventory $(INVENTORY) playbooks/provision.yml $(ARGS)

# --- demo
demo: lab ## Back up a VM in the lab and compare every byte with the truth
	@tools/demo
# --- end of demo

test: lint sanity ## Everything that CI runs, the fast things first
	pytest --exitfirst --numprocesses=auto --dist=worksteal tests/unit
	pytest --exitfirst tests/scenarios

lint: venv ## ruff, mypy, ansible-lint and the changelog's form
	ruff check .
	mypy
	ansible-lint
	antsibull-changelog lint

sanity: venv ## ansible-test sanity on the built artefact
	tools/sanity

unit: venv ## Unit tests, and modules against the real tools (ARGS=...)
	pytest --numprocesses=auto --dist=worksteal tests/unit $(ARGS)

scenarios: venv ## All molecule scenarios, in a lab of their own unless one is up
	pytest tests/scenarios $(ARGS)

matrix: venv ## The scenarios with every case of their slow matrices; test runs a sample
	MATRIX=whole pytest tests/scenarios $(ARGS)

molecule: venv ## One molecule scenario by hand (SCENARIO=default ARGS=--destroy=never)
	rm -rf build/molecule # whether there is a lab, create asks the lab
	molecule test --scenario-name $(SCENARIO) $(ARGS)

bench: venv ## Measure into build/bench.json, beside other tools (ONLY=row,row)
	@PYTHONPATH=collections python -m tests.bench $(ONLY)

clean: ## Remove what was built here; the lab and its state stay
	rm -rf .venv build/venv build/artefact build/sanity build/mypy build/ruff build/pytest .ansible .hypothesis
