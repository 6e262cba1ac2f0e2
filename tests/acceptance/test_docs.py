from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from acceptance.compose_support import ROOT, variables
from fleetbeat_producer.cli import main as fleetbeat_agent
from fleetbeat_shared.settings import PREFIX, Settings
from fleetbeat_worker.cli import main as fleetbeat
from fleetbeat_worker.telemetry.metrics import COUNTED, GAUGES, WATERMARK, Histogram

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
SCRIPTS: dict[str, click.Command] = {"fleetbeat": fleetbeat, "fleetbeat-agent": fleetbeat_agent}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

_PARTS = ("bucket", "count", "sum")

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?<![\w./:=\[-])(fleetbeat(?:-agent)?) +(?=[a-z-])([^|&;#\n]*)")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """Return the script docs/generate.py."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return _BLOCK.sub("", page.read_text())


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the command lines of our scripts that a page shows in shell blocks or in line."""
    for language, block in _BLOCK.findall(page.read_text()):
        if language == "text" and page.name == "cli.md":
            examples = "\n".join(line for line in block.splitlines() if line.startswith("    fleetbeat"))
            yield from (shlex.split("".join(found)) for found in _commands_in(examples))
        elif language in {"console", "sh", "bash", "ini"}:
            yield from (shlex.split("".join(found), comments=True) for found in _commands_in(block))
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        if span.startswith("fleetbeat"):
            yield from (shlex.split("".join(found)) for found in _commands_in(span))


def _commands_in(text: str) -> list[tuple[str, str]]:
    return [(script + " ", arguments) for script, arguments in _COMMAND.findall(text.replace("\\\n", " "))]


def test_settings_page_is_what_the_code_says(generate: Any) -> None:
    """docs/settings.md has every setting with its default, range and meaning; `make docs` writes it."""
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == generate.settings_page(page)
    assert all(f"`{PREFIX}{name.upper()}`" in page for name in Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())


def test_metrics_page_is_what_the_code_says(generate: Any) -> None:
    """docs/metrics.md has every metric with its type, labels and meaning; `make docs` writes it."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page == generate.metrics_page(page)
    assert all(f"| `{metric.name}` |" in page for metric in (*COUNTED, *GAUGES))


def series() -> set[str]:
    """Return the names under which Prometheus stores our metrics."""
    parts = {f"{metric.name}_{part}" for metric in COUNTED if isinstance(metric, Histogram) for part in _PARTS}
    return parts | {metric.name for metric in (*COUNTED, *GAUGES) if not isinstance(metric, Histogram)}


def selections(expression: str) -> Iterator[tuple[str, str]]:
    """Yield the names of our metrics in an expression, and what is in braces behind them."""
    yield from re.findall(r"\b(fleetbeat_\w+)(?:\{([^}]*)\})?", expression)


def values_of(name: str) -> set[str]:
    """Return the label matchers that can match anything of a metric."""
    metric = next(metric for metric in (*COUNTED, *GAUGES) if name.startswith(metric.name))
    label = None if isinstance(metric, Histogram) else metric.label
    return {f'{label}{sign}"{value}"' for value in getattr(metric, "values", ()) for sign in ("=", "!=")} | {""}


def test_alert_rules_ask_for_what_there_is() -> None:
    """Each rule of docs/prometheus-alerts.yml has what Prometheus and people need, and names our own metrics."""
    (group,) = yaml.safe_load((ROOT / "docs" / "prometheus-alerts.yml").read_text())["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(set(names)) == len(names) > 5
    for rule in group["rules"]:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "action"}
        found = list(selections(rule["expr"]))
        assert found, rule
        assert {name for name, _ in found} <= series(), rule
        assert all(matcher in values_of(name) for name, matcher in found), rule


def test_the_dashboard_shows_what_there_is() -> None:
    """Each expression of docs/grafana-dashboard.json names our own metrics, and every metric is shown somewhere."""
    panels = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    found = [selection for expression in expressions for selection in selections(expression)]
    shown = {name for name, _ in found}
    assert shown <= series()
    assert all(matcher in values_of(name) for name, matcher in found)
    unseen = {metric.name for metric in (*COUNTED, *GAUGES) if not any(name.startswith(metric.name) for name in shown)}
    assert unseen == {WATERMARK.name}  # the lag shows it better


def test_command_page_is_what_help_says(generate: Any) -> None:
    """docs/cli.md has the help text of every command of both scripts; `make docs` writes it."""
    assert (ROOT / "docs" / "cli.md").read_text() == generate.cli_page()


def test_every_command_shows_an_example(generate: Any) -> None:
    """Each command's help ends with how it is used."""
    for _, path, text in generate.help_texts():
        is_group = "COMMAND [ARGS]" in text
        assert is_group or re.search(r"Examples?:", text), path


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link names a file of the repository, and a heading that is there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT)
        assert not anchor or anchor in slugs(file), target


@every_page
def test_commands_that_pages_show_exist(page: Path) -> None:
    """Each `fleetbeat …` of a page names a command that is there, with options that it has."""
    for line in commands(page):
        command = SCRIPTS[line[0]]
        words = [word for word in line[1:] if not word.startswith("-")]
        while isinstance(command, click.Group) and words:
            found = command.get_command(click.Context(command), words.pop(0))
            assert found is not None, line
            command = found
        known = {"--help", "-h"} | {option for parameter in command.params for option in parameter.opts}
        assert {word.partition("=")[0] for word in line if re.match(r"--?[a-z]", word)} <= known, line


@every_page
def test_variables_that_pages_name_exist(page: Path) -> None:
    """Each FLEETBEAT_ variable of a page is a setting, its file's twin, or one of the compose file."""
    settings = {PREFIX + name.upper() for name in Settings.model_fields}
    known = settings | {name + "_FILE" for name in settings} | variables()
    assert set(re.findall(r"\bFLEETBEAT_[A-Z_]*[A-Z]\b", page.read_text())) <= known


@every_page
def test_tests_that_pages_name_exist(page: Path) -> None:
    """Each `file.py::test` of a page is a test of the repository."""
    for name, test in re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text()):
        assert f"def {test}(" in (ROOT / "tests" / name).read_text(), test


