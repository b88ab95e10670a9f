# make demo: the whole path once, on a generated catalog.   make test: the tests.   make serve: the endpoint and the page.
CONF ?= conf/local.yaml
PY = .venv/bin/python
PYTEST = $(PY) -m pytest -n 2 --dist loadgroup  # tests that share engines stay in one process (tests/conftest.py)

.PHONY: help setup demo test serve check drill chaos-nightly bench bench-index bench-serve chaos-serve clean

help:
	@echo "make demo    sets everything up, builds an index of a generated catalog, searches it over HTTP, writes a report"
	@echo "make serve   the search endpoint and page of the champion release, in the foreground   (CONF=$(CONF))"
	@echo "make test    sets everything up and runs the tests that are quick"
	@echo "make check   ruff, mypy, import rules, every test but the drills"
	@echo "make drill   kills jobs in the middle and compares what comes out"
	@echo "make chaos-nightly  kills the nightly run everywhere, fills its disk, stops its registry, damages its tables, and compares (half an hour)"
	@echo "make bench   the benchmarks; figures are kept as JSON in tests/bench/results"
	@echo "make bench-serve the endpoint under load: hash and vector answers, products put, releases switched"
	@echo "make chaos-serve faults of the endpoint under load: killed and hanging processes, bad releases, no registry, overload"
	@echo "make bench-index  this index beside other libraries, on the same vectors   (SIZES=\"100000 1000000\")"
	@echo "make clean   removes what the demo made (store/)"

setup:
	@./setup.sh

demo: setup
	@$(PY) -m jobs.run_demo --conf $(CONF)

serve: setup
	@$(PY) -m serve --conf $(CONF)

test: setup
	@./setup.sh --browser
	@$(PYTEST) -m "not drill and not slow"

check: setup
	@./setup.sh --browser
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PYTEST)

drill: setup
	@$(PY) -m pytest -m drill

chaos-nightly: setup
	@$(PY) -m pytest -m drill tests/test_chaos_nightly.py tests/test_chaos_store.py tests/test_second_night.py

bench: setup
	@for bench in tests/bench/bench_*.py; do $(PY) -m tests.bench.$$(basename $$bench .py) --conf $(CONF) || exit 1; done

bench-serve: setup
	@$(PY) -m tests.bench.bench_serve

chaos-serve: setup
	@$(PY) -m tests.load.chaos_serve

SIZES ?= 100000
bench-index: setup
	@[ -x .venv-bench/bin/python ] || .venv/bin/python -m venv .venv-bench
	@.venv/bin/uv pip install -q --python .venv-bench/bin/python --require-hashes -r requirements-bench.lock
	@$(PY) -m tests.bench.bench_index --sizes $(SIZES) --systems ours ours_8_shards scann hnswlib usearch lancedb milvus
	@$(PY) -m tests.bench.bench_hashes
	@$(PY) -m tests.bench.bench_capacity

clean:
	rm -rf store
