# Each target works on a fresh machine that has Python >= 3.11 and nothing else.
PYTHON ?= python3
RUN := .venv/bin/python -m

.PHONY: gate4 test lint bench goldens selftest clean

gate4: .venv/gate.stamp
	$(RUN) harness.cli models fetch smollm2-135m-instruct
	$(RUN) pytest -m gate4 --profile cpu $(GATE_ARGS)

test: .venv/dev.stamp
	$(RUN) harness.cli models fetch smollm2-135m-instruct
	$(RUN) pytest tests $(TEST_ARGS)

lint: .venv/dev.stamp
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

bench: .venv/engine.stamp
	$(RUN) engine.cli bench $(BENCH_ARGS)

selftest: .venv/dev.stamp
	$(RUN) harness.cli models fetch smollm2-135m-instruct
	$(RUN) harness.cli selftest $(SELFTEST_ARGS)

goldens: .venv/oracle.stamp
	$(RUN) harness.cli models fetch smollm2-135m-instruct
	$(RUN) tests.goldens.make_goldens
	$(RUN) tests.goldens.make_tiny_goldens suites/goldens/tiny
	$(RUN) tests.goldens.make_quant_goldens suites/goldens/quants.json
	$(RUN) tests.goldens.make_chat_goldens
	$(RUN) tests.goldens.make_mxfp4_goldens suites/goldens/mxfp4.json

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("haikugate needs Python >= 3.11, got " + sys.version.split()[0] + "; run: make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv --upgrade-deps .venv # pip tells its progress since 24.1

# One stamp for each set of extras: an install is repeated only when pyproject.toml changes.
.venv/%.stamp: .venv/bin/python pyproject.toml
	$(RUN) pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

clean:
	rm -rf .venv build dist