def test_reliability_names_a_test_in_each_row() -> None:
    """Each promise of docs/reliability.md, and each fault, has the test that shows it, or says that there is none."""
    rows = re.findall(r"^\| (?!---)(.*) \|$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    unproven = [row for row in rows if "::test_" not in row and not row.endswith("The test that shows it")]
    assert all("no test can" in row for row in unproven)


def test_changelog_has_this_version() -> None:
    """What is new in the version that pyproject.toml names can be read."""
    assert f"## [{PROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_pin_every_dependency() -> None:
    """constraints.txt has exact versions without addresses, of all that pyproject.toml asks for, and fitting it."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines)  # type: ignore[union-attr]
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    assert canonicalize_name(PROJECT["project"]["name"]) not in versions
    assert lines == sorted(lines, key=str.lower)
    asked = [
        *PROJECT["build-system"]["requires"],
        *PROJECT["project"]["dependencies"],
        *(one for extra in PROJECT["project"]["optional-dependencies"].values() for one in extra),
        *PROJECT["dependency-groups"]["dev"],
    ]
    for requirement in map(Requirement, asked):
        version = versions.get(canonicalize_name(requirement.name))
        windows = requirement.marker is not None and not requirement.marker.evaluate()
        assert windows or (version is not None and requirement.specifier.contains(version)), str(requirement)


def test_commit_hooks_are_the_checks() -> None:
    """What git runs before a commit is what `make check` runs, from this clone's own .venv."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    entries = {tuple(hook["entry"].split()[:2]) for hook in hooks[0]["hooks"]}
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    programs = re.findall(r"\$\(BIN\)/([\w-]+)(?: ([\w-]+))?", recipe[1])
    expected = {
        (f".venv/bin/{program}", word) if word and word[0] != "-" else (f".venv/bin/{program}",)
        for program, word in programs
    }
    assert entries == expected
