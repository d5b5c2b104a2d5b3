# make demo   installs what `sdpo` needs into .venv and runs the demo recipe
# make test   installs the tools of tests besides, then linters, type checker and tests
# make quick  linters, types, and in a minute and a half what breaks most often
# make e2e    the Prefect server, its worker and its UI in a browser; needs chromium
# make server starts a Prefect server, a worker and the deployments at this desk
# make release-check   sdist and wheel into dist/, the wheel installed elsewhere, where it runs the demo
# make docs   the documentation's site into build/site; broken links fail
# make lock   writes the locks again, after a change of constraints.txt or of the dependencies
# make check-docker   the Dockerfile by hadolint, the manifests by the schemas of Kubernetes' API
# make check-github   workflows, issue forms and CITATION.cff by their schemas, which need no network
# make bill   bills of material of both images (CycloneDX), into build/
# make test-real   installs what the slow tests need besides (extras `eval`, `sweep`, `remote`; moto
#             as S3, `transformers serve` and LiteLLM's gateway as judges on loopback; trackers and
#             the gateway in environments of their own), then runs them, and those that train on the real data beside the project

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
# pip compiles what it installs on one core. What cannot be compiled (templates, say) nobody imports.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
SITE := "import sysconfig; print(sysconfig.get_path('purelib'))"
STAMP := $(VENV)/.installed
TESTED_WITH := $(VENV)/.tested-with
WITH_EXTRAS := $(VENV)/.with-extras
BESIDE := --numprocesses 3 --dist worksteal
QUICK := tests/partitions $(addprefix tests/sdpo/,config data identity inputs objectives report \
	scoring stats store tokens training chain/test_chain.py)
NOT_QUICK := parity test_whole test_every_ test_router_loss test_divergence test_report test_demo \
	test_model_folder test_digest test_losses test_score
TOOLS := build/tools
TRACKERS := build/trackers
GATEWAY := build/gateway
DOCS_TOOLS := build/docs-tools
CHECK := $(DOCS_TOOLS)/bin/check-jsonschema --quiet --builtin-schema
OF_SLOW_TESTS := "lm-eval>=0.4.13,<0.5" "openai>=2,<4" "optuna>=5.0,<6" "s3fs>=2025.9" \
	"moto[server]>=5.1" "boto3>=1.40"

export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
# Where it is set, each of a thousand processes of the tests compiles this project again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install develop demo server test quick e2e test-real lint check-docker check-github docs release-check format lock bill clean

install: $(STAMP)

develop: $(TESTED_WITH)

$(STAMP): pyproject.toml docker/requirements-cpu.lock docker/torch-cpu.lock docker/torch.lock
	@echo "installing into $(VENV): a minute or more, without a word"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --require-hashes --requirement docker/requirements-cpu.lock
	$(PIP) --no-deps --require-hashes --requirement docker/torch-cpu.lock \
		|| $(PIP) --no-deps --require-hashes --requirement docker/torch.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	$(COMPILE)
	touch $(STAMP)

$(TESTED_WITH): $(STAMP) requirements.lock
	$(PIP) --no-deps --require-hashes --requirement requirements.lock
	$(COMPILE)
	touch $(TESTED_WITH)

demo: install
	$(BIN)/sdpo run flows/recipes/demo.yaml

server: install
	$(BIN)/sdpo server up

lint: develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	$(BIN)/pytest $(BESIDE)

quick: lint
	$(BIN)/pytest --numprocesses 2 --dist worksteal $(patsubst %,--ignore-glob='*%*',$(NOT_QUICK)) $(QUICK)

e2e: develop
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m 'e2e and not slow' tests/e2e

$(WITH_EXTRAS): develop
	$(PIP) --constraint constraints.txt $(OF_SLOW_TESTS)
	touch $(WITH_EXTRAS)

# MLflow wants another pyarrow, and Trackio another pillow, than the locks have.
$(TRACKERS): $(TESTED_WITH)
	$(BIN)/python -m venv $(TRACKERS)
	$(BIN)/python -c $(SITE) > "$$($(TRACKERS)/bin/python -c $(SITE))/project.pth"
	$(TRACKERS)/bin/pip install --quiet --disable-pip-version-check \
		wandb==0.31.0 mlflow==3.17.2 trackio==0.43.0
	touch $(TRACKERS)

# LiteLLM's gateway wants other versions of almost everything.
$(GATEWAY): $(TESTED_WITH)
	$(BIN)/python -m venv $(GATEWAY)
	$(GATEWAY)/bin/pip install --quiet --disable-pip-version-check "litellm[proxy]==1.108.7"
	touch $(GATEWAY)

test-real: $(WITH_EXTRAS) $(TRACKERS) $(GATEWAY)
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m slow
	PYTHONPATH=$(CURDIR) $(TRACKERS)/bin/python -m pytest -m slow tests/sdpo/chain/test_trackers.py

check-docker: $(TOOLS)
	$(TOOLS)/bin/hadolint docker/Dockerfile
	$(TOOLS)/bin/python docker/validate.py

$(DOCS_TOOLS): docs/requirements.txt
	$(PYTHON) -m venv $(DOCS_TOOLS)
	$(DOCS_TOOLS)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		--requirement docs/requirements.txt
	touch $(DOCS_TOOLS)

docs: install $(DOCS_TOOLS)
	$(BIN)/python -m docs.site build/docs
	NO_MKDOCS_2_WARNING=1 $(DOCS_TOOLS)/bin/mkdocs build --quiet --strict \
		--config-file build/docs/mkdocs.yml --site-dir ../site

check-github: $(DOCS_TOOLS)
	$(CHECK) vendor.github-workflows .github/workflows/*.yml
	$(CHECK) vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(CHECK) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(CHECK) vendor.citation-file-format CITATION.cff

release-check: develop
	.ci/release-check

format: develop
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(TOOLS): docker/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check --requirement docker/tools.txt
	touch $(TOOLS)

lock: $(TOOLS)
	$(TOOLS)/bin/python docker/lock.py

bill: $(TOOLS)
	$(TOOLS)/bin/python docker/bill.py build

clean:
	rm -rf $(VENV) build dist *.egg-info
