# Two commands do everything, set-up included: `make demo` and `make test`.
# The pinned set is installed again when it changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := data/demo
SAMPLE := data/sample
RUN := $(BIN)/python
COMMON := --data-dir $(DEMO) --personas-file $(SAMPLE)/personas.json --rehearsal

.PHONY: demo test lint benchmarks clean venv

# All five phases on the sample, without a key or network. Run it again and it resumes: but for the
# one smoke call of custom_lm.py nothing is redone.
demo: $(STAMP) $(DEMO)/qdrant/meta.json
	@echo "REHEARSAL: a rule-based stand-in answers in place of a language model"
	$(RUN) fetch_chunks.py --qdrant-path $(DEMO)/qdrant $(COMMON)
	$(RUN) annotate_chunks.py --replay $(SAMPLE)/decisions.jsonl $(COMMON)
	$(RUN) custom_lm.py "What is 2+2?" $(COMMON)
	$(RUN) optimize_pipeline.py $(COMMON)
	$(RUN) evaluate_pipeline.py $(COMMON)
	$(RUN) optimized_question_generator.py --qdrant-path $(DEMO)/qdrant $(COMMON)

# The generator writes into its folder, so the demo works on a copy; it appears whole or not at all.
$(DEMO)/qdrant/meta.json:
	mkdir -p $(DEMO)
	rm -rf $(DEMO)/qdrant.tmp $(DEMO)/qdrant
	cp -R $(SAMPLE)/small_sqlite $(DEMO)/qdrant.tmp
	mv $(DEMO)/qdrant.tmp $(DEMO)/qdrant

test: $(STAMP)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy question_optimizer *.py

benchmarks: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmarks]'
	$(RUN) benchmarks/fetch_vs_client.py
	$(RUN) benchmarks/annotation_wait.py
	$(RUN) benchmarks/dispatcher.py
	$(RUN) benchmarks/optimizers.py
	$(RUN) benchmarks/generator.py

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
