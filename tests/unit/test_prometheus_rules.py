"""What is shipped for Prometheus and Grafana holds together: rules, alerts, their tests, runbooks, the dashboard."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qos2.datapath.abi import Counter
from qos2.metrics import render
from unit.full_snapshot import full
from unit.test_metrics import promtool

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
ALERTS = (SHIPPED / "alerts.yml").read_text()
RULES = (SHIPPED / "rules.yml").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "qos2.json").read_text())


def alerts() -> list[str]:
    return re.findall(r"- alert: (\w+)", ALERTS)


def recorded() -> set[str]:
    return set(re.findall(r"- record: (\S+)", RULES))


def known() -> set[str]:
    """Every name that a query may ask for: of metrics with their suffixes, and of recorded ones."""
    samples = {
        sample.name for family in text_string_to_metric_families(render(full()).decode()) for sample in family.samples
    }
    return samples | recorded()


def asked(text: str) -> set[str]:
    """Names of this project's metrics and recorded metrics in expressions."""
    # The `by` and `on` of an expression name labels; values of labels are in quotes.
    return set(re.findall(r"\b(?:[a-z_]+:)?qos2_\w+(?::\w+)?", re.sub(r'"[^"]*"', "", text)))


def expressions(rules: str) -> str:
    """The expressions of a file of rules."""
    found = re.findall(r"expr: (?:>-\n((?: {10}.*\n)+)|(.*))", rules)
    return "\n".join(folded or plain for folded, plain in found)


def test_the_shipped_configuration_is_valid() -> None:
    checked = promtool("check", "config", str(SHIPPED / "prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("file", ["rules.yml", "alerts.yml"])
def test_the_shipped_rules_are_valid(file: str) -> None:
    checked = promtool("check", "rules", str(SHIPPED / file))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_rules_do_what_their_tests_say() -> None:
    checked = promtool("test", "rules", str(SHIPPED / "alerts_test.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_has_a_test_and_so_has_what_is_recorded_for_no_other_rule() -> None:
    tests = (SHIPPED / "alerts_test.yml").read_text()
    assert [alert for alert in alerts() if not re.search(rf"alertname: {alert}\n\s+exp_alerts:", tests)] == []
    used = asked(expressions(ALERTS) + expressions(RULES))
    assert [name for name in recorded() - used if f"expr: {name}\n" not in tests] == []


def test_rules_ask_for_metrics_that_there_are() -> None:
    assert len(asked(expressions(RULES))) > 15
    assert asked(expressions(RULES)) - known() == set()
    assert len(asked(expressions(ALERTS))) > 8
    assert asked(expressions(ALERTS)) - known() == set()


def test_errors_that_raise_an_alert_are_those_of_the_datapath() -> None:
    (names,) = re.findall(r'qos2_datapath_errors_total\{name=~"([^"]+)"', ALERTS)
    assert set(names.split("|")) <= {counter.label for counter in Counter}


def test_every_alert_has_a_severity_and_its_own_runbook_and_each_runbook_its_alert() -> None:
    blocks = re.split(r"\n\n", ALERTS.split("rules:\n", 1)[1].strip())
    for name, block in zip(alerts(), blocks, strict=True):
        assert f"- alert: {name}\n" in block
        assert re.search(r"severity: (critical|warning)\b", block), name
        assert f'runbook: "docs/operations.md#{name.lower()}"' in block
        assert re.search(r'summary: ".+"', block), name
        assert re.search(r'description: ".+"', block), name
    runbooks = OPERATIONS.split("## Runbooks\n", 1)[1].split("\n## ", 1)[0]
    assert re.findall(r"^### (\w+)$", runbooks, re.MULTILINE) == alerts()


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert len(queries) > 40
    assert asked("\n".join(queries)) - known() == set()
    ours = [query for query in queries if "qos2_" in query]
    assert [query for query in ours if 'instance=~"$instance"' not in query] == []


def test_panels_of_the_dashboard_are_told_apart_and_do_not_overlap() -> None:
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    assert len({panel["title"] for panel in every}) == len(every)
    for panel in every:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in combinations((panel["gridPos"] for panel in every), 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)


def test_every_panel_uses_the_data_source_that_was_chosen() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    used = [panel["datasource"] for panel in panels()]
    used += [target["datasource"] for panel in panels() for target in panel["targets"]]
    assert [each for each in used if each != chosen] == []
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]


def test_letters_of_queries_are_told_apart_within_a_panel() -> None:
    for panel in panels():
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
        matched = [each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]]
        assert set(matched) <= set(letters)


def test_the_document_names_what_is_shipped() -> None:
    files = [str(path.relative_to(ROOT)) for path in (*SHIPPED.iterdir(), *(GRAFANA / "dashboards").iterdir())]
    assert [name for name in (*files, "deploy/grafana/provisioning/") if f"`{name}`" not in OPERATIONS] == []
